"""LazyTensor: a formula over rows x_i and y_j that looks like an array and is never built.

Every dimension, dtype, batch and axis error is raised here, when the formula is written, with the
shapes of the user's arrays. Names and conventions follow the KeOps LazyTensor.
"""

from __future__ import annotations

from typing import Any

from farsum.arrays import described
from farsum.lazy import made_from
from farsum.matrix import Matrix
from farsum.operations import Operations
from farsum.reductions import RealReductions
from farsum.tensors import is_array
from farsum_kernels.errors import FormulaError, OperandError, ShapeError
from farsum_kernels.formula.expr import CATEGORIES, I, J, P


class LazyTensor(Operations, Matrix, RealReductions):
    """A symbolic tensor of shape (*batch, M, N, D), written from arrays and evaluated by a reduction.

    Arrays are NumPy's or PyTorch tensors, not both in one formula; what it reduces to is of the same kind.

    x           (..., M, 1, D) rows of x_i; (..., 1, N, D) rows of y_j; (..., 1, 1, D), (D,) or () a parameter;
                a number or list of numbers, also a parameter; a 2-D array together with `axis`; or three ints
                (index, dimension, category), an array that is given when the reduction is called
    axis        0: the rows of a 2-D array are x_i; 1: they are y_j
    is_complex  the symbolic variable holds complex numbers; its dimension counts reals

    Of complex numbers it makes a ComplexLazyTensor. Raises ShapeError, DtypeError, AxisError or
    OperandError when x can be none of these.

    >>> import numpy as np
    >>> x = np.random.rand(5, 3); y = np.random.rand(7, 3)
    >>> D_ij = ((LazyTensor(x[:, None, :]) - LazyTensor(y[None, :, :])) ** 2).sum(-1)
    >>> D_ij.shape
    (5, 7)
    >>> D_ij.argmin(axis=1).shape
    (5, 1)
    """

    __slots__ = ()
    is_complex = False

    def __new__(cls, x: Any = None, axis: int | None = None, is_complex: bool = False) -> Any:
        return made_from(x, axis, is_complex)


def Var(x_or_ind: Any, dim: int | None = None, cat: int | None = None) -> Any:
    """An array along the axis `cat` (0 for i, 1 for j, 2 for a parameter), or a symbolic variable by its index."""
    if cat not in CATEGORIES:
        raise FormulaError(f"the category of a variable is 0 (i), 1 (j) or 2 (parameter), not {cat!r}")
    name = CATEGORIES[cat]
    if dim is not None:
        if type(x_or_ind) is not int or type(dim) is not int:
            raise ShapeError(
                f"{name}(index, dimension) takes two ints; for an array write {name}(x) alone: its last axis says "
                f"its dimension"
            )
        return made_from((x_or_ind, dim, cat))
    if cat == P:
        if is_array(x_or_ind) and x_or_ind.ndim > 1:
            raise ShapeError(f"Pm takes one vector; received an array of shape {tuple(x_or_ind.shape)}")
        return made_from(x_or_ind)
    if type(x_or_ind) is int:
        raise ShapeError(f"a symbolic variable needs its dimension: write {name}({x_or_ind}, D)")
    array = is_array(x_or_ind)
    if not array or x_or_ind.ndim != 2:
        what = f"an array of shape {tuple(x_or_ind.shape)}" if array else described(x_or_ind)
        error = ShapeError if array or isinstance(x_or_ind, float | list) else OperandError
        many = array and x_or_ind.ndim > 2
        raise error(
            f"{name} takes a 2-D array of points, one per row; received {what}"
            f"{', which says itself what it is: write LazyTensor(x)' if many else ''}"
        )
    return made_from(x_or_ind, axis=cat)


def Vi(x_or_ind: Any, dim: int | None = None) -> Any:
    """Rows x_i: from an array (M, D), or the symbolic variable (index, dim).

    >>> import numpy as np
    >>> Vi(np.zeros((5, 3))).shape, Vi(0, 3).shape
    ((5, 1, 3), (1, 1, 3))
    """
    return Var(x_or_ind, dim, I)


def Vj(x_or_ind: Any, dim: int | None = None) -> Any:
    """Rows y_j: from an array (N, D), or the symbolic variable (index, dim)."""
    return Var(x_or_ind, dim, J)


def Pm(x_or_ind: Any, dim: int | None = None) -> Any:
    """A parameter: from a number, a list, a 0-D or 1-D array, or the symbolic variable (index, dim)."""
    return Var(x_or_ind, dim, P)
