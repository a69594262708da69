"""The one kernel of the CPU backend, steered by a layout.

A kernel is called by several threads at once. Each pulls task numbers from a shared counter until the
end of the slice. A task is up to `rows` vectors of rows, reduced over a list of spans of columns:

    tasks   i64[task][5]   batch, first row, end row, first span, end span
    spans   i64[span][2]   first column, end column

Dense work has one span; block-sparse ranges, masks and radius searches are longer lists of them. What
a task leaves behind is a state of the reduction, component by component, in full vectors at
out[component][repeat][task·rows …]; nothing is masked, since the last rows of a task are repeated instead.

The same text with J in the lanes and no columns computes what depends on a column alone, once per
launch (`pack`), so that the pair loop finds it ready made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from farsum_kernels.backends.cpu.emit import Emitter, column_values
from farsum_kernels.backends.cpu.lazy import LazyState
from farsum_kernels.backends.cpu.long import LongState
from farsum_kernels.backends.cpu.shifted import ShiftedState
from farsum_kernels.backends.cpu.states import State
from farsum_kernels.backends.cpu.text import Function
from farsum_kernels.backends.cpu.vector import Shape
from farsum_kernels.formula.lower import Program, Terms
from farsum_kernels.formula.reductions import Reduction
from farsum_kernels.job import Part
from farsum_kernels.plan import Layout, is_lazy, rises_late
from farsum_kernels.scalar.ir import I, J, Prim, Scope

# The bit of the control word of SSE, AVX and AVX-512.
FLUSH_TO_ZERO = 1 << 15

PARAMETERS = (
    "ptr noalias %slots, ptr noalias %offsets, ptr noalias %tasks, ptr noalias %spans, "
    "ptr noalias %out, ptr %counter, i64 %end, i64 %tasks_all, ptr noalias %scratch"
)
SCALARS = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Stored:
    """One state component as a kernel leaves it: dtype, vectors deep, value where nothing was reduced."""

    dtype: str
    repeat: int
    identity: float


@dataclass(frozen=True)
class Text:
    """The kernel as LLVM IR, and what a caller must provide for it.

    packed    the column-level values, one extra slot each, computed by the function "pack"
    scratch   bytes of scratch memory that each thread brings, aligned to 64
    states    the components of the states of all reductions, one after the other
    """

    ir: str
    packed: int
    scratch: int
    states: tuple[Stored, ...]


def kernel_text(
    program: Program, parts: Sequence[Part], dtype: str, layout: Layout, scalef: bool, flushes: bool
) -> Text:
    """The text of the kernel for the reductions of one program and layout.

    scalef, flushes   what the machine can do, see `native`
    """
    powers = any(instr.prim in (Prim.EXP, Prim.EXP2) for instr in program.code)
    flush = flushes and (powers or any(part.rule.calm for part in parts))
    shape = Shape(layout.lanes, SCALARS[dtype], scalef, flush)
    main = _Main(program, parts, shape, layout)
    main.build()
    functions: list[_Kernel] = [main]
    packed = column_values(program, J)
    if packed:
        pack = _Pack(program, packed, shape)
        pack.build()
        functions.append(pack)
    declarations = sorted(set().union(*(f.fn.declarations for f in functions)))
    ir = "\n".join([*declarations, *(f.fn.text() for f in functions), ""])
    states = tuple(
        Stored(dtype, repeat, x)
        for s in main.states
        for dtype, repeat, x in zip(s.dtypes, s.repeats, s.identity, strict=True)
    )
    return Text(ir, len(packed), max(f.scratch for f in functions), states)


class _Kernel(Emitter, ABC):
    """What both kernels share: the task loop, base pointers, the transposed rows of a task."""

    def __init__(self, name: str, program: Program, shape: Shape, lane: str, rows: int) -> None:
        super().__init__(Function(name, PARAMETERS), program, shape, lane, rows)
        self.scratch = 0
        self.task = ""
        self.spans = ("", "")

    def build(self) -> None:
        fn = self.fn
        head, body, done = fn.label("next"), fn.label("task"), fn.label("leave")
        self._reserve()
        restore = self._flush_tiny() if self.shape.flush else None
        fn.jump(head)
        fn.at(head)
        self.task = fn.let("atomicrmw add ptr %counter, i64 1 monotonic")
        fn.branch(fn.let(f"icmp slt i64 {self.task}, %end"), body, done)
        fn.at(body)
        with self.frame():
            self._open_task()
            self.level(frozenset())
            self.level(frozenset({self.lane}))
            self.run_task()
        fn.jump(head)
        fn.at(done)
        if restore:
            restore()

    def _flush_tiny(self) -> Callable[[], None]:
        """Count results too small for a normal number as zero; gives what ends that.

        Far pairs of a Gaussian are such numbers, and every operation on one can take an Intel CPU over a hundred
        cycles: sums became thirty times slower as kernels became narrow.
        """
        fn = self.fn
        kept, own = fn.let("alloca i32, align 4"), fn.let("alloca i32, align 4")
        fn.run("llvm.x86.sse.stmxcsr", ("ptr", kept))
        word = fn.let(f"or i32 {fn.let(f'load i32, ptr {kept}, align 4')}, {FLUSH_TO_ZERO}")
        fn.do(f"store i32 {word}, ptr {own}, align 4")
        fn.run("llvm.x86.sse.ldmxcsr", ("ptr", own))
        return lambda: fn.run("llvm.x86.sse.ldmxcsr", ("ptr", kept))

    @abstractmethod
    def run_task(self) -> None:
        """Emit what is done with the rows of a task."""

    def region(self, vectors: int, bytes_each: int) -> str:
        """A piece of the thread's scratch memory."""
        made = self.fn.let(f"getelementptr i8, ptr %scratch, i64 {self.scratch}", "r")
        self.scratch += -(-vectors * bytes_each // 64) * 64
        return made

    @property
    def vector_bytes(self) -> int:
        return self.shape.lanes * self.shape.bits // 8

    def _rowed(self) -> list[int]:
        category = {I: 0, J: 1}[self.lane]
        return [s for s, v in enumerate(self.program.slots) if v.params[2] == category]

    def _reserve(self) -> None:
        for slot in self._rowed():
            self.tiles[slot] = self.region(self.dims[slot] * self.rows, self.vector_bytes)

    def _field(self, base: str, row: str, width: int, column: int) -> str:
        place = self.fn.let(f"mul i64 {row}, {width}")
        pointer = self.fn.let(f"getelementptr i64, ptr {base}, i64 {place}")
        pointer = self.fn.let(f"getelementptr i64, ptr {pointer}, i64 {column}")
        return self.fn.let(f"load i64, ptr {pointer}, align 8")

    def _open_task(self) -> None:
        batch, first, end, *spans = (self._field("%tasks", self.task, 5, f) for f in range(5))
        self.spans = (spans[0], spans[1])
        slots = len(self.dims) + len(self.packed)
        self.bases = []
        for slot in range(slots):
            pointer = self.fn.let(f"getelementptr ptr, ptr %slots, i64 {slot}")
            base = self.fn.let(f"load ptr, ptr {pointer}, align 8")
            offset = self._field("%offsets", batch, slots, slot)
            self.bases.append(self.fn.let(f"getelementptr {self.shape.scalar}, ptr {base}, i64 {offset}"))
        self.first = first
        last = self.fn.let(f"sub i64 {end}, 1")
        for slot in self._rowed():
            self._transpose(slot, first, last)

    def _transpose(self, slot: int, first: str, last: str) -> None:
        """Copy the rows first … of a task to [component][row], the last one repeated to fill up."""
        fn, shape, lanes = self.fn, self.shape, self.shape.lanes
        dim, wide = self.dims[slot], f"<{self.shape.lanes} x i32>"
        start = fn.let(f"mul i64 {first}, {dim}")
        source = fn.let(f"getelementptr {shape.scalar}, ptr {self.bases[slot]}, i64 {start}")
        # How many rows there are, at most those of the task: then it fits 32 bits, whatever the arrays hold.
        most = fn.let(f"sub i64 {last}, {first}")
        short = fn.let(f"icmp slt i64 {most}, {self.rows * lanes}")
        most = fn.let(f"select i1 {short}, i64 {most}, i64 {self.rows * lanes}")
        limit = self.vec.splat(fn.let(f"trunc i64 {most} to i32"), "i32")
        places = []
        for u in range(self.rows):
            rows = "<" + ", ".join(f"i32 {u * lanes + lane}" for lane in range(lanes)) + ">"
            inside = fn.let(f"icmp slt {wide} {rows}, {limit}")
            row = fn.let(f"select {shape.m} {inside}, {wide} {rows}, {wide} {limit}")
            places.append(fn.let(f"mul {wide} {row}, splat (i32 {dim})"))

        def each_component(k: str, _: list[str]) -> list[str]:
            at = fn.let(f"getelementptr {shape.scalar}, ptr {source}, i64 {k}")
            target = fn.let(f"mul i64 {k}, {self.rows}")
            for u, place in enumerate(places):
                addresses = fn.let(f"getelementptr {shape.scalar}, ptr {at}, {wide} {place}")
                value = self.gathered(addresses)
                vector = fn.let(f"add i64 {target}, {u}")
                pointer = fn.let(f"getelementptr {shape.f}, ptr {self.tiles[slot]}, i64 {vector}")
                fn.do(f"store {shape.f} {value}, ptr {pointer}, align {self.vector_bytes}")
            return []

        fn.loop("0", str(dim), 1, [], each_component)

    def store(self, component: int, u: int, value: str, kind: str, repeat: str) -> None:
        """Write a full vector of one state component of this task."""
        fn = self.fn
        base = fn.let(f"load ptr, ptr {fn.let(f'getelementptr ptr, ptr %out, i64 {component}')}, align 8")
        task = fn.let(f"add i64 {fn.let(f'mul i64 {repeat}, %tasks_all')}, {self.task}")
        place = fn.let(f"add i64 {fn.let(f'mul i64 {task}, {self.rows}')}, {u}")
        fn.do(
            f"store {kind} {value}, ptr {fn.let(f'getelementptr {kind}, ptr {base}, i64 {place}')}, align 4"
        )


class _Pack(_Kernel):
    """Computes what depends on a column alone."""

    def __init__(self, program: Program, values: list[int], shape: Shape) -> None:
        super().__init__("pack", program, shape, J, 1)
        self._values = values

    def level(self, scope: Scope) -> None:
        # Only what the packed values need; the rest of the program is the other kernel's.
        if scope:
            for n in self._values:
                self.get(n)

    def _open_task(self) -> None:
        # The offsets table also has a column for each packed slot, which this kernel fills.
        self.packed = dict.fromkeys(self._values, 0)
        super()._open_task()
        self.packed = {}

    def run_task(self) -> None:
        for c, n in enumerate(self._values):
            self.store(c, 0, self.get(n).name, self.shape.f, "0")


Block = Callable[[str, int, list[str]], list[str]]
"""Emits a block: the first column, how many, what is carried; gives what is carried on."""


class _Main(_Kernel):
    """The pair loop: the loops over spans, tiles and columns, and one `State` per reduction."""

    def __init__(self, program: Program, parts: Sequence[Part], shape: Shape, layout: Layout) -> None:
        super().__init__("main", program, shape, I, layout.rows)
        self.layout = layout
        self.packed = {n: len(self.dims) + c for c, n in enumerate(column_values(program, J))}
        self.states: list[State] = []
        for part, terms in zip(parts, program.terms, strict=True):
            first = sum(len(s.kinds) for s in self.states)
            self.states.append(_kind(program, terms, part.rule)(self, part.rule, part.k, terms, first))

    def _reserve(self) -> None:
        super()._reserve()
        for state in self.states:
            state.reserve()

    def run_task(self) -> None:
        for state in self.states:
            state.begin_task()
        tiled = any(s.compensated for s in self.states)
        lasting = [s.fresh() if not s.compensated else [] for s in self.states]

        def each_span(span: str, carried: list[str]) -> Sequence[str]:
            first, end = self._field("%spans", span, 2, 0), self.span_end(span)
            state = _typed(flat, carried)
            if not tiled:
                return self._strips(first, end, state)
            return self.fn.loop(
                first,
                end,
                self.layout.slab,
                state,
                lambda at, names: self._slab(at, end, _typed(flat, names)),
            )

        flat = [pair for pairs in lasting for pair in pairs]
        carried = self.fn.loop(self.spans[0], self.spans[1], 1, flat, each_span)
        for state, pairs in zip(self.states, lasting, strict=True):
            own, carried = carried[: len(pairs)], carried[len(pairs) :]
            state.leave(own)

    def _slab(self, first: str, end: str, lasting: list[tuple[str, str]]) -> Sequence[str]:
        """A slab of columns: the sums of its tiles are added up in the data dtype, then go into the float64 totals."""
        if self.layout.slab == self.layout.tile:
            return self._tile(first, end, lasting)
        stop = self._stop(first, self.layout.slab, end)
        for state in self.states:
            if state.two_level:
                state.begin_slab()
        values = self.fn.loop(
            first,
            stop,
            self.layout.tile,
            lasting,
            lambda at, names: self._tile(at, stop, _typed(lasting, names)),
        )
        for state in self.states:
            if state.two_level:
                state.end_slab()
        return values

    def _in_order(self) -> list[State]:
        """The states as what they carry lies: first those that last from tile to tile."""
        return sorted(self.states, key=lambda s: s.compensated)

    def span_end(self, span: str) -> str:
        return self._field("%spans", span, 2, 1)

    def _stop(self, first: str, width: int, end: str) -> str:
        """Where a piece of so many columns ends."""
        after = self.fn.let(f"add i64 {first}, {width}")
        short = self.fn.let(f"icmp slt i64 {after}, {end}")
        return self.fn.let(f"select i1 {short}, i64 {after}, i64 {end}")

    def _tile(self, first: str, end: str, lasting: list[tuple[str, str]]) -> Sequence[str]:
        """A tile of columns: sums are made in the data dtype and then merged into what is above them."""
        stop = self._stop(first, self.layout.tile, end)
        partial = []
        for state in self.states:
            if state.compensated:
                state.begin_tile()
                partial += state.fresh()
        values = self._strips(first, stop, lasting + partial)
        sums = values[len(lasting) :]
        for state in self.states:
            if state.compensated:
                count = len(state.fresh())
                state.flush(sums[:count])
                sums = sums[count:]
        return values[: len(lasting)]

    def _strips(self, first: str, end: str, state: list[tuple[str, str]]) -> list[str]:
        """All pairs of the rows at hand with the columns first … end - 1, for long terms strip by strip."""
        if not self.layout.strip:
            return self.blocks(first, end, self.layout.columns, state, self._block)

        def each(at: str, names: list[str]) -> list[str]:
            stop = self._stop(at, self.layout.strip, end)
            for s in self.states:
                s.begin_strip(at)
            values = self.blocks(at, stop, self.layout.columns, _typed(state, names), self._block)
            after: list[str] = []
            for s in self._in_order():
                own = slice(len(after), len(after) + len(s.fresh()))
                after += s.end_strip(at, stop, names[own], values[own])
            return after

        return self.fn.loop(first, end, self.layout.strip, state, each)

    def blocks(
        self, first: str, end: str, width: int, state: list[tuple[str, str]], block: Block
    ) -> list[str]:
        """A block for the columns first … end - 1, so many at a time and what is left one by one."""
        fn = self.fn
        if width > 1:
            count = fn.let(f"sdiv i64 {fn.let(f'sub i64 {end}, {first}')}, {width}")
            middle = fn.let(f"add i64 {first}, {fn.let(f'mul i64 {count}, {width}')}")
            values = fn.loop(first, middle, width, state, lambda j, s: block(j, width, s))
            state, first = _typed(state, values), middle
        return fn.loop(first, end, 1, state, lambda j, s: block(j, 1, s))

    def _block(self, column: str, width: int, carried: list[str]) -> list[str]:
        """One block of columns for every reduction. What is carried: first the lasting states, then the partial."""
        new: list[str] = []
        with self.block_of(column, width):
            # Terms first: nothing that a guarded update computes may be found again outside it.
            for state in self.states:
                state.prepare(width)
            for state in self._in_order():
                count = len(state.fresh())
                new += state.accumulate(carried[:count], width)
                carried = carried[count:]
        return new


def _kind(program: Program, terms: Terms, rule: Reduction) -> type[State]:
    if terms.long:
        return LongState
    if is_lazy(program, terms, rule):
        return LazyState
    return ShiftedState if rises_late(terms, rule) else State


def _typed(pairs: Sequence[tuple[str, str]], values: Sequence[str]) -> list[tuple[str, str]]:
    return [(kind, value) for (kind, _), value in zip(pairs, values, strict=True)]
