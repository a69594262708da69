"""The state of one reduction inside a kernel: where it lives, how terms enter it, how it is left behind.

States are arrays over the rows of a thread, in registers; long ordered lists lie in global memory, where they are
left anyway. A sum is kept three times over: the partial sum of a tile, and a total as the unevaluated sum of two
numbers of the data's dtype, which is what lets its error not grow with N on devices whose float64 is slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING

from farsum_kernels.backends.cuda.layout import IN_REGISTERS
from farsum_kernels.backends.cuda.rules import TYPES, run_rule
from farsum_kernels.backends.cuda.text import LARGEST, Value, literal
from farsum_kernels.formula.lower import Terms
from farsum_kernels.formula.reductions import Kind
from farsum_kernels.job import Part
from farsum_kernels.scalar.ir import Val, number

if TYPE_CHECKING:
    from farsum_kernels.backends.cuda.skeleton import Skeleton

STORED = {Kind.WIDE: "double", Kind.INDEX: "long long"}


class State:
    """One reduction in the pair loop of a kernel; `place` numbers it, `first` is its first stored component."""

    def __init__(self, kernel: Skeleton, part: Part, terms: Terms, place: int, first: int) -> None:
        self.kernel, self.src, self.scalar = kernel, kernel.src, kernel.scalar
        self.part, self.rule, self.terms, self.first = part, part.rule, terms, first
        # The loop over components that are too many to write out, of F or of its weight.
        self.loop = terms.loop or terms.along
        self.dim = 1 if terms.loop else terms.dim
        self.kinds = self.rule.state(self.dim, len(terms.weight))
        self.compensated = Kind.WIDE in self.kinds
        self.listed = part.k if self.rule.listed else 0
        self.in_memory = self.listed > IN_REGISTERS
        self.chunk = kernel.layout.chunk if self.loop else 1
        self.extent = self.loop.extent if self.loop else 1
        self.repeat = self.extent * (self.listed or 1)
        imms = self.rule.identity(self.dim, len(terms.weight))
        self.identity = tuple(
            number(x if isinstance(x, str) else repr(x), LARGEST[self.scalar]) for x in imms
        )
        self.stored = tuple(STORED.get(kind, self.scalar) for kind in self.kinds)
        self._names = [f"s{place}_{c}" for c in range(len(self.kinds))]
        self._highs = [f"h{place}_{c}" for c in range(len(self.kinds))]
        self._lows = [f"l{place}_{c}" for c in range(len(self.kinds))]
        self._terms = [f"t{place}_{m}" for m in range(len(terms.value) + len(terms.weight))]

    # ── the shape of a state ──────────────────────────────────────────────────────────────────────

    def _kind(self, kind: Kind) -> str:
        return "i" if kind is Kind.INDEX else "f"

    def _type(self, kind: Kind) -> str:
        return TYPES[self._kind(kind)][self.scalar]

    def _fresh(self, c: int) -> str:
        return "0" if self.kinds[c] is Kind.INDEX else literal(self.identity[c], self.scalar)

    def _each(self) -> tuple[str, ...]:
        return ("r", "k") if self.loop else ("r",)

    @property
    def _at(self) -> str:
        return "".join(f"[{x}]" for x in self._each())

    def _place(self, c: int) -> str:
        """Where component c of the state of row r, and of component k of a long F, is in its array."""
        return self._at

    def _shape(self, c: int) -> str:
        return f"[{self.kernel.layout.rows}]" + (f"[{self.chunk}]" if "[k]" in self._place(c) else "")

    def _values(self, names: Sequence[str]) -> list[Value]:
        kinds = enumerate(self.kinds)
        return [Value(n + self._place(c), self._kind(k)) for n, (c, k) in zip(names, kinds, strict=True)]

    # ── the life of a state ───────────────────────────────────────────────────────────────────────

    def declare(self) -> None:
        """Once per task: the arrays, at the identity."""
        if self.listed:
            self._declare_lists()
            return
        for c, kind in enumerate(self.kinds):
            names = [self._names[c], *((self._highs[c], self._lows[c]) if self.compensated else ())]
            self.src.do(f"{self._type(kind)} {', '.join(name + self._shape(c) for name in names)};")
        with self.kernel.nest(*self._each()):
            for c in range(len(self.kinds)):
                at = self._place(c)
                self.src.do(f"{self._names[c]}{at} = {self._fresh(c)};")
                if self.compensated:
                    self.src.do(f"{self._highs[c]}{at} = {self._fresh(c)};", f"{self._lows[c]}{at} = 0;")

    def accumulate(self, column_guard: str) -> None:
        """Inside a nest over r and c: take the pair into a sum, or set its terms aside for `update`."""
        if self.rule.additive:
            with self.src.block(f"if ({column_guard})"), self.kernel.frame():
                for c, n in enumerate(self.terms.value):
                    self.src.do(self.kernel.added(self._names[c] + self._at, n))
            return
        for name, n in zip(self._terms, (*self.terms.value, *self.terms.weight), strict=True):
            self.src.do(f"{name}[r][c] = {self.kernel.get(n).text};")

    def open_block(self) -> None:
        """Before the loop over the components of a long F: what they share."""

    def declare_terms(self) -> None:
        """Before the nest whose terms `update` takes."""
        if self.rule.additive:
            return
        layout = self.kernel.layout
        for name in self._terms:
            self.src.do(f"{self.scalar} {name}[{layout.rows}][{layout.columns}];")

    def update(self) -> None:
        """After the nest: the terms that were set aside enter the states, row by row, in order of column."""
        if self.rule.additive:
            return
        columns = [str(c) for c in range(self.kernel.layout.columns)]
        rows = self.kernel.layout.rows
        if self.rule.calm and not self.kernel.layout.panel:
            # The largest terms so far are soon found: then nothing is rescaled, in one text for all rows.
            with self.src.block("if (whole)"):
                self._enter_calmly(columns)
            with self.src.block("else"), self.src.loop("r", rows):
                self._enter_tail(columns)
            return
        with self.src.loop("r", rows):
            with self.src.block("if (whole)"):
                self._enter(columns)
            with self.src.block("else"):
                self._enter_tail(columns)

    def _enter_tail(self, columns: Sequence[str]) -> None:
        with (
            self.src.loop("c", len(columns)),
            self.src.block(f"if ({self.kernel.inside('c')})"),
        ):
            self._enter(["c"])

    def _enter_calmly(self, columns: Sequence[str]) -> None:
        rows, raised = self.kernel.layout.rows, self.src.name("raised")
        largest = reduce(lambda a, b: f"fs_max({a}, {b})", (f"{self._terms[0]}[r][{c}]" for c in columns))
        self.src.do(f"bool {raised} = false;")
        with self.src.loop("r", rows):
            self.src.do(f"{raised} |= {largest} > {self._names[0]}[r];")
        with self.src.block(f"if ({raised})"), self.src.loop("r", rows):
            self._enter(columns)
        with self.src.block("else"), self.src.loop("r", rows):
            self._enter(columns, calm=True)

    def _enter(self, columns: Sequence[str], calm: bool = False) -> None:
        terms = [[Value(f"{t}[r][{c}]", "f") for t in self._terms] for c in columns]
        places = [Value(f"({TYPES['i'][self.scalar]})column[{c}]", "i") for c in columns]
        if self.listed:
            self._push(terms, places)
            return
        values = self._values(self._names)

        def write() -> None:
            rule = self._accumulation(terms, calm)
            new = run_rule(self.src, self.scalar, [*values, *flat(terms), *places], rule)
            changes = [(old.text, v.text) for old, v in zip(values, new, strict=True)]
            self.src.do(*(f"{old} = {v};" for old, v in changes if old != v))

        if not self.rule.gate:
            write()
            return
        with self.src.block(f"if ({self._passes(values, terms)})"):
            write()

    def _accumulation(self, terms: list[list[Value]], calm: bool) -> Callable[[list[Val]], Sequence[Val]]:
        states, count, width = len(self.kinds), len(terms), len(terms[0])

        def rule(args: list[Val]) -> Sequence[Val]:
            rest = args[states:]
            split = [tuple(rest[q * width : (q + 1) * width]) for q in range(count)]
            if calm and self.rule.calm:
                return self.rule.calm(tuple(args[:states]), split)
            return self.rule.accumulate(tuple(args[:states]), split, rest[count * width :])

        return rule

    def _passes(self, state: Sequence[Value], terms: list[list[Value]]) -> str:
        """Can any of the terms change the state?"""
        gate, states, width = self.rule.gate, len(state), len(terms[0])
        assert gate

        def rule(args: list[Val]) -> Sequence[Val]:
            rest = args[states:]
            split = [tuple(rest[q * width : (q + 1) * width]) for q in range(len(terms))]
            return [gate(tuple(args[:states]), split)]

        (mask,) = run_rule(self.src, self.scalar, [*state, *flat(terms)], rule)
        return mask.text

    # ── totals ────────────────────────────────────────────────────────────────────────────────────

    def flush(self) -> None:
        """The end of a tile: its partial state goes into the totals."""
        if not self.compensated:
            return
        with self.kernel.nest(*self._each()):
            highs, parts = self._values(self._highs), self._values(self._names)
            lows = [Value(n + self._place(c), "f") for c, n in enumerate(self._lows)]
            count = len(self.kinds)

            def rule(args: list[Val]) -> Sequence[Val]:
                # Merging is linear in the sums: each operand of the two-sum, and the old error, is a merge of its own.
                high, low, part = args[:count], args[count : 2 * count], args[2 * count :]
                zero = [a.block.zero() for a in args[:count]]

                def state(sums: list[Val], values: list[Val]) -> tuple[Val, ...]:
                    return tuple(
                        s if kind is Kind.WIDE else v
                        for s, v, kind in zip(sums, values, self.kinds, strict=True)
                    )

                a = self.rule.merge(tuple(high), state(zero, part))
                b = self.rule.merge(state(zero, high), tuple(part))
                rest = self.rule.merge(state(low, high), state(zero, part))
                return [*a, *b, *rest]

            new = run_rule(self.src, self.scalar, [*highs, *lows, *parts], rule)
            for c, kind in enumerate(self.kinds):
                a, b, rest = new[c], new[count + c], new[2 * count + c]
                with self._once(c):
                    if kind is Kind.WIDE:
                        self.src.do(
                            f"{lows[c].text} = {rest.text};",
                            f"fs_two_sum({a.text}, {b.text}, {highs[c].text}, {lows[c].text});",
                        )
                    else:
                        self.src.do(f"{highs[c].text} = {a.text};")
                    self.src.do(f"{parts[c].text} = {self._fresh(c)};")

    @contextmanager
    def _once(self, c: int) -> Iterator[None]:
        """Around what changes component c, which all k may share: after the last of them has read it."""
        if self.loop and "[k]" not in self._place(c):
            with self.src.block(f"if (k == {self.chunk - 1})"):
                yield
        else:
            yield

    # ── ordered lists of K ────────────────────────────────────────────────────────────────────────

    def _slot(self, c: int, s: str) -> str:
        """Where place s of the list of component c of row r is."""
        if not self.in_memory:
            return f"{self._names[c]}[r][{s}]"
        return f"o{self.first + c}[{self.kernel.stored_at(f'({self._repeat(s)})', 'r')}]"

    def _repeat(self, s: str) -> str:
        """The number of place s among the repeats of a component."""
        return f"component * {self.listed} + {s}" if self.loop else s

    def _declare_lists(self) -> None:
        layout = self.kernel.layout
        for c, kind in enumerate(self.kinds):
            if not self.in_memory:
                self.src.do(f"{self._type(kind)} {self._names[c]}[{layout.rows}][{self.listed}];")
        with self.src.loop("r", layout.rows), self.src.loop("s", self.listed, 0, self._unroll):
            for c in range(len(self.kinds)):
                self.src.do(f"{self._slot(c, 's')} = {self._fresh(c)};")

    @property
    def _unroll(self) -> int:
        return 1 if self.in_memory else 0

    def _push(self, terms: list[list[Value]], places: list[Value]) -> None:
        """Insert terms into the ordered lists of row r, where they are good enough."""
        for m in range(self.dim):
            worst = [
                Value(self._slot(c, str(self.listed - 1)), self._kind(self.kinds[c]))
                for c in (m, self.dim + m)
            ]
            own = [[t[m]] for t in terms]
            with self.src.block(f"if ({self._passes(worst, own)})"):
                for term, place in zip(own, places, strict=True):
                    with self.src.block(f"if ({self._passes(worst, [term])})"):
                        self._insert(m, term[0], place)

    def _insert(self, m: int, x: Value, place: Value) -> None:
        step = self.rule.step
        assert step
        src, value, index, moved = self.src, self.src.name("x"), self.src.name("j"), self.src.name("m")
        src.do(f"{self.scalar} {value} = {x.text};", f"{TYPES['i'][self.scalar]} {index} = {place.text};")
        src.do(f"bool {moved} = false;")
        with src.loop("s", self.listed, 0, self._unroll):
            slots = [Value(self._slot(m, "s"), "f"), Value(self._slot(self.dim + m, "s"), "i")]
            args = [*slots, Value(value, "f"), Value(index, "i"), Value(moved, "m")]
            new = run_rule(src, self.scalar, args, lambda a: step(*a))
            targets = [*(s.text for s in slots), value, index, moved]
            src.do(*(f"{t} = {v.text};" for t, v in zip(targets, new, strict=True)))

    # ── the end of a task ─────────────────────────────────────────────────────────────────────────

    def leave(self) -> None:
        """Write the state of each row out, one row of `o` per repeat."""
        if self.listed:
            if not self.in_memory:
                with self.src.loop("r", self.kernel.layout.rows), self.src.loop("s", self.listed):
                    for c, name in enumerate(self._names):
                        at = self.kernel.stored_at(f"({self._repeat('s')})", "r")
                        self.src.do(f"o{self.first + c}[{at}] = {name}[r][s];")
            return
        with self.kernel.nest(*self._each()):
            if self.loop:
                with self.src.block(f"if (component + k < {self.extent})"):
                    self._write("(component + k)")
            else:
                with self.src.block("if (component == 0)"):
                    self._write("0")

    def _write(self, repeat: str) -> None:
        for c, kind in enumerate(self.kinds):
            value = self._names[c] + self._place(c)
            if self.compensated:
                value = self._highs[c] + self._place(c)
                if kind is Kind.WIDE:
                    value = f"(double){value} + (double){self._lows[c]}{self._place(c)}"
                    if self.rule.additive and (factor := self.terms.factor[c]) is not None:
                        value = f"({value}) * (double){self.kernel.get(factor).text}"
            self.src.do(f"o{self.first + c}[{self.kernel.stored_at(repeat, 'r')}] = {value};")


class LongWeights(State):
    """A shifted sum with a weight that is too wide to write out: maxima and exponentials are shared by its components."""

    def _place(self, c: int) -> str:
        return "[r][k]" if c == len(self.kinds) - 1 else "[r]"

    def open_block(self) -> None:
        """The new maxima of the rows, and what each pair counts for beside them."""
        src, layout, rule = self.src, self.kernel.layout, self.rule
        peak, share = rule.peak, rule.share
        assert peak and share
        self._shares, self._scale = src.name("p"), src.name("q")
        src.do(
            f"{self.scalar} {self._shares}[{layout.rows}][{layout.columns}], {self._scale}[{layout.rows}];"
        )
        with self.kernel.nest("r", "c"):
            value, outside = self.kernel.get(self.terms.value[0]).text, f"-fs_inf<{self.scalar}>()"
            src.do(f"{self._shares}[r][c] = {self.kernel.inside('c')} ? {value} : {outside};")
        with src.loop("r", layout.rows):
            m = Value(f"{self._names[0]}[r]", "f")
            terms = [Value(f"{self._shares}[r][{c}]", "f") for c in range(layout.columns)]

            def rule_of(args: list[Val]) -> Sequence[Val]:
                top = peak(args[0], args[1:])
                return [top, share(args[0], top), *(share(x, top) for x in args[1:])]

            top, scale, *shares = run_rule(src, self.scalar, [m, *terms], rule_of)
            src.do(f"{self._scale}[r] = {scale.text};", f"{m.text} = {top.text};")
            src.do(*(f"{t.text} = {x.text};" for t, x in zip(terms, shares, strict=True)))
            if len(self.kinds) == 3:  # exp(x) itself is summed too
                total = " + ".join(t.text for t in terms)
                src.do(f"{self._names[1]}[r] = fs_fma({self._names[1]}[r], {scale.text}, {total});")

    def declare_terms(self) -> None:
        with self.src.loop("r", self.kernel.layout.rows):
            self.src.do(f"{self._names[-1]}[r][k] *= {self._scale}[r];")

    def accumulate(self, column_guard: str) -> None:
        with self.src.block(f"if ({column_guard})"), self.kernel.frame():
            weight, total = self.kernel.get(self.terms.weight[0]).text, f"{self._names[-1]}[r][k]"
            self.src.do(f"{total} = fs_fma({self._shares}[r][c], {weight}, {total});")

    def update(self) -> None:
        """All was done in the nest."""


def flat(terms: list[list[Value]]) -> list[Value]:
    return [v for term in terms for v in term]
