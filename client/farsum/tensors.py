"""Tensors, which are PyTorch's or JAX's: recognised without importing either, read as NumPy arrays and made from them.

Knows no formula. What differentiates is in `farsum.autograd` and `farsum.primitives`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from enum import Enum
from functools import lru_cache, wraps
from inspect import signature
from typing import Any

import numpy as np

from farsum.handle import Handle
from farsum_kernels.errors import DtypeError, OperandError
from farsum_kernels.job import DTYPES, dtype_name

Tensor = (
    Any  # a torch.Tensor or a jax.Array: the names of these classes are not there before their libraries are
)


class Home(Enum):
    """Where arrays are that are on no torch.device. JAX moves its arrays itself."""

    NUMPY = "numpy"
    JAX = "jax"


NUMPY, JAX = Home.NUMPY, Home.JAX


def _named(kind: type) -> str:
    """ "torch" or "jax" for a class of tensors, those that JAX traces with among them, and "" for any other."""
    if issubclass(kind, getattr(sys.modules.get("torch"), "Tensor", ())):
        return "torch"
    jax = sys.modules.get("jax")
    traced = getattr(getattr(jax, "core", None), "Tracer", ())
    return "jax" if issubclass(kind, getattr(jax, "Array", ())) or issubclass(kind, traced) else ""


# A class stays what it is, and nearly every array is looked at.
_library: Callable[[Any], str] = lru_cache(maxsize=1024)(_named)


def is_tensor(x: object) -> bool:
    """Whether x is a PyTorch tensor, a Parameter for instance, or an array of JAX. Imports nothing."""
    return _library(type(x)) != ""


def is_torch(x: object) -> bool:
    """Whether x is a PyTorch tensor."""
    return _library(type(x)) == "torch"


def is_jax(x: object) -> bool:
    """Whether x is an array of JAX, or stands for one under `jit` and the like."""
    return _library(type(x)) == "jax"


def is_array(x: object) -> bool:
    """A NumPy array, a handle to one, or a tensor."""
    return isinstance(x, np.ndarray | Handle) or is_tensor(x)


def is_traced(x: object) -> bool:
    """Whether JAX traces with x: for a derivative, a map or a compilation."""
    return is_jax(x) and isinstance(x, sys.modules["jax"].core.Tracer)


def among(values: Iterable[object]) -> str:
    """The library of the tensors among the values, "torch" or "jax"; "" where there are none."""
    for x in values:
        if library := _library(type(x)):
            return library
    return ""


def home_of(x: Any) -> Any:
    """Where an array is: NUMPY, JAX, or the device of a PyTorch tensor."""
    library = _library(type(x))
    return x.device if library == "torch" else JAX if library else NUMPY


def one_home(a: Any, b: Any, what: str) -> Any:
    """The home of two; None has none.

    NumPy arrays beside arrays of JAX become these, as in jax.numpy. Raises OperandError for NumPy arrays beside
    PyTorch tensors, for tensors of two libraries and of two devices.
    """
    if a is None or b is None or a == b:
        return b if a is None else a
    if JAX in (a, b):
        if NUMPY in (a, b):
            return JAX
        raise OperandError(
            f"{what} combines tensors of PyTorch with arrays of JAX: convert one, e.g. with DLPack"
        )
    if NUMPY in (a, b):
        raise OperandError(
            f"{what} combines NumPy arrays with tensors; farsum.torch takes tensors alone: convert with "
            f"torch.from_numpy(x) or x.numpy()"
        )
    raise OperandError(f"{what} expected all tensors to be on the same device, but found {a} and {b}")


def checked_tensor(x: Tensor, what: str) -> Tensor:
    """The tensor, if it is one that can be read: dense, with numbers, of a dtype that is computed in."""
    if is_jax(x):
        if dtype_name(x.dtype) not in (*DTYPES, "complex64", "complex128"):
            raise DtypeError(
                f"{what} of shape {x.shape} has dtype {x.dtype}; supported are float16, bfloat16, float32, float64, "
                f"complex64 and complex128: convert it, e.g. with .astype('float32')"
            )
        return x
    if x.layout is not sys.modules["torch"].strided or x.device.type == "meta" or x.is_nested:
        kind = x.device.type if x.device.type == "meta" else "nested" if x.is_nested else x.layout
        raise OperandError(f"{what} is a tensor of kind {kind}; it must be dense, with numbers in it")
    if x.dtype.is_complex and x.dtype.itemsize >= 8:
        return x
    if dtype_name(x.dtype) not in DTYPES:
        raise DtypeError(
            f"{what} of shape {tuple(x.shape)} has dtype {x.dtype}; supported are float16, bfloat16, float32, "
            f"float64, complex64 and complex128: convert it, e.g. with .float()"
        )
    return x


def one_dtype(a: str, b: str, what: str, home: Any) -> str:
    """The dtype of tensors of two dtypes: JAX's; in PyTorch an error, as in torch.matmul, under autocast the wider one.

    Raises DtypeError.
    """
    if home is JAX:
        return held_as(str(sys.modules["jax"].numpy.promote_types(a, b)))
    torch = sys.modules["torch"]
    if torch.is_autocast_enabled(home.type):
        return dtype_name(torch.promote_types(getattr(torch, a), getattr(torch, b)))
    raise DtypeError(
        f"{what} expected tensors of the same dtype, but found {a} and {b}: convert one with .to(torch.{a})"
    )


# ── complex numbers ───────────────────────────────────────────────────────────────────────────────


def is_complex(x: Tensor) -> bool:
    """Whether a tensor holds complex numbers."""
    return dtype_name(x.dtype).startswith("complex")


def as_pairs(x: Tensor) -> Tensor:
    """A complex tensor as interleaved (re, im) pairs, the last axis twice as long; recorded by autograd."""
    if not is_complex(x):
        return x
    x = x.reshape(1) if x.ndim == 0 else x
    if is_jax(x):
        return _numpy_of(x).stack([x.real, x.imag], -1).reshape(*x.shape[:-1], 2 * x.shape[-1])
    return sys.modules["torch"].view_as_real(x.resolve_conj()).flatten(-2)


def from_pairs(x: Tensor) -> Tensor:
    """Interleaved (re, im) pairs as a complex tensor, the last axis half as long; recorded by autograd."""
    if is_jax(x):
        return sys.modules["jax"].lax.complex(x[..., 0::2], x[..., 1::2])
    return sys.modules["torch"].view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())


# ── to NumPy and back ─────────────────────────────────────────────────────────────────────────────


def to_numpy(x: Tensor) -> np.ndarray[Any, Any]:
    """The numbers of a tensor, its own memory on the CPU; bfloat16 as the bits of it, uint16.

    Raises OperandError for an array of JAX that has none, under `jit` for instance.
    """
    if is_jax(x):
        return _of_jax(x)
    torch = sys.modules["torch"]
    if x.dtype is torch.bfloat16:
        x = x.detach().view(torch.uint16)
    return x.numpy(force=True)  # type: ignore[no-any-return]


def _of_jax(x: Tensor) -> np.ndarray[Any, Any]:
    known = (
        sys.modules["jax"].lax.stop_gradient(x) if is_traced(x) else x
    )  # `grad` outside `jit` has the numbers
    if is_traced(known):
        raise OperandError(
            f"the numbers of an array of shape {x.shape} are needed, and it is traced by jax.jit, vmap or the like: "
            f"masks, radii, ranges, indices of rows and eigenvalues are found outside of these"
        )
    found: np.ndarray[Any, Any] = np.asarray(known)
    return found.view(np.uint16) if found.dtype == "bfloat16" else found


def to_tensor(x: np.ndarray[Any, Any], dtype: str, home: Any) -> Tensor:
    """A tensor over the memory of an array, or a copy of it on another device; bfloat16 from its bits."""
    if home is JAX:
        return sys.modules["jax"].numpy.asarray(x.view("bfloat16") if dtype == "bfloat16" else x)
    torch = sys.modules["torch"]
    made = torch.from_numpy(x)
    if dtype == "bfloat16" and x.dtype == np.uint16:
        made = made.view(torch.bfloat16)
    return made if home.type == "cpu" else made.to(home)


def held_as(dtype: str) -> str:
    """The dtype in which JAX holds what is computed in a dtype: 32 bits at most, unless jax_enable_x64 is set."""
    return str(sys.modules["jax"].dtypes.canonicalize_dtype(dtype))


def _numpy_of(x: Any) -> Any:
    """The module of functions on arrays like x: numpy or jax.numpy."""
    return sys.modules["jax"].numpy if is_jax(x) else np


def recast(x: Any, dtype: str) -> Any:
    """An array or a tensor in another dtype; itself, if it has it. JAX may hold it in a narrower one, see `held_as`."""
    if dtype_name(x.dtype) == dtype:
        return x
    if is_torch(x):
        return x.to(getattr(sys.modules["torch"], dtype))
    return x.astype(held_as(dtype) if is_jax(x) else dtype)


def constant(x: np.ndarray[Any, Any], dtype: str, home: Any) -> Tensor:
    """Numbers of the formula as a tensor; beside arrays of JAX they may stay NumPy's."""
    if home is JAX:
        return np.asarray(x, dtype)
    torch = sys.modules["torch"]
    return torch.as_tensor(x, dtype=getattr(torch, dtype), device=home)


def plain(x: Any) -> Any:
    """What was given as index, mask, range or label: a tensor as a NumPy array, anything else as it is."""
    return to_numpy(x) if is_tensor(x) else x


def broadcast(x: Any, shape: tuple[int, ...]) -> Any:
    """A view that is broadcast to a shape."""
    return x.expand(shape) if is_torch(x) else _numpy_of(x).broadcast_to(x, shape)


def repeated(x: Any, shape: tuple[int, ...]) -> Any:
    """A copy that is broadcast to a shape."""
    view = broadcast(x, shape)
    return view.clone() if is_torch(x) else view.copy()


def rows_of(x: Any, chosen: Any) -> Any:
    """These rows of (..., rows, D): a slice or an array of indices."""
    if not is_torch(x):
        return x[..., chosen, :]
    if isinstance(chosen, slice):
        chosen = np.arange(*chosen.indices(x.shape[-2]))
    return x.index_select(-2, sys.modules["torch"].as_tensor(chosen, device=x.device))


def in_order(x: Tensor, order: np.ndarray[Any, Any], flipped: bool = False) -> Tensor:
    """x[order] along the first axis; order[x] when flipped."""
    places = (
        sys.modules["torch"].as_tensor(order, device=x.device) if is_torch(x) else _numpy_of(x).asarray(order)
    )
    return places[x] if flipped else x[places]


def joined(parts: list[Any]) -> Any:
    """Arrays or tensors end to end along the last axis."""
    if len(parts) == 1:
        return parts[0]
    if not is_torch(parts[0]):
        return _numpy_of(parts[0]).concatenate(parts, -1)
    return sys.modules["torch"].cat(parts, -1)


def zeros_like(x: Any, shape: tuple[int, ...] | None = None) -> Any:
    """Zeros like an array or a tensor, of its shape or another."""
    if not is_torch(x):
        return _numpy_of(x).zeros(x.shape if shape is None else shape, x.dtype)
    return x.new_zeros(x.shape if shape is None else shape)


def in_front(x: Any, axis: int) -> Any:
    """With an axis, counted from 0, as the first."""
    return x.movedim(axis, 0) if is_torch(x) else _numpy_of(x).moveaxis(x, axis, 0)


def summed_to(x: Any, shape: tuple[int, ...]) -> Any:
    """Summed over the leading axes along which an array of this shape was repeated."""
    if x.shape == shape:
        return x
    lead = x.ndim - len(shape)
    x = x.sum(tuple(range(lead))) if lead else x
    axes = tuple(n for n, (a, b) in enumerate(zip(x.shape, shape, strict=True)) if b == 1 and a != 1)
    return x.sum(axes, keepdims=True) if axes else x


# ── functions of arrays, given tensors ────────────────────────────────────────────────────────────


def on_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which takes tensors too: it sees arrays, and what it gives are tensors again.

    Real results have the dtype of the first real tensor, whole numbers are int64.
    """

    @wraps(function)
    def on_either(*args: Any, **options: Any) -> Any:
        held = [x for a in (*args, *options.values()) for x in (a if isinstance(a, tuple | list) else (a,))]
        given = [x for x in held if is_tensor(x)]
        if not given:
            return function(*args, **options)
        if "min_weight" in signature(function).parameters:
            options.setdefault("min_weight", 1e-9)
        found = function(*map(_read, args), **{name: _read(a) for name, a in options.items()})
        real = next((x.dtype for x in given if "float" in dtype_name(x.dtype)), None)
        return _made(found, home_of(given[0]), real)

    return on_either


def _read(x: Any) -> Any:
    if isinstance(x, tuple | list):
        return type(x)(map(_read, x))
    if is_tensor(x) and dtype_name(x.dtype) == "bfloat16":
        x = recast(x, "float32")
    return plain(x)


def _made(found: Any, home: Any, real: Any) -> Any:
    if isinstance(found, tuple | list):
        return type(found)(_made(x, home, real) for x in found)
    made = to_tensor(np.ascontiguousarray(found), "", home)
    return recast(made, dtype_name(real)) if "float" in dtype_name(made.dtype) and real is not None else made
