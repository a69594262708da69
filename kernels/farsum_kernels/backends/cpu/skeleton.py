"""The one kernel of the CPU backend, steered by a layout.

A kernel is called by several threads at once. Each pulls task numbers from a shared counter until the
end of the slice; raising the counter past the end stops them all. A task is up to `rows` vectors of
rows, reduced over a list of spans of columns:

    tasks   i64[task][5]   batch, first row, end row, first span, end span
    spans   i64[span][2]   first column, end column

Dense work has one span; block-sparse ranges, masks and radius searches are longer lists of them. What
a task leaves behind is a state of the reduction, component by component, in full vectors at
out[component][repeat][task·rows …]; nothing is masked, since the last rows of a task are repeated instead.

The same text with J in the lanes and no columns computes what depends on a column alone, once per
launch (`pack`), so that the pair loop finds it ready made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from farsum_kernels.backends.cpu.emit import Emitter, column_values, run_rule
from farsum_kernels.backends.cpu.text import Function
from farsum_kernels.backends.cpu.vector import LARGEST, Shape, Value, Vec
from farsum_kernels.formula.lower import Program
from farsum_kernels.formula.reductions import Kind, Reduction
from farsum_kernels.plan import Layout
from farsum_kernels.scalar.ir import I, J, Loop, Scope, Val, number

PARAMETERS = (
    "ptr noalias %slots, ptr noalias %offsets, ptr noalias %tasks, ptr noalias %spans, "
    "ptr noalias %out, ptr %counter, i64 %end, i64 %tasks_all, ptr noalias %scratch"
)
SCALARS = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Text:
    """The kernel as LLVM IR, and what a caller must provide for it.

    packed    the column-level values, one extra slot each, computed by the function "pack"
    scratch   bytes of scratch memory that each thread brings, aligned to 64
    state     the dtype of each state component, as stored, and how many vectors deep it is
    identity  the value of each state component where nothing was reduced
    """

    ir: str
    packed: int
    scratch: int
    state: tuple[tuple[str, int], ...]
    identity: tuple[float, ...]


def kernel_text(program: Program, rule: Reduction, k: int, dtype: str, layout: Layout, scalef: bool) -> Text:
    """The text of the kernel for one program, reduction and layout."""
    shape = Shape(layout.lanes, SCALARS[dtype], scalef)
    main = _Main(program, rule, k, shape, layout)
    main.build()
    functions: list[_Kernel] = [main]
    packed = column_values(program, J)
    if packed:
        pack = _Pack(program, packed, shape)
        pack.build()
        functions.append(pack)
    declarations = sorted(set().union(*(f.fn.declarations for f in functions)))
    ir = "\n".join([*declarations, *(f.fn.text() for f in functions), ""])
    return Text(ir, len(packed), max(f.scratch for f in functions), main.stored, main.identity)


class _Kernel(Emitter):
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

    def run_task(self) -> None:
        raise NotImplementedError

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
        fn, scalar, size = self.fn, self.shape.scalar, self.shape.bits // 8
        dim, width = self.dims[slot], self.rows * self.shape.lanes

        def each_row(r: str, _: list[str]) -> list[str]:
            row = fn.let(f"add i64 {first}, {r}")
            inside = fn.let(f"icmp slt i64 {row}, {last}")
            row = fn.let(f"select i1 {inside}, i64 {row}, i64 {last}")
            source = fn.let(
                f"getelementptr {scalar}, ptr {self.bases[slot]}, i64 {fn.let(f'mul i64 {row}, {dim}')}"
            )
            target = fn.let(f"getelementptr {scalar}, ptr {self.tiles[slot]}, i64 {r}")

            def each_component(k: str, _: list[str]) -> list[str]:
                value = fn.let(
                    f"load {scalar}, ptr {fn.let(f'getelementptr {scalar}, ptr {source}, i64 {k}')}, align {size}"
                )
                place = fn.let(f"mul i64 {k}, {width}")
                fn.do(
                    f"store {scalar} {value}, ptr {fn.let(f'getelementptr {scalar}, ptr {target}, i64 {place}')}, align {size}"
                )
                return []

            fn.loop("0", str(dim), 1, [], each_component)
            return []

        fn.loop("0", str(width), 1, [], each_row)

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


class _Main(_Kernel):
    """The pair loop. `repeat` is set when a state component is an array in memory: a list, or a loop over F."""

    def __init__(self, program: Program, rule: Reduction, k: int, shape: Shape, layout: Layout) -> None:
        super().__init__("main", program, shape, I, layout.rows)
        self.rule = rule
        self.layout = layout
        self.packed = {n: len(self.dims) + c for c, n in enumerate(column_values(program, J))}
        self.listed = k if rule.listed else 0
        # With a loop over the components of F, the rules see one component at a time.
        self.dim = 1 if program.loop else program.dim
        self.kinds = rule.state(self.dim, len(program.weight))
        self.repeat = (program.dim if program.loop else 1) * (self.listed or 1)
        self.in_memory = self.repeat > 1 or bool(program.loop) or rule.listed
        self.compensated = Kind.WIDE in self.kinds
        double = shape.scalar == "double"
        self.wide = Vec(self.fn, Shape(shape.lanes, "double", shape.scalef and double))
        # A float64 total of float64 sums is no wider than they are: a second word carries its error.
        self.carried = self.compensated and rule.additive and double
        dtypes = {
            Kind.VALUE: "float64" if double else "float32",
            Kind.WIDE: "float64",
            Kind.INDEX: "int64" if double else "int32",
        }
        self.stored = tuple((dtypes[kind], self.repeat) for kind in self.kinds)
        imms = rule.identity(self.dim, len(program.weight))
        self.identity = tuple(
            number(x if isinstance(x, str) else repr(x), LARGEST[shape.scalar]) for x in imms
        )
        self._memory: list[str] = []  # partial states, when they are in memory
        self._totals: list[str] = []  # compensated totals: one region per component, two if carried

    # ── the shape of a state ──────────────────────────────────────────────────────────────────────

    def _type(self, kind: Kind, vec: Vec | None = None) -> str:
        shape = (vec or self.vec).shape
        return shape.i if kind is Kind.INDEX else shape.f

    def _value(self, name: str, kind: Kind) -> Value:
        return Value(name, "i" if kind is Kind.INDEX else "f")

    def _identity(self, vec: Vec) -> list[Value]:
        return [
            Value("zeroinitializer", "i") if kind is Kind.INDEX else Value(vec.shape.number(x), "f")
            for x, kind in zip(self.identity, self.kinds, strict=True)
        ]

    def _fresh(self) -> list[tuple[str, str]]:
        """The identity for each row vector, as carried (type, value) pairs; none if states are in memory."""
        if self.in_memory:
            return []
        one = [(self._type(k), v.name) for k, v in zip(self.kinds, self._identity(self.vec), strict=True)]
        return one * self.rows

    def _slot(self, region: str, place: str, u: int, kind: str) -> str:
        """The address of vector `place` of row vector u in a region."""
        at = self.fn.let(f"mul i64 {place}, {self.rows}")
        at = self.fn.let(f"add i64 {at}, {u}")
        return self.fn.let(f"getelementptr {kind}, ptr {region}, i64 {at}")

    def _read(self, region: str, place: str, u: int, kind: str) -> str:
        return self.fn.let(f"load {kind}, ptr {self._slot(region, place, u, kind)}, align 64")

    def _write(self, region: str, place: str, u: int, kind: str, value: str) -> None:
        self.fn.do(f"store {kind} {value}, ptr {self._slot(region, place, u, kind)}, align 64")

    def _fill(self, regions: Sequence[str], vec: Vec, values: Sequence[Value]) -> None:
        """Set every vector of the regions to the identity."""

        def each(place: str, _: list[str]) -> list[str]:
            for region, kind, value in zip(regions, self.kinds, values, strict=False):
                for u in range(self.rows):
                    self._write(region, place, u, self._type(kind, vec), value.name)
            return []

        self.fn.loop("0", str(self.repeat), 1, [], each)

    # ── the loops ─────────────────────────────────────────────────────────────────────────────────

    def _reserve(self) -> None:
        super()._reserve()
        if self.in_memory:
            self._memory = [self.region(self.repeat * self.rows, self.vector_bytes) for _ in self.kinds]
        if self.compensated:
            words = len(self.kinds) * (2 if self.carried else 1)
            each = self.shape.lanes * 8
            self._totals = [self.region(self.repeat * self.rows, each) for _ in range(words)]

    def run_task(self) -> None:
        if self.compensated:
            self._fill(self._totals, self.wide, self._identity(self.wide))
            if self.carried:
                zeros = [Value("zeroinitializer", "f")] * len(self.kinds)
                self._fill(self._totals[len(self.kinds) :], self.wide, zeros)
        elif self.in_memory:
            self._fill(self._memory, self.vec, self._identity(self.vec))
        carried = [] if self.compensated else self._fresh()
        types = [t for t, _ in carried]

        def each_span(span: str, state: list[str]) -> Sequence[str]:
            first, end = self._field("%spans", span, 2, 0), self._field("%spans", span, 2, 1)
            if not self.compensated:
                return self._columns(first, end, list(zip(types, state, strict=True)))
            self.fn.loop(first, end, self.layout.tile, [], lambda at, _: self._tile(at, end))
            return []

        self._leave(self.fn.loop(self.spans[0], self.spans[1], 1, carried, each_span))

    def _tile(self, first: str, end: str) -> Sequence[str]:
        """A tile of columns, summed in the data dtype and then merged into the float64 totals."""
        after = self.fn.let(f"add i64 {first}, {self.layout.tile}")
        short = self.fn.let(f"icmp slt i64 {after}, {end}")
        stop = self.fn.let(f"select i1 {short}, i64 {after}, i64 {end}")
        if self.in_memory:
            self._fill(self._memory, self.vec, self._identity(self.vec))
        self._flush(self._columns(first, stop, self._fresh()))
        return []

    def _columns(self, first: str, end: str, state: list[tuple[str, str]]) -> list[str]:
        """All pairs of the rows at hand with the columns first … end - 1: in blocks, then one by one."""
        fn, width = self.fn, self.layout.columns
        types = [t for t, _ in state]
        if width > 1:
            blocks = fn.let(f"sdiv i64 {fn.let(f'sub i64 {end}, {first}')}, {width}")
            middle = fn.let(f"add i64 {first}, {fn.let(f'mul i64 {blocks}, {width}')}")
            values = fn.loop(first, middle, width, state, lambda j, s: self._block(j, width, s))
            state, first = list(zip(types, values, strict=True)), middle
        return fn.loop(first, end, 1, state, lambda j, s: self._block(j, 1, s))

    def _block(self, column: str, width: int, state: list[str]) -> list[str]:
        with self.block_of(column, width):
            if self.program.loop:
                self._each_component(self.program.loop)
                return state
            terms = [[self._term(u, q) for q in range(width)] for u in range(self.rows)]
            if self.rule.listed:
                for u in range(self.rows):
                    for c in range(self.dim):
                        self._push(u, "0", c, [[t[c]] for t in terms[u]])
                return state
            count = len(self.kinds)
            new: list[str] = []
            for u in range(self.rows):
                new += self._accumulate(state[u * count : (u + 1) * count], terms[u])
            return new

    def _term(self, u: int, q: int) -> list[Value]:
        return [self.get(n, u, q) for n in (*self.program.value, *self.program.weight)]

    def _each_component(self, loop: Loop) -> None:
        """The components of F one after the other, their states in memory."""
        for n in (*self.program.value, *self.program.weight):
            self.hoist(n)

        def step(k: str, _: list[str]) -> list[str]:
            with self.frame(loop, k):
                terms = [[self._term(u, q) for q in range(self.columns)] for u in range(self.rows)]
                for u in range(self.rows):
                    if self.rule.listed:
                        self._push(u, self.fn.let(f"mul i64 {k}, {self.listed}"), 0, terms[u])
                        continue
                    types = [self._type(kind) for kind in self.kinds]
                    pairs = list(zip(self._memory, types, strict=True))
                    old = [self._read(region, k, u, t) for region, t in pairs]
                    for (region, t), value in zip(pairs, self._accumulate(old, terms[u]), strict=True):
                        self._write(region, k, u, t, value)
            return []

        self.fn.loop("0", str(loop.extent), 1, [], step)

    # ── the rules ─────────────────────────────────────────────────────────────────────────────────

    def _places(self, count: int) -> list[Value]:
        """The columns at hand as index vectors."""
        made = []
        for q in range(count):
            at = self.column if q == 0 else self.fn.let(f"add i64 {self.column}, {q}")
            if self.shape.integer != "i64":
                at = self.fn.let(f"trunc i64 {at} to {self.shape.integer}")
            made.append(Value(self.vec.splat(at, self.shape.integer), "i"))
        return made

    def _accumulate(self, state: Sequence[str], terms: list[list[Value]]) -> list[str]:
        """The state after a block of terms; skipped where the rule's gate says that nothing can change."""
        values = [self._value(s, kind) for s, kind in zip(state, self.kinds, strict=True)]

        def update() -> list[str]:
            places = self._places(len(terms)) if Kind.INDEX in self.kinds else []
            args = values + [v for t in terms for v in t] + places
            return [v.name for v in run_rule(self.vec, args, self._accumulation(len(terms), len(terms[0])))]

        if not self.rule.gate:
            return update()
        typed = [(self._type(kind), s) for kind, s in zip(self.kinds, state, strict=True)]
        return self.fn.when(self._passes(values, terms), typed, update)

    def _accumulation(self, count: int, width: int) -> Callable[[list[Val]], Sequence[Val]]:
        """`accumulate` on one flat list: the state, the terms, the places."""
        states = len(self.kinds)

        def rule(args: list[Val]) -> Sequence[Val]:
            state, rest = tuple(args[:states]), args[states:]
            terms = [tuple(rest[q * width : (q + 1) * width]) for q in range(count)]
            places = rest[count * width :] or [rest[0]] * count  # unread by rules without an index
            return self.rule.accumulate(state, terms, places)

        return rule

    def _passes(self, state: Sequence[Value], terms: list[list[Value]]) -> str:
        """Can any lane of the state change by any of the terms?"""
        gate, states, width = self.rule.gate, len(state), len(terms[0])
        assert gate

        def rule(args: list[Val]) -> Sequence[Val]:
            rest = args[states:]
            return [
                gate(
                    tuple(args[:states]),
                    [tuple(rest[q * width : (q + 1) * width]) for q in range(len(terms))],
                )
            ]

        (mask,) = run_rule(self.vec, [*state, *(v for t in terms for v in t)], rule)
        return self.vec.any(mask.name)

    def _push(self, u: int, base: str, c: int, terms: list[list[Value]]) -> None:
        """Insert terms into the ordered lists of component c of row vector u, where they are good enough."""
        fn, step = self.fn, self.rule.step
        assert step
        f, i = self.shape.f, self.shape.i
        values, places = self._memory[c], self._memory[self.dim + c]
        end = fn.let(f"add i64 {base}, {self.listed - 1}")

        def worst() -> list[Value]:
            return [Value(self._read(values, end, u, f), "f"), Value(self._read(places, end, u, i), "i")]

        def insert(x: Value, j: Value) -> Sequence[str]:
            def each(slot: str, carry: list[str]) -> Sequence[str]:
                at = fn.let(f"add i64 {base}, {slot}")
                args = [
                    Value(self._read(values, at, u, f), "f"), Value(self._read(places, at, u, i), "i"),
                    Value(carry[0], "f"), Value(carry[1], "i"),
                ]  # fmt: skip
                kept, where, out, place = run_rule(self.vec, args, lambda a: step(*a))
                self._write(values, at, u, f, kept.name)
                self._write(places, at, u, i, where.name)
                return [out.name, place.name]

            fn.loop("0", str(self.listed), 1, [(f, x.name), (i, j.name)], each)
            return []

        def insert_all() -> Sequence[str]:
            for (x,), j in zip(terms, self._places(len(terms)), strict=True):
                fn.when(self._passes(worst(), [[x]]), [], lambda x=x, j=j: insert(x, j))  # type: ignore[misc]
            return []

        fn.when(self._passes(worst(), terms), [], insert_all)

    # ── the end of a tile, the end of a task ──────────────────────────────────────────────────────

    def _flush(self, state: Sequence[str]) -> None:
        """Merge the partial states of a tile into the totals."""
        count = len(self.kinds)

        def merge(place: str, u: int, tile: Sequence[str]) -> None:
            totals = [Value(self._read(t, place, u, self.wide.f), "f") for t in self._totals[:count]]
            parts = [Value(self._widened(name), "f") for name in tile]
            if self.carried:
                for c, (total, part) in enumerate(zip(totals, parts, strict=True)):
                    self._two_sum(place, u, c, total.name, part.name)
                return
            merged = run_rule(
                self.wide, totals + parts, lambda a: self.rule.merge(tuple(a[:count]), tuple(a[count:]))
            )
            for region, value in zip(self._totals, merged, strict=True):
                self._write(region, place, u, self.wide.f, value.name)

        if not self.in_memory:
            for u in range(self.rows):
                merge("0", u, state[u * count : (u + 1) * count])
            return

        def each(place: str, _: list[str]) -> list[str]:
            for u in range(self.rows):
                merge(place, u, [self._read(m, place, u, self.shape.f) for m in self._memory])
            return []

        self.fn.loop("0", str(self.repeat), 1, [], each)

    def _widened(self, name: str) -> str:
        if self.shape.scalar == "double":
            return name
        return self.fn.let(f"fpext {self.shape.f} {name} to {self.wide.f}")

    def _two_sum(self, place: str, u: int, c: int, total: str, part: str) -> None:
        # Knuth's two-sum: `error` is exactly what the rounded sum lost. No `contract` here.
        fn, f = self.fn, self.wide.f
        carry = self._totals[len(self.kinds) + c]
        high = fn.let(f"fadd {f} {total}, {part}")
        back = fn.let(f"fsub {f} {high}, {total}")
        lost = fn.let(f"fsub {f} {total}, {fn.let(f'fsub {f} {high}, {back}')}")
        error = fn.let(f"fadd {f} {lost}, {fn.let(f'fsub {f} {part}, {back}')}")
        # An infinite or NaN sum has no error to speak of.
        finite = fn.let(f"fcmp ord {f} {error}, zeroinitializer")
        error = fn.let(f"select <{self.wide.shape.lanes} x i1> {finite}, {f} {error}, {f} zeroinitializer")
        low = fn.let(f"fadd {f} {self._read(carry, place, u, f)}, {error}")
        self._write(self._totals[c], place, u, f, high)
        self._write(carry, place, u, f, low)

    def _leave(self, state: Sequence[str]) -> None:
        """Write the states of the task out, one row of `out` per repeat."""
        count = len(self.kinds)

        def finished(place: str, c: int, u: int) -> str:
            kind = self.kinds[c]
            if not self.compensated:
                if self.in_memory:
                    return self._read(self._memory[c], place, u, self._type(kind))
                return state[u * count + c]
            total = self._read(self._totals[c], place, u, self.wide.f)
            if self.carried:
                carry = self._read(self._totals[count + c], place, u, self.wide.f)
                total = self.fn.let(f"fadd {self.wide.f} {total}, {carry}")
            if self.rule.additive and (factor := self.program.factor[c]) is not None:
                total = self.wide.binary("fmul", total, self._widened(self.get(factor, u).name))
            if kind is Kind.VALUE and self.shape.scalar == "float":
                return self.fn.let(f"fptrunc {self.wide.f} {total} to {self.shape.f}")
            return total

        def each(place: str, _: list[str]) -> list[str]:
            for c, kind in enumerate(self.kinds):
                vec = self.wide if kind is Kind.WIDE else self.vec
                for u in range(self.rows):
                    self.store(c, u, finished(place, c, u), self._type(kind, vec), place)
            return []

        self.fn.loop("0", str(self.repeat), 1, [], each)
