"""Indices into a row: sums of loop counters, and whole-number parts of such sums."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop over a vector dimension. Two sums of one extent at one depth share it."""

    extent: int
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """A whole-number function of an index: "div" or "mod" by `by`, or "clip" to 0 … `by`."""

    kind: str
    of: Affine
    by: int

    @property
    def loops(self) -> tuple[Loop, ...]:
        return self.of.loops

    @property
    def bounds(self) -> tuple[int, int]:
        low, high = self.of.bounds
        match self.kind:
            case "div":
                return low // self.by, high // self.by
            case "mod":
                return 0, self.by - 1
            case _:
                return max(0, min(low, self.by)), max(0, min(high, self.by))


@dataclass(frozen=True, slots=True)
class Affine:
    """An index into a row: base + the sum of coefficient × (loop counter, or part of an index)."""

    base: int
    terms: tuple[tuple[Loop | Part, int], ...] = ()

    @staticmethod
    def of(k: int | Loop | Affine) -> Affine:
        match k:
            case int():
                return Affine(k)
            case Loop():
                return Affine(0, ((k, 1),))
            case Affine():
                return k

    def __add__(self, other: int | Loop | Affine) -> Affine:
        other = Affine.of(other)
        total = dict(self.terms)
        for atom, step in other.terms:
            total[atom] = total.get(atom, 0) + step
        # The order of terms is part of equality, so it must not depend on who was added to whom.
        return Affine(
            self.base + other.base, tuple(sorted(((a, c) for a, c in total.items() if c), key=repr))
        )

    def __sub__(self, other: int | Loop | Affine) -> Affine:
        return self + Affine.of(other) * -1

    def __mul__(self, factor: int) -> Affine:
        if factor == 0:
            return Affine(0)
        return Affine(self.base * factor, tuple((atom, step * factor) for atom, step in self.terms))

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest value that it can take."""
        low = high = self.base
        for atom, step in self.terms:
            ends = (0, atom.extent - 1) if isinstance(atom, Loop) else atom.bounds
            low += min(step * e for e in ends)
            high += max(step * e for e in ends)
        return low, high

    def div(self, by: int) -> Affine:
        """The quotient, rounded down; the index must not be negative."""
        low, high = self.bounds
        if low // by == high // by:
            return Affine(low // by)
        if self.base % by == 0 and all(step % by == 0 for _, step in self.terms):
            return Affine(self.base // by, tuple((atom, step // by) for atom, step in self.terms))
        return Affine(0, ((Part("div", self, by), 1),))

    def mod(self, by: int) -> Affine:
        """The remainder, from 0 to by - 1; the index must not be negative."""
        low, high = self.bounds
        if low // by == high // by:
            return self + -(low // by) * by
        if all(step % by == 0 for _, step in self.terms):
            return Affine(self.base % by)
        return Affine(0, ((Part("mod", self, by), 1),))

    def clip(self, top: int) -> Affine:
        """The nearest index from 0 to top."""
        low, high = self.bounds
        if low >= 0 and high <= top:
            return self
        if high <= 0 or low >= top:
            return Affine(0 if high <= 0 else top)
        return Affine(0, ((Part("clip", self, top), 1),))

    @property
    def loops(self) -> tuple[Loop, ...]:
        found: dict[Loop, None] = {}
        for atom, _ in self.terms:
            found |= dict.fromkeys([atom] if isinstance(atom, Loop) else atom.loops)
        return tuple(found)

    @property
    def depth(self) -> int:
        """The depth of a loop opened inside this index."""
        return 1 + max((loop.depth for loop in self.loops), default=-1)
