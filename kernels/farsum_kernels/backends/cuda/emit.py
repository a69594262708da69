"""Scalar code to CUDA C++: each value where its scope says, once.

A thread holds `rows` rows and takes `columns` columns at once. What depends on a row alone is an array over
r, on a column alone a word of the tile in shared memory; the rest is computed pair by pair, in nests of loops
over r and c that the compiler writes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from farsum_kernels.backends.cuda.layout import HELD_BYTES, STAGED_BYTES, Layout
from farsum_kernels.backends.cuda.placement import Placement
from farsum_kernels.backends.cuda.rules import TYPES
from farsum_kernels.backends.cuda.tables import CUDA
from farsum_kernels.backends.cuda.text import LARGEST, Source, Value, literal
from farsum_kernels.backends.culling import never_positive
from farsum_kernels.backends.fusion import fused_products
from farsum_kernels.formula.lower import Program
from farsum_kernels.scalar.indices import Affine, Loop, Part
from farsum_kernels.scalar.ir import MASKS, Fold, I, Instr, J, Prim, Scope, number

PAIR: Scope = frozenset({I, J})


@dataclass
class Frame:
    """A place in the text from which values are visible: those written in it and around it."""

    loops: dict[Loop, str] = field(default_factory=dict)
    values: dict[int, Value] = field(default_factory=dict)
    # Loads from here on: (slot, base) -> how component base + counter of the loop at hand is read.
    panels: dict[tuple[int, int], str] = field(default_factory=dict)


class Emitter(Placement):
    """Writes the values of a program into a kernel."""

    def __init__(self, src: Source, program: Program, scalar: str, layout: Layout) -> None:
        self.src = src
        self.program = program
        self.scalar = scalar
        self.layout = layout
        self.dims = [v.params[1] for v in program.slots]
        self.row_at, self.column_at = "row[r]", "column[c]"  # the row and the column at hand
        self._frames = [Frame()]
        self._products = fused_products(program)

    # ── what is needed where ──────────────────────────────────────────────────────────────────────

    @cached_property
    def staged(self) -> list[int]:
        """The numbers of a column that lie in shared memory: computed ones first, then loaded ones."""
        own = self.leaving(frozenset({J}))
        own.sort(key=lambda n: (self.program.code[n].prim is Prim.LOAD, n))
        return own[: STAGED_BYTES // (self.layout.tile * self.item_bytes)]

    @cached_property
    def held_rows(self) -> list[int]:
        """The numbers of a row that lie in shared memory, where vectors are long; others stay in registers."""
        own = self.leaving(frozenset({I})) if self.layout.panel else []
        return own[: HELD_BYTES // (self.layout.task_rows * self.item_bytes)]

    @property
    def item_bytes(self) -> int:
        return 4 if self.scalar == "float" else 8

    @property
    def words(self) -> int:
        """The numbers of a column in shared memory, padded to whole 16-byte loads; never 0, for simplicity."""
        per_load = 16 // self.item_bytes
        return max(1, -(-self.words_used // per_load)) * per_load

    @property
    def words_used(self) -> int:
        return len(self.staged)

    # ── frames ────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def frame(self, loop: Loop | None = None, counter: str = "") -> Iterator[None]:
        self._frames.append(Frame({loop: counter} if loop else {}))
        yield
        self._frames.pop()

    def known(self, n: int, text: str) -> None:
        """Value n stands in the text from here on."""
        self._frames[-1].values[n] = Value(text, "m" if self.program.code[n].prim in MASKS else "f")

    def panel(self, slot: int, base: int, text: str) -> None:
        self._frames[-1].panels[slot, base] = text

    def _found(self, n: int) -> Value | None:
        loops = self.loops_of(n)
        for frame in reversed(self._frames):
            if n in frame.values:
                return frame.values[n]
            if loops & frame.loops.keys():
                return None  # what stands further out belongs to another loop over the same dimension
        return None

    @contextmanager
    def nest(self, *counters: str) -> Iterator[None]:
        """Loops over r, c or both that the compiler writes out."""
        extents = {"r": self.layout.rows, "c": self.layout.columns, "k": self.layout.chunk}
        if not counters:
            with self.frame():
                yield
            return
        with self.src.loop(counters[0], extents[counters[0]]), self.nest(*counters[1:]):
            yield

    def materialize(self, values: Iterable[int], *counters: str) -> None:
        """Compute values in one nest and keep them in arrays over its counters."""
        values = [n for n in values if self._found(n) is None]
        if not values:
            return
        extents = {"r": self.layout.rows, "c": self.layout.columns, "k": self.layout.chunk}
        shape, at = "".join(f"[{extents[x]}]" for x in counters), "".join(f"[{x}]" for x in counters)
        names = {}
        for n in values:
            names[n] = self.src.name("a")
            mask = self.program.code[n].prim in MASKS
            self.src.do(f"{'bool' if mask else self.scalar} {names[n]}{shape};")
        with self.nest(*counters):
            for n in values:
                self.src.do(f"{names[n]}{at} = {self.get(n).text};")
        for n in values:
            self.known(n, names[n] + at)

    # ── values ────────────────────────────────────────────────────────────────────────────────────

    def get(self, n: int) -> Value:
        """Value n of the program, written now if it is not at hand."""
        if found := self._found(n):
            return found
        instr = self.program.code[n]
        match instr.prim:
            case Prim.CONST:
                return Value(literal(number(instr.imm, LARGEST[self.scalar]), self.scalar), "f")
            case Prim.ROW:
                return Value(f"({self.scalar})({self.row_at if instr.imm == I else self.column_at})", "f")
            case Prim.INDEX:
                return Value(f"({self.scalar})({self._index(instr.imm)})", "f")
            case Prim.LOAD:
                made = self._load(*instr.imm)
            case Prim.FOLD:
                return self._fold_in_place(n, instr.imm)
            case _:
                made = self._arithmetic(n, instr)
        name = self.src.name()
        self.src.do(f"const {TYPES[made.kind][self.scalar]} {name} = {made.text};")
        self._frames[-1].values[n] = Value(name, made.kind)
        return self._frames[-1].values[n]

    def _arithmetic(self, n: int, instr: Instr) -> Value:
        place = self._products.get(n)
        if instr.prim is Prim.EXP2 and self.symbols(n) >= PAIR:
            return Value(self._power(instr.args[0]), "f")
        if place is None:
            return CUDA[instr.prim](*(self.get(a) for a in instr.args))
        a, b = (self.get(m).text for m in self.program.code[instr.args[place]].args)
        c = self.get(instr.args[1 - place]).text
        if instr.prim is Prim.SUB:
            a, c = (f"-{a}", c) if place else (a, f"-{c}")
        return Value(f"fs_fma({a}, {b}, {c})", "f")

    def _power(self, n: int) -> str:
        """2^value n of a pair."""
        x = self.get(n).text
        if self.layout.polynomials:
            return f"(r < {self.layout.polynomials} ? fs_exp2_polynomial({x}) : fs_exp2({x}))"
        if self.layout.powers and never_positive(self.program, n):
            return f"fs_exp2_by<true>(powers, {x})"
        return f"fs_exp2({x})"

    def added(self, total: str, n: int) -> str:
        """total + value n, in one rounding if the value is a product."""
        instr = self.program.code[n]
        if instr.prim is Prim.MUL and self._found(n) is None and len(self._uses[n]) <= 1:
            a, b = (self.get(m).text for m in instr.args)
            return f"{total} = fs_fma({a}, {b}, {total});"
        return f"{total} += {self.get(n).text};"

    def _index(self, k: Affine) -> str:
        terms = [str(k.base)] if k.base or not k.terms else []
        for atom, step in k.terms:
            terms.append(f"{step} * {self._counter(atom)}" if step != 1 else self._counter(atom))
        return " + ".join(terms)

    def _counter(self, atom: Loop | Part) -> str:
        if isinstance(atom, Loop):
            return next(f.loops[atom] for f in reversed(self._frames) if atom in f.loops)
        inner = self._index(atom.of)
        match atom.kind:
            case "div":
                return f"(({inner}) / {atom.by})"
            case "mod":
                return f"(({inner}) % {atom.by})"
        return f"fs_clip({inner}, {atom.by})"

    def _load(self, slot: int, k: Affine) -> Value:
        if len(k.terms) == 1 and k.terms[0][1] == 1:
            for frame in reversed(self._frames):
                if found := frame.panels.get((slot, k.base)):
                    return Value(found, "f")
                if k.terms[0][0] in frame.loops:
                    break
        category, dim = self.program.slots[slot].params[2], self.dims[slot]
        index = self._index(k)
        if category < 2:
            index = f"(long long)({(self.row_at, self.column_at)[category]}) * {dim} + {index}"
        return Value(f"fs_load(x{slot}, {index})", "f")

    # ── folds ─────────────────────────────────────────────────────────────────────────────────────

    def _fold_in_place(self, n: int, rule: Fold) -> Value:
        """A fold as a loop right here, for whatever row and column are at hand."""
        term = self.program.code[n].args[0]
        self.hoist(term, rule.loop)
        total, place, counter = self.src.name("f"), self.src.name("p"), self.src.name("d")
        first = 0
        if rule.how == "sum":
            self.src.do(f"{self.scalar} {total} = 0;")
        else:
            # Extrema start from the first element, so that a NaN in it sticks.
            first = 1
            with self.frame(rule.loop, "0"):
                self.src.do(f"{self.scalar} {total} = {self.get(term).text}, {place} = 0;")
        with self.src.loop(counter, rule.loop.extent, first, 4), self.frame(rule.loop, counter):
            self._folded(rule.how, total, place, term, counter)
        return self._keep(n, place if rule.how.startswith("arg") else total)

    def _folded(self, how: str, total: str, place: str, term: int, counter: str) -> None:
        if how == "sum":
            self.src.do(self.added(total, term))
            return
        x, sign = self.get(term).text, "<" if how.endswith("min") else ">"
        moved = f" {place} = {counter};" if how.startswith("arg") else ""
        self.src.do(f"if ({x} {sign} {total}) {{ {total} = {x};{moved} }}")

    def _keep(self, n: int, name: str) -> Value:
        self._frames[-1].values[n] = Value(name, "f")
        return self._frames[-1].values[n]

    def outside(self, term: int, loop: Loop) -> list[int]:
        """What a term of a loop needs that does not change along it, nor along loops inside it."""
        found: dict[int, None] = {}
        opened = {known for frame in self._frames for known in frame.loops}
        stack, seen = [term], set()
        while stack:
            m = stack.pop()
            if m in seen or self._found(m):
                continue
            seen.add(m)
            if self.loops_of(m) <= opened:
                if self.program.code[m].prim not in (Prim.CONST, Prim.ROW, Prim.INDEX):
                    found[m] = None
                continue
            stack.extend(self.program.code[m].args)
        return sorted(found)

    def hoist(self, term: int, loop: Loop) -> None:
        """Write, before a loop opens, all that is needed inside it and does not change along it."""
        for n in self.outside(term, loop):
            self.get(n)
