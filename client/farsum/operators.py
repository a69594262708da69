"""The operators of Python on a LazyTensor, and its comparisons: each writes a formula and computes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from farsum.arrays import is_number
from farsum.lazy import Lazy, lift, make
from farsum_kernels.errors import DimensionError, FormulaError
from farsum_kernels.formula.expr import node

if TYPE_CHECKING:
    from farsum.lazytensor import LazyTensor


class Operators(Lazy):
    """What is written with +, *, |, < and their like. A part of LazyTensor, never used alone."""

    __slots__ = ()

    def _combined(self, op: str, other: Any, flipped: bool = False) -> Any:
        """op(self, other), or op(other, self); complex when the other is."""
        other = lift(other, op)
        if other.is_complex:
            return other._combined(op, self, not flipped)
        return self._apply(op, other, flipped=flipped)

    def __add__(self, other: Any) -> Any:
        # Adding the number 0 gives the same object, so that sum([...]) and K = 0; K += … work.
        return self if is_number(other) and other == 0 else self._combined("Add", other)

    def __radd__(self, other: Any) -> Any:
        return self if is_number(other) and other == 0 else self._combined("Add", other, flipped=True)

    def __sub__(self, other: Any) -> Any:
        return self if is_number(other) and other == 0 else self._combined("Subtract", other)

    def __rsub__(self, other: Any) -> Any:
        return -self if is_number(other) and other == 0 else self._combined("Subtract", other, flipped=True)

    def __mul__(self, other: Any) -> Any:
        return self._multiplied(other, flipped=False)

    def __rmul__(self, other: Any) -> Any:
        return self._multiplied(other, flipped=True)

    def _multiplied(self, other: Any, flipped: bool) -> Any:
        if is_number(other):
            if other == 0:
                return make(node("Zero", params=(self.expr.dim,)), self.frame)
            if other == 1:
                return self
            if other == -1:
                return -self
        return self._combined("Mult", other, flipped)

    def __truediv__(self, other: Any) -> Any:
        if is_number(other):
            if other == 0:
                raise FormulaError(f"division of a LazyTensor of shape {self.shape} by the number 0")
            if other == 1:
                return self
        return self._combined("Divide", other)

    def __rtruediv__(self, other: Any) -> Any:
        if is_number(other):
            if other == 1:
                return self._apply("Inv")
            if other == 0:
                return make(node("Zero", params=(self.expr.dim,)), self.frame)
        return self._combined("Divide", other, flipped=True)

    def __or__(self, other: Any) -> Any:
        """The scalar product of two vectors of one dimension."""
        return self._scalar_product(lift(other, "the scalar product"), flipped=False)

    def __ror__(self, other: Any) -> Any:
        return self._scalar_product(lift(other, "the scalar product"), flipped=True)

    def _scalar_product(self, other: Any, flipped: bool) -> Any:
        if other.is_complex:
            return other | self
        if other.expr.dim != self.expr.dim:
            raise DimensionError(
                f"the scalar product needs operands of the same dimension; received shapes {self.shape} and {other.shape}"
            )
        return self._apply("Scalprod", other, flipped=flipped)

    def __neg__(self) -> LazyTensor:
        return self._apply("Minus")

    def __lt__(self, other: Any) -> LazyTensor:
        return self._apply("LessThan", other)

    def __le__(self, other: Any) -> LazyTensor:
        return self._apply("LessOrEqual", other)

    def __gt__(self, other: Any) -> LazyTensor:
        return self._apply("LessThan", other, flipped=True)

    def __ge__(self, other: Any) -> LazyTensor:
        return self._apply("LessOrEqual", other, flipped=True)

    def __eq__(self, other: Any) -> LazyTensor:  # type: ignore[override]
        """1 where equal, 0 elsewhere: a LazyTensor, never a truth value."""
        return self._combined("Equal", other)

    def __ne__(self, other: Any) -> LazyTensor:  # type: ignore[override]
        return self._combined("NotEqual", other)

    __hash__ = None
