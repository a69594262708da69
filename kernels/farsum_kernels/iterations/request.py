"""What an iteration asks for: products of an operator that it never sees. Whoever drives it computes them.

An iteration is a generator: it yields requests, is sent the products, and returns what it has found. So the same
numbers come from a matrix at hand, from calls to a server, and from the kernels of that server.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.errors import DtypeError, ShapeError

Array = NDArray[Any]
Operator = Callable[[Array], Array]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Product:
    """The operator times a vector, an array of the shape and dtype of the right-hand side.

    rows, columns   a part of the operator: the places of its rows and columns, None for all
    share           how far the iteration is, 0 to 1
    """

    vector: Array
    share: float = 0.0
    rows: Array | None = None
    columns: Array | None = None


Iteration = Generator[Product, Array, T]


def driven(iteration: Iteration[T], product: Callable[[Product], Array]) -> T:
    """What an iteration finds when each product is computed by a function."""
    try:
        request = next(iteration)
        while True:
            request = iteration.send(product(request))
    except StopIteration as found:
        value: T = found.value
        return value


def dot(u: Array, v: Array) -> float:
    return float(np.vdot(u, v).real)


def wide(b: Array) -> np.dtype[Any]:
    """The dtype that scalars and carried vectors are held in."""
    return np.result_type(b.dtype, np.float64)


def like(x: Any, b: Array, what: str = "the operator gives an array that") -> Array:
    """x as an array to compute with in float64. Raises ShapeError or DtypeError if it is not like b."""
    x = np.asarray(x)
    if x.shape != b.shape:
        raise ShapeError(f"{what} has shape {x.shape} where the right-hand side has {b.shape}")
    if x.dtype.kind not in "fiu" + "c" * (b.dtype.kind == "c"):
        raise DtypeError(f"{what} has dtype {x.dtype} where the right-hand side has {b.dtype}")
    held: Array = x.astype(wide(b), copy=False)
    return held


def ridged(vector: Array, product: Array, ridge: float) -> Array:
    """ridge·p + product, added in float64."""
    return ridge * vector.astype(wide(vector)) + product if ridge else product


def fallen(first: float, now: float, target: float) -> float:
    """How far a residual has fallen towards a target, on a scale of logarithms, 0 to 1."""
    if not (0 < target < now < first < np.inf):
        return 0.0
    return float(np.log(first / now) / np.log(first / target))
