"""The operations of a LazyTensor: each writes a formula and computes nothing.

Operands on the right may be LazyTensors, numbers, lists (parameters) or arrays of three axes and more.
Dimensions, special values and names are those of the formula language (docs/parity.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from farsum.arrays import is_number
from farsum.frame import EMPTY
from farsum.lazy import Lazy, lift, make, need
from farsum.operators import Operators
from farsum_kernels.errors import AxisError, DimensionError, FormulaError, InputMissing, OperandError
from farsum_kernels.formula.expr import VAR, constant, node

if TYPE_CHECKING:
    from farsum.complex import ComplexLazyTensor
    from farsum.lazytensor import LazyTensor


class Operations(Operators):
    """What can be written with one LazyTensor and others. A part of LazyTensor, never used alone."""

    __slots__ = ()

    # ── component by component ────────────────────────────────────────────────────────────────────

    def __abs__(self) -> LazyTensor:
        return self.abs()

    def __pow__(self, other: Any) -> LazyTensor:
        """Integer powers by multiplication, ½ and -½ by square roots, all others by `Powf`."""
        if isinstance(other, int | np.integer) and not isinstance(other, bool):
            return self.square() if other == 2 else self._apply("Pow", params=(int(other),))
        if is_number(other) and abs(other) == 0.5:
            return self.sqrt() if other > 0 else self.rsqrt()
        if is_number(other) or isinstance(other, Lazy):
            exponent = lift(other, "Powf")
            if exponent.expr.dim not in (1, self.expr.dim):
                raise DimensionError(
                    f"the exponent has dimension {exponent.expr.dim}; the base of shape {self.shape} "
                    f"needs 1 or {self.expr.dim}"
                )
            return self._apply("Powf", exponent)
        raise OperandError(f"an exponent must be a number or a LazyTensor, not {type(other).__name__}")

    power = __pow__

    def abs(self) -> LazyTensor:
        """The magnitude."""
        return self._apply("Abs")

    def exp(self) -> LazyTensor:
        """e to the power of each entry."""
        return self._apply("Exp")

    def log(self) -> LazyTensor:
        """The natural logarithm; -inf at 0, NaN below."""
        return self._apply("Log")

    def xlogx(self) -> LazyTensor:
        """x·log x, 0 at 0."""
        return self._apply("XLogX")

    def sin(self) -> LazyTensor:
        """The sine."""
        return self._apply("Sin")

    def cos(self) -> LazyTensor:
        """The cosine."""
        return self._apply("Cos")

    def sinxdivx(self) -> LazyTensor:
        """sin(x)/x, 1 at 0."""
        return self._apply("SinXDivX")

    def asin(self) -> LazyTensor:
        """The arc sine."""
        return self._apply("Asin")

    def acos(self) -> LazyTensor:
        """The arc cosine."""
        return self._apply("Acos")

    def atan(self) -> LazyTensor:
        """The arc tangent."""
        return self._apply("Atan")

    def sqrt(self) -> LazyTensor:
        """The square root; its derivative at 0 counts as 0."""
        return self._apply("Sqrt")

    def rsqrt(self) -> LazyTensor:
        """1/√x, 0 at 0."""
        return self._apply("Rsqrt")

    def square(self) -> LazyTensor:
        """x·x."""
        return self._apply("Square")

    def sign(self) -> LazyTensor:
        """1, -1, or 0 at 0."""
        return self._apply("Sign")

    def step(self) -> LazyTensor:
        """0 below 0, else 1."""
        return self._apply("Step")

    def relu(self) -> LazyTensor:
        """0 below 0, else x."""
        return self._apply("ReLU")

    def sinc(self) -> LazyTensor:
        """sin(πx)/(πx), 1 at 0."""
        return self._apply("Mult", float(np.pi)).sinxdivx()

    def atan2(self, other: Any) -> LazyTensor:
        """The angle of the point (other, self)."""
        return self._apply("Atan2", other)

    def clamp(self, low: Any, high: Any) -> LazyTensor:
        """x cut to low … high."""
        if type(low) is int and type(high) is int:
            return self._apply("ClampInt", params=(low, high))
        return self._apply("Clamp", low, high)

    def ifelse(self, a: Any, b: Any) -> LazyTensor:
        """a where x >= 0, b elsewhere."""
        return self._apply("IfElse", a, b)

    def mod(self, modulus: Any, offset: Any = 0) -> LazyTensor:
        """x less a multiple of the modulus, in [offset, offset + modulus)."""
        return self._apply("Mod", modulus, offset)

    def round(self, decimals: int = 0) -> LazyTensor:
        """Rounded to so many decimals, halves away from zero."""
        return self._apply("Round", params=(decimals,))

    # ── vectors ───────────────────────────────────────────────────────────────────────────────────

    def sqnorm2(self) -> LazyTensor:
        """The squared Euclidean norm of the vector axis."""
        return self._apply("SqNorm2")

    def norm2(self) -> LazyTensor:
        """The Euclidean norm of the vector axis."""
        return self._apply("Norm2")

    def norm(self, dim: int = -1) -> LazyTensor:
        """The Euclidean norm of the vector axis."""
        if dim not in (-1, self.dim() - 1):
            raise AxisError(f"norm is taken along the vector axis, -1 or {self.dim() - 1}, not {dim}")
        return self.norm2()

    def normalize(self) -> LazyTensor:
        """The vector divided by its norm; a zero vector stays zero."""
        return self._apply("Normalize")

    def sqdist(self, other: Any) -> LazyTensor:
        """The squared Euclidean distance."""
        return self._apply("SqDist", other)

    def weightedsqnorm(self, weight: Any) -> LazyTensor:
        """The squared norm under a weight: a scalar, one number per entry, or a D × D matrix."""
        return lift(weight, "weightedsqnorm")._apply("WeightedSqNorm", self)

    def weightedsqdist(self, other: Any, weight: Any) -> LazyTensor:
        """The squared distance under a weight."""
        return self._apply("Subtract", other).weightedsqnorm(weight)

    def elem(self, index: int) -> LazyTensor:
        """One entry of the vector."""
        if type(index) is not int or not 0 <= index < self.expr.dim:
            raise DimensionError(f"the entry {index!r} of a vector is an int from 0 to {self.expr.dim - 1}")
        return self._apply("Elem", params=(index,))

    def extract(self, start: int, length: int) -> LazyTensor:
        """So many entries of the vector."""
        if type(start) is not int or type(length) is not int:
            raise FormulaError(f"extract takes two ints, not {start!r} and {length!r}")
        return self._apply("Extract", params=(start, length))

    def one_hot(self, length: int) -> LazyTensor:
        """A vector with 1 at the place that this scalar, rounded, names."""
        return self._apply("OneHot", params=(length,))

    def concat(self, other: LazyTensor) -> LazyTensor:
        """The two vectors end to end."""
        return self._apply("Concat", need(other, "concat"))

    def difference_matrix(self, other: Any) -> LazyTensor:
        """All D × D' differences of an entry of this vector and an entry of the other, row by row."""
        other = lift(other, "difference_matrix")
        return self.tensorprod(_ones(other.expr.dim)) - _ones(self.expr.dim).tensorprod(other)

    @staticmethod
    def concatenate(parts: Sequence[LazyTensor], axis: int = -1) -> LazyTensor:
        """Vectors end to end: a tuple or list of LazyTensors."""
        if not isinstance(parts, tuple | list) or not parts:
            raise FormulaError("concatenate takes a tuple of at least one LazyTensor")
        first = need(parts[0], "concatenate")
        if axis not in (-1, first.dim() - 1):
            raise AxisError(f"concatenate joins along the vector axis, -1 or {first.dim() - 1}, not {axis}")
        for part in parts[1:]:
            first = first.concat(part)
        return first

    @staticmethod
    def cat(parts: Sequence[LazyTensor], dim: int) -> LazyTensor:
        """`concatenate`, with the name of its axis in torch."""
        return Operations.concatenate(parts, dim)

    # ── matrices and tensors, flattened row by row ────────────────────────────────────────────────

    def matvecmult(self, other: LazyTensor) -> LazyTensor:
        """This matrix times a vector."""
        return self._apply("MatVecMult", need(other, "matvecmult"))

    def vecmatmult(self, other: LazyTensor) -> LazyTensor:
        """This vector times a matrix."""
        return self._apply("VecMatMult", need(other, "vecmatmult"))

    def tensorprod(self, other: LazyTensor) -> LazyTensor:
        """The outer product."""
        return self._apply("TensorProd", need(other, "tensorprod"))

    def keops_tensordot(
        self,
        other: LazyTensor,
        dims: Sequence[int],
        other_dims: Sequence[int],
        axes: Sequence[int],
        other_axes: Sequence[int],
        permutation: Sequence[int] = (),
    ) -> LazyTensor:
        """numpy.tensordot of the two vectors as tensors of the given dims; `permutation` gives the places of the axes kept."""
        params = tuple(tuple(p) for p in (dims, other_dims, axes, other_axes, permutation))
        return self._apply("TensorDot", need(other, "keops_tensordot"), params=params)

    def keops_kron(self, other: LazyTensor, dims: Sequence[int], other_dims: Sequence[int]) -> LazyTensor:
        """The Kronecker product of the two vectors as tensors of the given dims."""
        return self._apply("Kron", need(other, "keops_kron"), params=(tuple(dims), tuple(other_dims)))

    def bspline(self, x: Any, k: int = 0) -> LazyTensor:
        """The B-spline basis of degree k over these knots, at the scalar x."""
        return self._apply("BSpline", x, params=(k,))

    def softdtw_sqdist(self, other: Any, gamma: Any) -> LazyTensor:
        """Soft dynamic time warping of two sequences of scalars, with softness gamma."""
        return self._apply("SoftDTW_SqDist", other, gamma)

    # ── complex vectors ───────────────────────────────────────────────────────────────────────────

    def real2complex(self) -> ComplexLazyTensor:
        """The complex vector with these real parts."""
        return self._apply("Real2Complex", result=True)

    def imag2complex(self) -> ComplexLazyTensor:
        """The complex vector with these imaginary parts."""
        return self._apply("Imag2Complex", result=True)

    def exp1j(self) -> ComplexLazyTensor:
        """cos x + i sin x."""
        return self._apply("ComplexExp1j", result=True)

    # ── calculus ──────────────────────────────────────────────────────────────────────────────────

    def grad(self, v: LazyTensor, e: Any) -> LazyTensor:
        """The adjoint of the derivative in v, a LazyTensor of one array that occurs here, applied to e."""
        return self._apply("Grad", _leaf_of(self, v, "grad"), e)

    def diff(self, v: LazyTensor, u: Any) -> LazyTensor:
        """The derivative in the direction u of v."""
        return self._apply("Diff", _leaf_of(self, v, "diff"), u)

    def grad_matrix(self, v: LazyTensor) -> LazyTensor:
        """The Jacobian in v, row by row."""
        return self._apply("GradMatrix", _leaf_of(self, v, "grad_matrix"))

    def divergence(self, v: LazyTensor) -> LazyTensor:
        """The divergence in v."""
        return self._apply("Divergence", _leaf_of(self, v, "divergence"))

    def laplacian(self, v: LazyTensor) -> LazyTensor:
        """The Laplacian in v of a scalar formula."""
        return self._apply("Laplacian", _leaf_of(self, v, "laplacian"))

    def trace_operator(self, v: LazyTensor) -> LazyTensor:
        """The trace of this formula as a linear operator on v."""
        return self._apply("TraceOperator", _leaf_of(self, v, "trace_operator"), 1)

    def factorize(self, other: LazyTensor) -> LazyTensor:
        """The same formula: what occurs twice is always computed once."""
        return self  # type: ignore[return-value]

    def auto_factorize(self) -> LazyTensor:
        """The same formula: what occurs twice is always computed once."""
        return self  # type: ignore[return-value]


def _ones(length: int) -> Any:
    one = constant(1)
    return make(node("SumT", one, params=(length,)) if length > 1 else one, EMPTY)


def _leaf_of(f: Any, v: Any, method: str) -> LazyTensor:
    """v, if it is one array and occurs in f."""
    leaf = need(v, method)
    if leaf.expr.op is not VAR:
        raise FormulaError(f"{method} takes a LazyTensor of one array, not the formula {leaf.expr}")
    if leaf.inputs[0].key not in {held.key for held in f.inputs}:
        raise InputMissing(f"{method}: the LazyTensor of shape {leaf.shape} does not occur in {f.expr}")
    return leaf
