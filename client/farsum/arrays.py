"""What a LazyTensor holds: arrays, numbers and places that are filled later, each told apart and recognised again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farsum import tensors
from farsum.handle import Handle
from farsum.tensors import NUMPY, is_tensor
from farsum_kernels.errors import AxisError, DtypeError, OperandError, ShapeError
from farsum_kernels.formula.expr import I, J, P, variable
from farsum_kernels.job import DTYPES, RANGES, dtype_name

Array = NDArray[Any]

_COMPLEX_OF = {"float32": "complex64", "float64": "complex128"}


class Input:
    """One array of a formula: rows of x_i (..., M, D), of y_j (..., N, D), or a parameter (..., D).

    A loose input is a Python number or list: it has no dtype of its own and takes that of the job. A source is
    a complex array whose numbers do not lie side by side: `array` is a copy of it, made anew for each job. Of a
    tensor it is the tensor that was given, of which `array` is a view that autograd knows.
    """

    __slots__ = ("array", "batch", "category", "dim", "home", "key", "loose", "rows", "source")

    def __init__(self, array: Array, category: int, loose: bool = False, source: Array | None = None) -> None:
        self.source = source
        shape = array.shape
        self.array = array
        self.category = category
        self.loose = loose
        self.home: Any = None if loose else NUMPY
        self.dim: int = shape[-1]
        self.rows: int | None = None if category == P else shape[-2]
        self.batch: tuple[int, ...] = tuple(shape[:-1] if category == P else shape[:-2])
        # Equal for two inputs that read the same memory in the same way: they are then one variable.
        self.key: object = id(self)
        if isinstance(array, Handle):
            self.key = id(array.content), shape, array.dtype, category
        elif loose:
            return
        elif isinstance(memory := array if source is None else source, np.ndarray):
            self.key = memory.__array_interface__["data"][0], shape, memory.strides, array.dtype, category
        else:
            # Tensors over one memory may have different histories: only the very same tensor is one variable.
            self.key = "tensor", id(memory), shape, category
            self.home = tensors.home_of(memory)

    @property
    def dtype(self) -> str | None:
        return None if self.loose else dtype_name(self.array.dtype)

    def swapped(self) -> Input:
        """The same rows along the other axis."""
        other = (J, I, P)[self.category]
        return self if self.category == P else Input(self.array, other, self.loose, self.source)

    def of(self, dtype: str, home: Any = NUMPY) -> Array:
        """The array in the dtype of a job; itself, if it has it. Numbers become what the arrays beside them are."""
        if home is not NUMPY:
            found = (
                tensors.constant(self.array, dtype, home) if self.loose else tensors.recast(self.array, dtype)
            )
            return found  # type: ignore[no-any-return]
        if self.source is not None:
            return as_reals(self.source).reshape(self.array.shape).astype(dtype, copy=False)  # type: ignore[no-any-return]
        return self.array if dtype_name(self.array.dtype) == dtype else self.array.astype(dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return Input, (self.array, self.category, self.loose, self.source)


@dataclass(frozen=True, slots=True)
class Slot:
    """A place of a formula for an array that is given when it is called: the variable (index, dim, category)."""

    index: int
    dim: int
    category: int

    rows = None
    batch = ()
    dtype = None
    home = None
    loose = False
    source = None

    @property
    def key(self) -> object:
        return "slot", self.index

    def swapped(self) -> Slot:
        """The same place along the other axis."""
        return Slot(self.index, self.dim, (J, I, P)[self.category])

    def __str__(self) -> str:
        return f"Var({self.index}, {self.dim}, {self.category})"


Held = Input | Slot


def is_number(x: object) -> bool:
    """A Python or NumPy real number; not a bool."""
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)


def is_complex(x: object) -> bool:
    """A complex number, a list that holds one, or a complex array."""
    if isinstance(x, np.ndarray | Handle):
        return bool(x.dtype.kind == "c")
    if is_tensor(x):
        return tensors.is_complex(x)
    if isinstance(x, list | tuple):
        return any(isinstance(v, complex | np.complexfloating) for v in x)
    return isinstance(x, complex | np.complexfloating)


def complex_name(dtype: str | None) -> str | None:
    """The dtype of complex numbers whose parts have a dtype."""
    return None if dtype is None else _COMPLEX_OF[dtype]


def described(x: object) -> str:
    """What an argument is, for a message: the kind of an array too, recognised without importing its library."""
    if isinstance(x, getattr(sys.modules.get("cupy"), "ndarray", ())):
        return "cupy.ndarray (farsum takes NumPy arrays, PyTorch tensors and arrays of JAX: convert it)"
    return type(x).__name__


def checked(x: Any, what: str = "the array") -> Any:
    """The array, if its dtype is one that is computed in."""
    if is_tensor(x):
        return tensors.checked_tensor(x, what)
    if dtype_name(x.dtype) not in DTYPES:
        raise DtypeError(
            f"{what} of shape {x.shape} has dtype {x.dtype}; supported are float16, float32 and float64: "
            f"convert it, e.g. with .astype('float32')"
        )
    return x


def as_reals(x: Any) -> Any:
    """A complex array as interleaved (re, im) pairs, the last axis twice as long; anything else as it is."""
    if is_tensor(x):
        return tensors.as_pairs(x)
    if not isinstance(x, np.ndarray | Handle) or x.dtype.kind != "c":
        return x
    if x.dtype.itemsize > 16:
        raise DtypeError(
            f"an array of shape {x.shape} has dtype {x.dtype}; supported are complex64 and complex128"
        )
    if isinstance(x, np.ndarray):
        x = np.atleast_1d(x)
    parts = np.dtype(f"f{x.dtype.itemsize // 2}")
    try:
        return x.view(parts)
    except ValueError:  # the numbers of a row do not lie side by side
        return np.ascontiguousarray(x).view(parts)


def as_numbers(x: Any) -> Any:
    """Interleaved (re, im) pairs as complex numbers, the last axis half as long."""
    return tensors.from_pairs(x) if is_tensor(x) else x.view(complex_name(x.dtype.name))


def promoted(a: str | None, b: str | None, home: Any = NUMPY, what: str = "a formula") -> str | None:
    """The dtype of a formula over arrays of two dtypes; numbers and lists (None) do not count.

    NumPy's, or JAX's; an error for PyTorch tensors, unless autocast is on.
    """
    if a is None or b is None or a == b:
        return a or b
    if home is not NUMPY:
        return tensors.one_dtype(a, b, what, home)
    return np.promote_types(a, b).name


def loose(values: Any) -> Input:
    """A parameter from Python numbers; complex ones as pairs."""
    if type(values) is float:
        return Input(np.array((values,)), P, loose=True)
    kind = np.complex128 if is_complex(values) else np.float64
    return Input(np.atleast_1d(as_reals(np.asarray(values, kind))), P, loose=True)


def read(x: Any, axis: int | None) -> Held:
    """What the argument of a LazyTensor is, and along which axis it runs; complex arrays as pairs of reals.

    Raises ShapeError, DtypeError, AxisError or OperandError when it can be nothing.
    """
    if type(x) is float and axis is None:
        return loose(x)
    if type(x) is tuple:
        return _symbol(x, axis)
    if isinstance(x, np.ndarray) and type(x) is not np.ndarray and not isinstance(x, np.memmap):
        raise OperandError(f"a LazyTensor is made from a plain NumPy array, not {type(x).__name__}")
    if tensors.is_array(x):
        return read_array(x, axis)
    if isinstance(x, bool | np.bool_) or not (is_number(x) or is_complex(x) or isinstance(x, list)):
        raise OperandError(
            f"a LazyTensor is made from an array, a number or a list of numbers, not {described(x)}"
        )
    if axis not in (None, 2):
        raise AxisError("numbers and lists are parameters; they take no axis")
    if isinstance(x, list) and not (x and all(is_number(v) or is_complex(v) for v in x)):
        raise DtypeError(f"a parameter list holds numbers, at least one; received {x!r}")
    return loose(x)


def _symbol(x: tuple[Any, ...], axis: int | None) -> Slot:
    if axis is not None:
        raise AxisError(f"the symbolic variable {x} says itself what it is; it takes no axis")
    if len(x) != 3 or any(type(v) is not int for v in x):
        raise ShapeError(
            f"a symbolic variable is three ints, (index, dimension, category) with category 0 for i, 1 for j, "
            f"2 for a parameter; received {x!r}. For a parameter vector pass a list"
        )
    variable(*x)  # raises for what cannot be
    return Slot(*x)


def read_array(x: Any, axis: int | None) -> Input:
    """What an array is by its shape, or by the axis that is named."""
    if is_tensor(x):
        held = _read_reals(as_reals(checked(x, "the array" if tensors.is_jax(x) else "the tensor")), axis)
        return Input(held.array, held.category, held.loose, x)
    held = _read_reals(checked(as_reals(x)), axis)
    if x.dtype.kind == "c" and isinstance(x, np.ndarray) and not np.may_share_memory(x, held.array):
        held = Input(held.array, held.category, held.loose, x)
    return held


def _read_reals(x: Any, axis: int | None) -> Input:
    if x.ndim == 2:
        if axis not in (0, 1):
            raise ShapeError(
                f"a 2-D array of shape {tuple(x.shape)} can be rows of x_i or of y_j: write LazyTensor(x[:, None, :]) or "
                f"Vi(x) for x_i, LazyTensor(x[None, :, :]) or Vj(x) for y_j"
            )
        return Input(x, axis)
    if x.ndim < 2:
        if axis not in (None, 2):
            raise AxisError(f"an array of shape {tuple(x.shape)} is a parameter; it takes no axis")
        if 0 in x.shape:
            raise ShapeError("a parameter vector has at least one entry")
        return Input(x.reshape(-1), P)
    if axis is not None:
        raise AxisError(f"an array of shape {tuple(x.shape)} says itself what it is; it takes no axis")
    (*batch, m, n, dim), whole = x.shape, isinstance(x, Handle)
    if m == 1 and n == 1:
        return Input(x.reshape(*batch, dim) if whole else x[..., 0, 0, :], P)
    if n == 1:
        return Input(x.reshape(*batch, m, dim) if whole else x[..., 0, :], I)
    if m == 1:
        return Input(x.reshape(*batch, n, dim) if whole else x[..., 0, :, :], J)
    raise ShapeError(
        f"an array of shape {tuple(x.shape)} is no row of points: x_i has shape (..., M, 1, D), y_j (..., 1, N, D), "
        f"a parameter (..., 1, 1, D)"
    )


def as_ranges(ranges: Sequence[Array] | None) -> dict[int, Array]:
    """The six arrays of a block-sparse reduction at their places among the inputs of a job.

    Raises ShapeError unless there are six, DtypeError unless they hold ints.
    """
    if ranges is None:
        return {}
    if len(ranges) != len(RANGES):
        raise ShapeError(f"ranges holds {len(RANGES)} arrays, not {len(ranges)}")
    held = [np.asarray(tensors.plain(r)) for r in ranges]
    for number, r in enumerate(held):
        if r.dtype.kind not in "iu":
            raise DtypeError(f"ranges[{number}] has dtype {r.dtype}; ranges are ints")
    return {place: np.ascontiguousarray(r, np.int64) for place, r in zip(RANGES, held, strict=True)}
