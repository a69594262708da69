"""What of a program is needed where: the values of a row, of a column, of all pairs, along loops. Writes nothing."""

from __future__ import annotations

from functools import cached_property

from farsum_kernels.formula.lower import Program
from farsum_kernels.scalar.indices import Loop
from farsum_kernels.scalar.ir import MASKS, Prim, Scope


class Placement:
    """Questions about a program."""

    program: Program

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
