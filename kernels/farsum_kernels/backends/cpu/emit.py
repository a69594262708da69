"""Scalar code to vector code: each value where its scope says, once.

Rows ride in SIMD lanes; columns are broadcast. A value is emitted in the outermost frame in which all
that it depends on is known, and found again from every frame inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial

from farsum_kernels.backends.cpu.text import Function
from farsum_kernels.backends.cpu.vector import LARGEST, LLVM, Shape, Value, Vec
from farsum_kernels.backends.fusion import fused_products
from farsum_kernels.formula.lower import Program
from farsum_kernels.scalar.indices import Affine, Loop, Part
from farsum_kernels.scalar.ir import LEAVES, MASKS, Block, Fold, Instr, Prim, Scope, Val, fold, number

Key = tuple[int, int, int]  # instruction, vector of rows, column
DIMENSION_UNROLL = 2  # steps of a dimension loop that are written out
PIECE = 32  # steps of a dimension loop whose sum is made on its own


def run_rule(vec: Vec, args: Sequence[Value], rule: Callable[[list[Val]], Sequence[Val]]) -> list[Value]:
    """Emit a rule of the scalar IR on values at hand."""
    block = Block(spoken=LLVM)
    outputs = rule([block.arg(n) for n in range(len(args))])
    scalar = vec.shape.scalar

    def leaf(instr: Instr) -> Value:
        if instr.prim is Prim.ARG:
            place: int = instr.imm
            return args[place]
        return Value(vec.shape.number(number(instr.imm, LARGEST[scalar])), "f")

    table = {prim: partial(say, vec) for prim, say in LLVM.items()}
    values = fold(block.code, table, leaf)
    return [values[v.index] for v in outputs]


@dataclass
class Frame:
    """A place in the text from which values are visible: those emitted in it and around it."""

    loops: dict[Loop, str] = field(default_factory=dict)
    values: dict[Key, Value] = field(default_factory=dict)
    pointers: dict[tuple[int, int], str] = field(default_factory=dict)


class Emitter:
    """Emits the values of a program into a function.

    lane      the symbol whose rows ride in the lanes
    rows      how many vectors of rows; `columns` at a time are set by `block_of`
    """

    def __init__(self, fn: Function, program: Program, shape: Shape, lane: str, rows: int) -> None:
        self.fn = fn
        self.program = program
        self.shape = shape
        self.vec = Vec(fn, shape)
        self.lane = lane
        self.rows = rows
        self.columns = 0
        self._columns_in_lanes = ""
        self.column = ""  # the first column at hand
        self.first = ""  # the first row of the task
        self.bases: list[str] = []  # pointer to the first row of each slot
        self.tiles: dict[int, str] = {}  # slot -> its rows, transposed to [component][row]
        self.packed: dict[int, int] = {}  # column-level value -> slot that holds it ready made
        self.dims = [v.params[1] for v in program.slots]
        self._frames = [Frame()]
        self._table = {prim: partial(say, self.vec) for prim, say in LLVM.items()}

    # ── frames ────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def frame(self, loop: Loop | None = None, counter: str = "") -> Iterator[None]:
        self._frames.append(Frame({loop: counter} if loop else {}))
        yield
        self._frames.pop()

    @contextmanager
    def block_of(self, column: str, columns: int) -> Iterator[None]:
        """The columns column … column + columns - 1 are at hand."""
        with self.frame():
            self.column, self.columns = column, columns
            yield
            self.column, self.columns = "", 0

    @contextmanager
    def columns_in_lanes(self, columns: str) -> Iterator[None]:
        """One pair per lane is at hand: the row of the lane, and a column of its own, from a vector of i64."""
        with self.frame():
            self._columns_in_lanes, self.columns = columns, 1
            yield
            self._columns_in_lanes, self.columns = "", 0

    def _found(self, key: Key) -> Value | None:
        for frame in reversed(self._frames):
            if key in frame.values:
                return frame.values[key]
        return None

    def _scope(self, n: int) -> Scope:
        return self.program.scopes[n]

    def _is_column(self, n: int) -> bool:
        return any(not isinstance(s, Loop) and s != self.lane for s in self._scope(n))

    def _key(self, n: int, u: int, q: int) -> Key:
        return n, u if self.lane in self._scope(n) else 0, q if self._is_column(n) else 0

    def _combos(self, n: int) -> list[tuple[int, int]]:
        us = range(self.rows) if self.lane in self._scope(n) else [0]
        qs = range(self.columns) if self._is_column(n) else [0]
        return [(u, q) for q in qs for u in us]

    # ── values ────────────────────────────────────────────────────────────────────────────────────

    def get(self, n: int, u: int = 0, q: int = 0) -> Value:
        """Value n of the program for row vector u and column q, emitted now if it is not at hand."""
        key = self._key(n, u, q)
        if found := self._found(key):
            return found
        instr = self.program.code[n]
        if n in self.packed:
            made = self._load_column(self.packed[n], Affine(0), q)
        elif instr.prim is Prim.LOAD:
            made = self._load(n, u, q)
        elif instr.prim is Prim.CONST:
            made = Value(self.shape.number(number(instr.imm, LARGEST[self.shape.scalar])), "f")
        elif instr.prim is Prim.ROW:
            made = self._row_number(n, u, q)
        elif instr.prim is Prim.INDEX:
            made = self._whole(self._index(instr.imm))
        elif instr.prim is Prim.FOLD:
            self._folds(instr.imm, n)
            made = self._found(key)  # type: ignore[assignment]
            assert made
            return made
        elif product := self._products.get(n):
            made = self._fused(instr, product, u, q)
        else:
            made = self._table[instr.prim](*(self.get(a, u, q) for a in instr.args))
        self._frames[-1].values[key] = made
        return made

    def know(self, n: int, u: int, q: int, value: Value) -> None:
        """Value n is at hand already, in the frame that is open."""
        self._frames[-1].values[self._key(n, u, q)] = value

    @cached_property
    def _products(self) -> dict[int, int]:
        """The sums that take a product along in one rounding, and which of their operands it is, counted from 1."""
        return {n: place + 1 for n, place in fused_products(self.program, self.packed).items()}

    def _fused(self, instr: Instr, product: int, u: int, q: int) -> Value:
        place = product - 1
        a, b = (self.get(n, u, q).name for n in self.program.code[instr.args[place]].args)
        c = self.get(instr.args[1 - place], u, q).name
        if instr.prim is Prim.SUB:
            if place:
                a = self.fn.let(f"fneg {self.shape.f} {a}")
            else:
                c = self.fn.let(f"fneg {self.shape.f} {c}")
        return Value(self.vec.fma(a, b, c), "f")

    def _index(self, k: Affine) -> str:
        """An index into a row as an i64."""
        total = str(k.base)
        for atom, step in k.terms:
            counter = self._counter(atom)
            term = counter if step == 1 else self.fn.let(f"mul i64 {counter}, {step}")
            total = term if total == "0" else self.fn.let(f"add i64 {total}, {term}")
        return total

    def _counter(self, atom: Loop | Part) -> str:
        fn = self.fn
        if isinstance(atom, Loop):
            return next(f.loops[atom] for f in reversed(self._frames) if atom in f.loops)
        inner = self._index(atom.of)
        match atom.kind:
            case "div":
                return fn.let(f"udiv i64 {inner}, {atom.by}")
            case "mod":
                return fn.let(f"urem i64 {inner}, {atom.by}")
        low = fn.let(f"icmp slt i64 {inner}, 0")
        inner = fn.let(f"select i1 {low}, i64 0, i64 {inner}")
        high = fn.let(f"icmp sgt i64 {inner}, {atom.by}")
        return fn.let(f"select i1 {high}, i64 {atom.by}, i64 {inner}")

    def _row_number(self, n: int, u: int, q: int) -> Value:
        """The number of the row, in each lane or of the column."""
        fn, shape = self.fn, self.shape
        if self.program.code[n].imm != self.lane:
            if self._columns_in_lanes:
                wide = f"<{shape.lanes} x i64>"
                return Value(fn.let(f"sitofp {wide} {self._columns_in_lanes} to {shape.f}"), "f")
            return self._whole(self.column if q == 0 else fn.let(f"add i64 {self.column}, {q}"))
        wide = f"<{shape.lanes} x i64>"
        steps = ", ".join(f"i64 {u * shape.lanes + lane}" for lane in range(shape.lanes))
        rows = fn.let(f"add {wide} {self.vec.splat(self.first, 'i64')}, <{steps}>")
        return Value(fn.let(f"sitofp {wide} {rows} to {shape.f}"), "f")

    def _whole(self, index: str) -> Value:
        """An i64 as a number in all lanes."""
        return Value(self.vec.splat(self.fn.let(f"sitofp i64 {index} to {self.shape.scalar}")), "f")

    def _load(self, n: int, u: int, q: int) -> Value:
        slot, k = self.program.code[n].imm
        if self.lane in self._scope(n):
            return self._load_row(slot, k, u)
        return self._load_column(slot, k, q) if self._is_column(n) else self._load_parameter(slot, k)

    def _load_row(self, slot: int, k: Affine, u: int) -> Value:
        # The rows of a task lie transposed in scratch memory, so that a component is one vector load.
        place = self.fn.let(f"mul i64 {self._index(k)}, {self.rows}")
        place = self.fn.let(f"add i64 {place}, {u}")
        pointer = self.fn.let(f"getelementptr {self.shape.f}, ptr {self.tiles[slot]}, i64 {place}")
        return Value(
            self.fn.let(
                f"load {self.shape.f}, ptr {pointer}, align {self.shape.lanes * self.shape.bits // 8}"
            ),
            "f",
        )

    def _load_column(self, slot: int, k: Affine, q: int) -> Value:
        if self._columns_in_lanes:
            return self._gather(slot, k)
        pointer = self.fn.let(
            f"getelementptr {self.shape.scalar}, ptr {self._row_pointer(slot, q)}, i64 {self._index(k)}"
        )
        return self._broadcast(pointer)

    def _gather(self, slot: int, k: Affine) -> Value:
        fn, shape = self.fn, self.shape
        wide, dim = f"<{shape.lanes} x i64>", self.dims[slot] if slot < len(self.dims) else 1
        place = fn.let(f"mul {wide} {self._columns_in_lanes}, splat (i64 {dim})")
        place = fn.let(f"add {wide} {place}, {self.vec.splat(self._index(k), 'i64')}")
        addresses = fn.let(f"getelementptr {shape.scalar}, ptr {self.bases[slot]}, {wide} {place}")
        return Value(self.gathered(addresses), "f")

    def gathered(self, addresses: str) -> str:
        """A number from each of a vector of addresses."""
        shape = self.shape
        return self.fn.call(
            shape.f, f"llvm.masked.gather.{shape.suffix}.v{shape.lanes}p0",
            (f"<{shape.lanes} x ptr>", addresses), ("i32", str(shape.bits // 8)),
            (shape.m, "splat (i1 true)"), (shape.f, "zeroinitializer"),
        )  # fmt: skip

    def _row_pointer(self, slot: int, q: int) -> str:
        for frame in reversed(self._frames):
            if found := frame.pointers.get((slot, q)):
                return found
        dim = self.dims[slot] if slot < len(self.dims) else 1
        row = self.column if q == 0 else self.fn.let(f"add i64 {self.column}, {q}")
        start = row if dim == 1 else self.fn.let(f"mul i64 {row}, {dim}")
        made = self.fn.let(f"getelementptr {self.shape.scalar}, ptr {self.bases[slot]}, i64 {start}")
        self._frames[-1].pointers[slot, q] = made
        return made

    def _load_parameter(self, slot: int, k: Affine) -> Value:
        return self._broadcast(
            self.fn.let(f"getelementptr {self.shape.scalar}, ptr {self.bases[slot]}, i64 {self._index(k)}")
        )

    def _broadcast(self, pointer: str) -> Value:
        size = self.shape.bits // 8
        scalar = self.fn.let(f"load {self.shape.scalar}, ptr {pointer}, align {size}")
        return Value(self.vec.splat(scalar), "f")

    # ── loops over a vector dimension ─────────────────────────────────────────────────────────────

    def _folds(self, fold: Fold, wanted: int) -> None:
        """Emit a fold for all rows and columns at hand, together with all that can share its loop."""
        code, loop = self.program.code, fold.loop
        group = [
            n
            for n, instr in enumerate(code)
            if instr.prim is Prim.FOLD and instr.imm == fold and n not in self.packed
            and self.program.stages[n] == self.program.stages[wanted] and self._scope(n) == self._scope(wanted)
        ]  # fmt: skip
        for n in group:
            self.hoist(code[n].args[0])
        wants = [(n, u, q) for n in group for u, q in self._combos(n)]
        states = 2 if fold.how.startswith("arg") else 1

        def terms(counter: str) -> list[str]:
            with self.frame(loop, counter):
                return [self.get(code[n].args[0], u, q).name for n, u, q in wants]

        def step(counter: str, state: list[str]) -> list[str]:
            new: list[str] = []
            for place, x in enumerate(terms(counter)):
                new += self._folded(fold.how, state[place * states : (place + 1) * states], x, counter)
            return new

        def steps(counter: str, state: list[str]) -> list[str]:
            for ahead in range(DIMENSION_UNROLL):
                at = counter if ahead == 0 else self.fn.let(f"add i64 {counter}, {ahead}")
                state = step(at, state)
            return state

        first = 0 if fold.how == "sum" else 1
        if first:
            # Extrema start from the first element, so that a NaN in it sticks.
            state = [s for x in terms("0") for s in (x, "zeroinitializer")[:states]]
        else:
            state = ["zeroinitializer"] * len(wants)

        def carried(state: list[str]) -> list[tuple[str, str]]:
            return [(self.shape.f, s) for s in state]

        def piece(start: str, state: list[str]) -> list[str]:
            own = self.fn.loop(
                start, self.fn.let(f"add i64 {start}, {PIECE}"), DIMENSION_UNROLL, carried(zeros), steps
            )
            return [self.vec.binary("fadd", s, x) for s, x in zip(state, own, strict=True)]

        if fold.how == "sum" and loop.extent >= 2 * PIECE:
            # Rounding of a long sum grows with its length, so it is a sum of sums.
            zeros, first = state, loop.extent // PIECE * PIECE
            state = self.fn.loop("0", str(first), PIECE, carried(state), piece)
        even = first + (loop.extent - first) // DIMENSION_UNROLL * DIMENSION_UNROLL
        state = self.fn.loop(str(first), str(even), DIMENSION_UNROLL, carried(state), steps)
        for k in range(even, loop.extent):
            state = step(str(k), state)
        for place, (n, u, q) in enumerate(wants):
            result = state[(place + 1) * states - 1]
            self._frames[-1].values[self._key(n, u, q)] = Value(result, "f")

    def _folded(self, how: str, state: list[str], x: str, counter: str) -> list[str]:
        if how == "sum":
            return [self.vec.binary("fadd", state[0], x)]
        take = self.vec.compare("olt" if how.endswith("min") else "ogt", x, state[0])
        best = self.vec.choose(take, x, state[0])
        if len(state) == 1:
            return [best]
        return [best, self.vec.choose(take, self._whole(counter).name, state[1])]

    def hoist(self, n: int) -> None:
        """Emit, before a loop opens, all that is needed inside it and does not change along it."""
        opened = {known for frame in self._frames for known in frame.loops}
        seen: set[int] = set()
        stack = [n]
        while stack:
            m = stack.pop()
            if m in seen:
                continue
            seen.add(m)
            instr = self.program.code[m]
            if {s for s in self._scope(m) if isinstance(s, Loop)} <= opened:
                if instr.prim is not Prim.CONST:
                    for u, q in self._combos(m):
                        self.get(m, u, q)
                continue
            # It changes along this loop, or along one that opens inside it.
            if instr.prim is Prim.LOAD and self._is_column(m):
                for q in range(self.columns):
                    self._row_pointer(instr.imm[0], q)
            stack.extend(instr.args)

    # ── levels ────────────────────────────────────────────────────────────────────────────────────

    def level(self, scope: Scope) -> None:
        """Emit every value of exactly this scope."""
        for n, instr in enumerate(self.program.code):
            if self._scope(n) == scope and instr.prim is not Prim.CONST:
                for u, q in self._combos(n):
                    self.get(n, u, q)


def column_values(program: Program, symbol: str) -> list[int]:
    """The numbers that depend on a column alone and are computed, not loaded, and are needed elsewhere."""
    own = {
        n
        for n, instr in enumerate(program.code)
        if program.scopes[n] == {symbol} and instr.prim not in LEAVES | MASKS
    }
    used = {a for n, instr in enumerate(program.code) if n not in own for a in instr.args}
    used |= {n for terms in program.terms for n in terms.places}
    return sorted(own & used)
