"""Complex lazy tensors: each vector holds pairs of reals, and every operation is one of the formula language.

What has no meaning for complex numbers, or more than one, is refused with the words that say it plainly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from farsum.arrays import is_number
from farsum.lazy import Lazy, lift, made_from, make, need
from farsum.matrix import Matrix
from farsum_kernels.errors import DimensionError, FormulaError, OperandError
from farsum_kernels.formula.expr import node

if TYPE_CHECKING:
    from farsum.lazytensor import LazyTensor

_OPS = {
    "Add": "ComplexAdd",
    "Subtract": "ComplexSubtract",
    "Mult": "ComplexMult",
    "Divide": "ComplexDivide",
    "Equal": "Equal",
    "NotEqual": "NotEqual",
}


class ComplexLazyTensor(Matrix):
    """A symbolic tensor of complex numbers of shape (*batch, M, N, D); D counts complex numbers.

    Made from complex arrays and numbers, by `LazyTensor(z)`, `Vi(z)`, or from a real LazyTensor by
    `real2complex`, `imag2complex`, `exp1j`, or by arithmetic with a complex operand.

    >>> from farsum.numpy import Vi, Vj
    >>> z, w = np.random.rand(5, 2) + 1j, np.random.rand(7, 2) * 1j
    >>> (Vi(z) * Vj(w).conj()).sum(-1).sum(axis=1).dtype
    dtype('complex128')
    """

    __slots__ = ()
    is_complex = True

    def __new__(cls, x: Any = None, axis: int | None = None) -> Any:
        made = made_from(x, axis, complex_symbol=type(x) is tuple)
        return made if made.is_complex else made.real2complex()

    # ── operators ─────────────────────────────────────────────────────────────────────────────────

    def _combined(self, op: str, other: Any, flipped: bool = False) -> Any:
        other = lift(other, op)
        if not other.is_complex:
            if other.expr.dim == 1 and (op == "Mult" or (op == "Divide" and not flipped)):
                scale = other if op == "Mult" else 1 / other
                return self._apply("ComplexRealScal", scale, result=True)
            other = other.real2complex()
        return self._apply(_OPS[op], other, flipped=flipped)

    def __add__(self, other: Any) -> Any:
        return self if is_number(other) and other == 0 else self._combined("Add", other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self if is_number(other) and other == 0 else self._combined("Subtract", other)

    def __rsub__(self, other: Any) -> Any:
        return self._combined("Subtract", other, flipped=True)

    def __mul__(self, other: Any) -> Any:
        if is_number(other):
            if other == 0:
                return make(node("Zero", params=(self.expr.dim,)), self.frame, True)
            if other == 1:
                return self
        return self._combined("Mult", other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        if is_number(other) and other == 0:
            raise FormulaError(f"division of a LazyTensor of shape {self.shape} by the number 0")
        return self._combined("Divide", other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._combined("Divide", other, flipped=True)

    def __neg__(self) -> ComplexLazyTensor:
        return self._apply("Minus")

    def __abs__(self) -> LazyTensor:
        return self.abs()

    def __pow__(self, exponent: Any) -> Any:
        """Integer powers, by multiplication."""
        if isinstance(exponent, bool) or not isinstance(exponent, int | np.integer):
            raise FormulaError(
                f"a complex LazyTensor has integer powers, not {exponent!r}: other powers depend on a branch; "
                f"write (a * Z.angle()).exp1j() * Z.abs()**a"
            )
        if exponent < 0:
            return 1 / self ** (-exponent)
        if exponent == 0:
            return self * 0 + 1
        half = self ** (exponent // 2) if exponent > 1 else None
        if half is None:
            return self
        return half * half * self if exponent % 2 else half * half

    power = __pow__

    def __eq__(self, other: Any) -> Any:
        """Complex numbers of 0 and 1: the real parts compared, and the imaginary parts."""
        return self._combined("Equal", other)

    def __ne__(self, other: Any) -> Any:
        return self._combined("NotEqual", other)

    __hash__ = None  # type: ignore[assignment]

    def _unordered(self, *_: Any) -> NoReturn:
        raise FormulaError("complex numbers have no order: compare Z.real, Z.imag or Z.abs()")

    __lt__ = __le__ = __gt__ = __ge__ = _unordered

    def __or__(self, other: Any) -> NoReturn:
        raise FormulaError(
            "Z | W could conjugate or not: write (Z * W).sum(-1), or (Z.conj() * W).sum(-1) for the Hermitian product"
        )

    __ror__ = __or__

    # ── component by component ────────────────────────────────────────────────────────────────────

    @property
    def real(self) -> LazyTensor:
        """The real parts."""
        return self._apply("ComplexReal", result=False)

    @property
    def imag(self) -> LazyTensor:
        """The imaginary parts."""
        return self._apply("ComplexImag", result=False)

    def conj(self) -> ComplexLazyTensor:
        """The complex conjugates."""
        return self._apply("Conj")

    def abs(self) -> LazyTensor:
        """The magnitudes."""
        return self._apply("ComplexAbs", result=False)

    def angle(self) -> LazyTensor:
        """The angles, in radians from -π to π."""
        return self._apply("ComplexAngle", result=False)

    def exp(self) -> ComplexLazyTensor:
        """e to the power of each entry."""
        return self._apply("ComplexExp")

    def square(self) -> ComplexLazyTensor:
        """z·z."""
        return self * self

    # ── vectors ───────────────────────────────────────────────────────────────────────────────────

    def _vector(self, op: str) -> ComplexLazyTensor:
        return self._apply("ComplexSum")

    def sqnorm2(self) -> LazyTensor:
        """The squared norm of the vector axis, Σ|z|², a real."""
        return self._apply("SqNorm2", result=False)

    def norm2(self) -> LazyTensor:
        """The norm of the vector axis, a real."""
        return self._apply("Norm2", result=False)

    def elem(self, index: int) -> ComplexLazyTensor:
        """One entry of the vector."""
        size = self._numbers(self.expr.dim)
        if type(index) is not int or not 0 <= index < size:
            raise DimensionError(f"the entry {index!r} of a vector is an int from 0 to {size - 1}")
        return self._apply("Extract", params=(2 * index, 2))

    def extract(self, start: int, length: int) -> ComplexLazyTensor:
        """So many entries of the vector."""
        if type(start) is not int or type(length) is not int:
            raise FormulaError(f"extract takes two ints, not {start!r} and {length!r}")
        return self._apply("Extract", params=(2 * start, 2 * length))

    def concat(self, other: Lazy) -> ComplexLazyTensor:
        """The two vectors end to end."""
        other = need(other, "concat")
        return self._apply("Concat", other if other.is_complex else other.real2complex())  # type: ignore[attr-defined]

    # ── the rest ──────────────────────────────────────────────────────────────────────────────────

    def _adjoint(self) -> Any:
        return self._swapped().conj()

    def _reduce(self, reduction: str, axis: int, k: int = 0, **options: Any) -> Any:
        if reduction != "Sum":
            raise FormulaError(
                f"{reduction} needs an order or a logarithm of real numbers; a complex LazyTensor reduces by Sum: "
                f"reduce Z.real, Z.imag, Z.abs() or Z.angle()"
            )
        return super()._reduce(reduction, axis, k, **options)

    def __getattr__(self, name: str) -> Any:
        from farsum.lazytensor import LazyTensor

        if not name.startswith("_") and hasattr(LazyTensor, name):
            raise OperandError(
                f"{name} is not written for complex vectors; there are + - * /, integer powers, exp, abs, angle, conj, "
                f"real, imag, sum, sqnorm2, norm2, concat, [k]: take .real, .imag, .abs() or .angle() first"
            )
        raise AttributeError(f"a complex LazyTensor has no attribute {name!r}")
