"""Eigenvalues of a lazy matrix: the object behind `LazyTensor.eigsh`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from farsum.arrays import Array, Input, Slot, is_number
from farsum.lazy import make, of_input
from farsum.systems import found
from farsum.tensors import NUMPY, is_tensor, plain, recast, to_tensor
from farsum_kernels.errors import FormulaError, ShapeError
from farsum_kernels.formula.expr import J
from farsum_kernels.program import ENDS, MAX_EIGENVALUES, Eigen

# Products at most, for each vector that an unrestarted iteration would hold.
PRODUCTS_EACH = 100


def eigsh(
    lazy: Any, k: Any, which: Any, tol: Any, max_products: Any, seed: int, deadline_s: float | None
) -> tuple[Array, Array]:
    """The eigenvalues (k,) and eigenvectors (N, k). See `LazyTensor.eigsh`."""
    n = _points(lazy)
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= min(n, MAX_EIGENVALUES):
        raise FormulaError(
            f"k is a number of eigenvalues from 1 to {min(n, MAX_EIGENVALUES)} here, not {k!r:.80}"
        )
    if which not in ENDS:
        raise FormulaError(f"which is one of {', '.join(ENDS)}, not {which!r:.40}")
    if not is_number(tol) or not 0 <= tol < 1:
        raise FormulaError(f"tol is a number from 0 to below 1, not {tol!r:.40}")
    cap = PRODUCTS_EACH * (2 * int(k) + 20) if max_products is None else max_products
    if isinstance(cap, bool) or not isinstance(cap, int | np.integer) or cap < 1:
        raise FormulaError(f"max_products is a count from 1, or None, not {max_products!r:.80}")
    dtype, home = lazy.frame.dtype, lazy.frame.home
    if home is not NUMPY:
        return _of_tensors(lazy, k, which, tol, max_products, seed, deadline_s)
    tolerance = float(tol) or 4 * float(np.finfo(dtype).eps)
    reduced = (lazy * of_input(Slot(0, 1, J)))._reduce("Sum", 1, call=False)
    start = np.random.default_rng(seed).standard_normal((n, 1)).astype(dtype)
    arrays, dtype, _ = reduced._arranged((start,))
    place = reduced.frame.inputs.index(reduced.slots[0])
    rule = Eigen(place, int(k), which, tolerance, int(cap))
    values, vectors = found(reduced.computation, arrays, dtype, rule, reduced.ranges, deadline_s)
    # In a program arrays keep two axes.
    return values[:, 0] if isinstance(values, np.ndarray) else values, vectors


def _of_tensors(lazy: Any, *options: Any) -> tuple[Any, Any]:
    """The same of tensors: tensors. The eigenvalues have a first derivative."""
    from farsum.eigenvalues import differentiated

    frame, home = lazy.frame, lazy.frame.home
    dtype = "float32" if frame.dtype in ("float16", "bfloat16") else frame.dtype
    places = [n for n, h in enumerate(frame.inputs) if is_tensor(h.array)]

    def standing_on(arrays: Sequence[Any], **changes: Any) -> Any:
        inputs = list(frame.inputs)
        for n, array in zip(places, arrays, strict=True):
            inputs[n] = Input(array, inputs[n].category, inputs[n].loose)
        return make(lazy.expr, frame.but(inputs=tuple(inputs), **changes))

    def find() -> tuple[Any, Any]:
        arrays = [plain(recast(frame.inputs[n].array, dtype)) for n in places]
        values, vectors = eigsh(standing_on(arrays, dtype=dtype, home=NUMPY), *options)
        return tuple(recast(to_tensor(x, dtype, home), frame.dtype) for x in (values, vectors))

    def product(tensors: Sequence[Any], vectors: Any) -> Any:
        return standing_on(tensors) @ vectors

    return differentiated(find, product, [frame.inputs[n].array for n in places])


def _points(lazy: Any) -> int:
    if lazy.is_complex or lazy.expr.dim != 1:
        raise ShapeError(f"eigsh needs a real scalar matrix; this LazyTensor has shape {lazy.shape}")
    if lazy.frame.slots or lazy.frame.batch:
        raise FormulaError("eigsh needs arrays without a batch, and no symbolic variables")
    if lazy.ni is None or lazy.ni != lazy.nj:
        raise ShapeError(f"eigsh needs as many rows as columns; there are {lazy.ni} and {lazy.nj}")
    return int(lazy.ni)
