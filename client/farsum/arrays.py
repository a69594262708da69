"""Arrays as a LazyTensor holds them: what each argument is, and how to recognise it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.errors import DtypeError, ShapeError
from farsum_kernels.formula.expr import I, J, P
from farsum_kernels.job import DTYPES, RANGES, dtype_name

Array = NDArray[Any]


@dataclass(frozen=True, eq=False, slots=True)
class Input:
    """One input of a formula: rows of x_i (..., M, D), of y_j (..., N, D), or a parameter (..., D).

    A loose input is a Python number or list: it has no dtype of its own and takes that of the job.
    """

    array: Array
    category: int
    loose: bool = False

    @property
    def key(self) -> object:
        """Equal for two inputs that read the same memory in the same way: they are then one variable."""
        if self.loose:
            return id(self)
        face = self.array.__array_interface__
        return face["data"][0], self.array.shape, self.array.strides, self.array.dtype.str, self.category

    @property
    def dim(self) -> int:
        return int(self.array.shape[-1])

    @property
    def rows(self) -> int:
        return int(self.array.shape[-2])

    @property
    def batch(self) -> tuple[int, ...]:
        return self.array.shape[: -1 if self.category == P else -2]

    def swapped(self) -> Input:
        """The same rows along the other axis."""
        return Input(self.array, (J, I, P)[self.category], self.loose)


def is_number(x: object) -> bool:
    """A Python or NumPy real number; not a bool."""
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)


def checked(x: Array, what: str = "the array") -> Array:
    """The array, if its dtype is one that is computed in."""
    if dtype_name(x.dtype) not in DTYPES:
        raise DtypeError(
            f"{what} of shape {x.shape} has dtype {x.dtype}; supported are float16, float32 and float64: "
            f"convert it, e.g. with .astype('float32')"
        )
    return x


def as_reals(x: Any) -> Any:
    """A complex array as interleaved (re, im) pairs, the last axis twice as long; anything else as it is."""
    if not isinstance(x, np.ndarray) or x.dtype.kind != "c":
        return x
    return np.ascontiguousarray(x).view(x.real.dtype)


def promoted(a: str | None, b: str | None) -> str | None:
    """The dtype of a formula over arrays of two dtypes: NumPy's; numbers and lists (None) do not count."""
    if a is None or b is None or a == b:
        return a or b
    return np.promote_types(a, b).name


def loose(values: Any) -> Input:
    """A parameter from Python numbers."""
    return Input(np.atleast_1d(np.asarray(values, np.float64)), P, loose=True)


def as_ranges(ranges: Sequence[Array] | None) -> dict[int, Array]:
    """The six arrays of a block-sparse reduction at their places among the inputs of a job.

    Raises ShapeError unless there are six, DtypeError unless they hold ints.
    """
    if ranges is None:
        return {}
    if len(ranges) != len(RANGES):
        raise ShapeError(f"ranges holds {len(RANGES)} arrays, not {len(ranges)}")
    held = [np.asarray(r) for r in ranges]
    for number, r in enumerate(held):
        if r.dtype.kind not in "iu":
            raise DtypeError(f"ranges[{number}] has dtype {r.dtype}; ranges are ints")
    return {place: np.ascontiguousarray(r, np.int64) for place, r in zip(RANGES, held, strict=True)}
