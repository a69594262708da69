"""Scalar code to CUDA C++: each value where its scope says, once.

A thread holds `rows` rows and takes `columns` columns at once. What depends on a row alone is an array over
r, on a column alone a word of the tile in shared memory; the rest is computed pair by pair, in nests of loops
over r and c that the compiler writes out. Folds over long vectors keep one accumulator per pair, so that a
component that was loaded once serves all pairs of the nest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from farsum_kernels.backends.cuda.layout import HELD_BYTES, SHARED_BYTES, STAGED_BYTES, Layout
from farsum_kernels.backends.cuda.tables import CUDA, RULES
from farsum_kernels.backends.cuda.text import LARGEST, Source, Value, literal
from farsum_kernels.backends.culling import never_positive
from farsum_kernels.backends.fusion import fused_products
from farsum_kernels.formula.lower import Program
from farsum_kernels.scalar.ir import (
    MASKS,
    Affine,
    Block,
    Fold,
    I,
    Instr,
    J,
    Loop,
    Part,
    Prim,
    Scope,
    Val,
    fold,
    number,
)

PAIR: Scope = frozenset({I, J})


def run_rule(
    src: Source, scalar: str, args: Sequence[Value], rule: Callable[[list[Val]], Sequence[Val]]
) -> list[Value]:
    """Write a rule of the scalar IR on values at hand."""
    block = Block(spoken=RULES)
    outputs = rule([block.arg(n) for n in range(len(args))])

    def leaf(instr: Instr) -> Value:
        if instr.prim is Prim.ARG:
            place: int = instr.imm
            return args[place]
        return Value(literal(number(instr.imm, LARGEST[scalar]), scalar), "f")

    def named(prim: Prim) -> Callable[..., Value]:
        def say(*operands: Value) -> Value:
            made, name = RULES[prim](*operands), src.name("u")
            src.do(f"const {TYPES[made.kind].get(scalar)} {name} = {made.text};")
            return Value(name, made.kind)

        return say

    values = fold(block.code, {prim: named(prim) for prim in RULES}, leaf)
    return [values[v.index] for v in outputs]


# Indices ride beside float32 numbers as 32-bit integers, beside float64 as 64-bit ones.
TYPES = {
    "f": {"float": "float", "double": "double"},
    "i": {"float": "int", "double": "long long"},
    "m": {"float": "bool", "double": "bool"},
}


@dataclass
class Frame:
    """A place in the text from which values are visible: those written in it and around it."""

    loops: dict[Loop, str] = field(default_factory=dict)
    values: dict[int, Value] = field(default_factory=dict)
    # Loads from here on: (slot, base) -> how component base + counter of the loop at hand is read.
    panels: dict[tuple[int, int], str] = field(default_factory=dict)


class Emitter:
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
    def _uses(self) -> list[list[int]]:
        """The instructions that use each value."""
        uses: list[list[int]] = [[] for _ in self.program.code]
        for n, instr in enumerate(self.program.code):
            for a in instr.args:
                uses[a].append(n)
        return uses

    @cached_property
    def wanted(self) -> set[int]:
        """The values that the reductions ask for."""
        return {n for terms in self.program.terms for n in terms.places}

    def symbols(self, n: int) -> Scope:
        return self.program.scopes[n]

    def loops_of(self, n: int) -> set[Loop]:
        return {s for s in self.symbols(n) if isinstance(s, Loop)}

    def leaving(self, scope: Scope) -> list[int]:
        """The values of exactly this scope that something of a wider scope needs. Masks are made anew there."""
        found: set[int] = set()

        def need(n: int) -> None:
            instr = self.program.code[n]
            if self.symbols(n) != scope or instr.prim in (Prim.CONST, Prim.ROW):
                return
            if instr.prim in MASKS:
                for a in instr.args:
                    need(a)
                return
            found.add(n)

        for n in range(len(self.program.code)):
            if n in self.wanted or any(self.symbols(u) > scope for u in self._uses[n]):
                need(n)
        return sorted(found)

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

    def long_values(self, symbol: str) -> dict[Loop, list[int]]:
        """For each loop over a long F or a long weight, the values of one row (or column) along it that its terms need."""
        found: dict[Loop, dict[int, None]] = {}
        for terms in self.program.terms:
            loop = terms.loop or terms.along
            if not loop:
                continue
            own = found.setdefault(loop, {})
            stack, seen = list(terms.places), set()
            while stack:
                n = stack.pop()
                if n in seen or loop not in self.loops_of(n):
                    continue
                seen.add(n)
                instr = self.program.code[n]
                if self.symbols(n) == {symbol, loop} and instr.prim not in MASKS:
                    own[n] = None
                    continue
                stack.extend(instr.args)
        return {loop: sorted(own) for loop, own in found.items()}

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

    @cached_property
    def _stages(self) -> list[int]:
        """How many folds deep each value is: folds of one stage do not need each other."""
        stages: list[int] = []
        for instr in self.program.code:
            own = 1 if instr.prim is Prim.FOLD else 0
            stages.append(own + max((stages[a] for a in instr.args), default=0))
        return stages

    def tiled_folds(self) -> None:
        """The folds of all pairs at hand, those of one loop together, each pair with its accumulator."""
        code = self.program.code
        folds = [n for n, instr in enumerate(code) if instr.prim is Prim.FOLD and self.symbols(n) == PAIR]
        groups: dict[tuple[int, Loop], list[int]] = {}
        for n in folds:
            if code[n].imm.how == "sum":
                groups.setdefault((self._stages[n], code[n].imm.loop), []).append(n)
        for (_, loop), group in sorted(groups.items(), key=lambda item: (item[0][0], group_key(item[0][1]))):
            self._tiled_group(loop, group)

    def _tiled_group(self, loop: Loop, group: list[int]) -> None:
        src, code, layout = self.src, self.program.code, self.layout
        terms = {n: code[n].args[0] for n in group}
        fixed = {m for term in terms.values() for m in self.outside(term, loop)}
        self.materialize([m for m in sorted(fixed) if self.symbols(m) == PAIR], "r", "c")
        names = {n: src.name("f") for n in group}
        for name in names.values():
            src.do(f"{self.scalar} {name}[{layout.rows}][{layout.columns}] = {{}};")
        counter = src.name("d")

        def body() -> None:
            inner = [m for m in self._inside(terms.values(), loop)]
            self.materialize([m for m in inner if self.symbols(m) == {I, loop}], "r")
            self.materialize([m for m in inner if self.symbols(m) == {J, loop}], "c")
            with self.nest("r", "c"):
                for n, term in terms.items():
                    src.do(self.added(f"{names[n]}[r][c]", term))

        panels = self._panels(terms.values(), loop) if layout.panel else []
        if panels:
            self._paneled(loop, counter, panels, body)
        else:
            with src.loop(counter, loop.extent, 0, 4), self.frame(loop, counter):
                body()
        for n, name in names.items():
            self.known(n, f"{name}[r][c]")

    def _inside(self, terms: Iterable[int], loop: Loop) -> list[int]:
        """The values of one row or one column, along the loop, that pairs of a nest need."""
        found: set[int] = set()
        stack, seen = list(terms), set()
        while stack:
            m = stack.pop()
            if m in seen or self._found(m):
                continue
            seen.add(m)
            if self.symbols(m) in ({I, loop}, {J, loop}):
                if self.program.code[m].prim in MASKS:
                    continue
                found.add(m)
                continue
            stack.extend(self.program.code[m].args)
        return sorted(found)

    def _panels(self, terms: Iterable[int], loop: Loop) -> list[tuple[int, int]]:
        """The (slot, base) whose components base + 0, 1, 2 … the terms walk along, as many as shared memory holds."""
        found: dict[tuple[int, int], None] = {}
        stack, seen = list(terms), set()
        while stack:
            m = stack.pop()
            if m in seen:
                continue
            seen.add(m)
            instr = self.program.code[m]
            if instr.prim is Prim.LOAD and self.symbols(m) & PAIR:
                slot, k = instr.imm
                if k.terms == ((loop, 1),):
                    found[slot, k.base] = None
            stack.extend(instr.args)
        words = self.layout.tile * self.words + self.layout.task_rows * len(self.held_rows)
        room, chosen = SHARED_BYTES - words * self.item_bytes, []
        for slot, base in found:
            room -= self._panel_words(slot) * self.item_bytes
            if room >= 0:  # others are read where they lie
                chosen.append((slot, base))
        return chosen

    def _panel_words(self, slot: int) -> int:
        """Words of a panel of this input."""
        rows = (self.layout.task_rows, self.layout.block_columns)[self.program.slots[slot].params[2]]
        return self.layout.panel * (rows + PANEL_PAD)

    def _paneled(
        self, loop: Loop, counter: str, panels: list[tuple[int, int]], body: Callable[[], None]
    ) -> None:
        """The loop in steps of a panel: components of all rows and columns of the block, side by side."""
        src, layout, start = self.src, self.layout, self.src.name("d")

        def step(count: int, unroll: int = 0) -> None:
            src.do("__syncthreads();")
            for place, (slot, base) in enumerate(panels):
                category = self.program.slots[slot].params[2]
                rows = (layout.task_rows, layout.block_columns)[category]
                reach = ("first, last_row", "columns_first, columns_last")[category]
                src.do(
                    f"fs_stage<{rows}, {count}, {layout.threads}>"
                    f"(panel{place}, x{slot}, {reach}, {self.dims[slot]}, {start} + {base});"
                )
            src.do("__syncthreads();")
            with src.loop(counter, count, 0, unroll), self.frame(loop, f"({start} + {counter})"):
                for place, (slot, base) in enumerate(panels):
                    category = self.program.slots[slot].params[2]
                    size, run = (
                        (layout.rows, layout.row_run),
                        (layout.columns, layout.column_run),
                    )[category]
                    side, thread = (
                        (layout.threads_i, "thread_i"),
                        (layout.threads_j, "thread_j"),
                    )[category]
                    stride = (layout.task_rows, layout.block_columns)[category] + PANEL_PAD
                    name = src.name("q")
                    src.do(
                        f"{self.scalar} {name}[{size}];",
                        f"fs_read_runs<{size}, {run}, {side}>(panel{place} + {counter} * {stride}, {thread}, {name});",
                    )
                    self.panel(slot, base, f"{name}[{'rc'[category]}]")
                body()

        for place, (slot, _) in enumerate(panels):
            self.panel_words[place] = max(self.panel_words.get(place, 0), self._panel_words(slot))
        whole = loop.extent // layout.panel * layout.panel
        if whole:
            with src.block(f"for (int {start} = 0; {start} < {whole}; {start} += {layout.panel})"):
                step(layout.panel)
        if whole < loop.extent:
            with src.block(""):
                src.do(f"const int {start} = {whole};")
                step(loop.extent - whole, 1)  # short: written out it takes registers that the panels need

    @cached_property
    def panel_words(self) -> dict[int, int]:
        """Words of shared memory that each panel takes."""
        return {}


PANEL_PAD = 4  # keeps the stores of a panel, eight components of four rows, on 32 different banks


def group_key(loop: Loop) -> tuple[int, int]:
    return loop.depth, loop.extent
