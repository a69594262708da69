"""PyTorch tensors: recognised without importing PyTorch, read as NumPy arrays and made from them.

Knows no formula. What differentiates is in `farsum.autograd`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from enum import Enum
from functools import wraps
from inspect import signature
from typing import Any

import numpy as np

from farsum.handle import Handle
from farsum_kernels.errors import DtypeError, OperandError
from farsum_kernels.job import DTYPES, dtype_name

Tensor = Any  # a torch.Tensor: the name of its class is not there before torch is


class Home(Enum):
    """Where arrays are that are no tensors. Tensors are on a torch.device."""

    NUMPY = "numpy"


NUMPY = Home.NUMPY


def is_tensor(x: object) -> bool:
    """Whether x is a PyTorch tensor, a Parameter for instance. Imports nothing."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, getattr(torch, "Tensor", ()))


def is_array(x: object) -> bool:
    """A NumPy array, a handle to one, or a tensor."""
    return isinstance(x, np.ndarray | Handle) or is_tensor(x)


def among(values: Iterable[object]) -> bool:
    """Whether one of the values is a tensor."""
    kind = getattr(sys.modules.get("torch"), "Tensor", None)
    return kind is not None and any([isinstance(x, kind) for x in values])


def home_of(x: Any) -> Any:
    """Where an array is: NUMPY, or the device of a tensor."""
    return x.device if is_tensor(x) else NUMPY


def one_home(a: Any, b: Any, what: str) -> Any:
    """The home of two; None has none.

    Raises OperandError for NumPy arrays beside tensors and for tensors of two devices.
    """
    if a is None or b is None or a == b:
        return b if a is None else a
    if NUMPY in (a, b):
        raise OperandError(
            f"{what} combines NumPy arrays with tensors; farsum.torch takes tensors alone: convert with "
            f"torch.from_numpy(x) or x.numpy()"
        )
    raise OperandError(f"{what} expected all tensors to be on the same device, but found {a} and {b}")


def checked_tensor(x: Tensor, what: str) -> Tensor:
    """The tensor, if it is one that can be read: dense, with numbers, of a dtype that is computed in."""
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
    """The dtype of tensors of two dtypes: an error, as in torch.matmul; under autocast the wider one.

    Raises DtypeError.
    """
    torch = sys.modules["torch"]
    if torch.is_autocast_enabled(home.type):
        return dtype_name(torch.promote_types(getattr(torch, a), getattr(torch, b)))
    raise DtypeError(
        f"{what} expected tensors of the same dtype, but found {a} and {b}: convert one with .to(torch.{a})"
    )


# ── complex numbers ───────────────────────────────────────────────────────────────────────────────


def as_pairs(x: Tensor) -> Tensor:
    """A complex tensor as interleaved (re, im) pairs, the last axis twice as long; recorded by autograd."""
    if not x.dtype.is_complex:
        return x
    x = x.reshape(1) if x.ndim == 0 else x
    return sys.modules["torch"].view_as_real(x.resolve_conj()).flatten(-2)


def from_pairs(x: Tensor) -> Tensor:
    """Interleaved (re, im) pairs as a complex tensor, the last axis half as long; recorded by autograd."""
    return sys.modules["torch"].view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())


# ── to NumPy and back ─────────────────────────────────────────────────────────────────────────────


def to_numpy(x: Tensor) -> np.ndarray[Any, Any]:
    """The numbers of a tensor, its own memory on the CPU; bfloat16 as the bits of it, uint16."""
    torch = sys.modules["torch"]
    if x.dtype is torch.bfloat16:
        x = x.detach().view(torch.uint16)
    return x.numpy(force=True)  # type: ignore[no-any-return]


def to_tensor(x: np.ndarray[Any, Any], dtype: str, device: Any) -> Tensor:
    """A tensor over the memory of an array, or a copy of it on another device; bfloat16 from its bits."""
    torch = sys.modules["torch"]
    made = torch.from_numpy(x)
    if dtype == "bfloat16" and x.dtype == np.uint16:
        made = made.view(torch.bfloat16)
    return made if device.type == "cpu" else made.to(device)


def recast(x: Any, dtype: str) -> Any:
    """An array or a tensor in another dtype; itself, if it has it."""
    if dtype_name(x.dtype) == dtype:
        return x
    return x.to(getattr(sys.modules["torch"], dtype)) if is_tensor(x) else x.astype(dtype)


def constant(x: np.ndarray[Any, Any], dtype: str, device: Any) -> Tensor:
    """Numbers of the formula as a tensor."""
    torch = sys.modules["torch"]
    return torch.as_tensor(x, dtype=getattr(torch, dtype), device=device)


def plain(x: Any) -> Any:
    """What was given as index, mask, range or label: a tensor as a NumPy array, anything else as it is."""
    return to_numpy(x) if is_tensor(x) else x


def broadcast(x: Any, shape: tuple[int, ...]) -> Any:
    """A view that is broadcast to a shape."""
    return x.expand(shape) if is_tensor(x) else np.broadcast_to(x, shape)


def repeated(x: Any, shape: tuple[int, ...]) -> Any:
    """A copy that is broadcast to a shape."""
    view = broadcast(x, shape)
    return view.clone() if is_tensor(x) else view.copy()


def rows_of(x: Any, chosen: Any) -> Any:
    """These rows of (..., rows, D): a slice or an array of indices."""
    if not is_tensor(x):
        return x[..., chosen, :]
    if isinstance(chosen, slice):
        chosen = np.arange(*chosen.indices(x.shape[-2]))
    return x.index_select(-2, sys.modules["torch"].as_tensor(chosen, device=x.device))


def in_order(x: Tensor, order: np.ndarray[Any, Any], flipped: bool = False) -> Tensor:
    """x[order] along the first axis; order[x] when flipped."""
    places = sys.modules["torch"].as_tensor(order, device=x.device)
    return places[x] if flipped else x[places]


def joined(parts: list[Any]) -> Any:
    """Arrays or tensors end to end along the last axis."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, -1)
    return sys.modules["torch"].cat(parts, -1)


def zeros_like(x: Any, shape: tuple[int, ...] | None = None) -> Any:
    """Zeros like an array or a tensor, of its shape or another."""
    if isinstance(x, np.ndarray):
        return np.zeros(x.shape if shape is None else shape, x.dtype)
    return x.new_zeros(x.shape if shape is None else shape)


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
        real = next((x.dtype for x in given if x.dtype.is_floating_point), None)
        return _made(found, given[0].device, real)

    return on_either


def _read(x: Any) -> Any:
    if isinstance(x, tuple | list):
        return type(x)(map(_read, x))
    if is_tensor(x) and dtype_name(x.dtype) == "bfloat16":
        x = x.float()
    return plain(x)


def _made(found: Any, device: Any, real: Any) -> Any:
    if isinstance(found, tuple | list):
        return type(found)(_made(x, device, real) for x in found)
    made = sys.modules["torch"].from_numpy(np.ascontiguousarray(found)).to(device)
    return made.to(real) if made.dtype.is_floating_point and real is not None else made
