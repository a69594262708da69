"""How tests run a job: on the definition, on the CPU backend, or on both."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from farsum_kernels.backends import reference
from farsum_kernels.formula.expr import Expr, I, J, P, node, variable
from farsum_kernels.job import Spec
from farsum_server.worker import Worker

BACKENDS = ("reference", "cpu")


@cache
def worker(threads: int = 2) -> Worker:
    return Worker(threads)


def run(backend: str, spec: Spec, arrays: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
    if backend == "reference":
        return reference.run(spec, arrays)
    job = worker().start(spec, arrays)
    while job.step() < 1:
        pass
    return job.finish()


def close(got: np.ndarray, want: np.ndarray, dtype: str, factor: float = 1.0) -> None:
    """Equal up to the rounding of the dtype, relative to the largest value; NaN and infinities in place."""
    assert got.shape == want.shape, f"shape {got.shape}, wanted {want.shape}"
    finite = np.isfinite(want)
    scale = np.abs(want[finite]).max(initial=1e-30)
    tolerance = {"float32": 4e-6, "float64": 4e-14}[dtype] * factor * scale
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


def on_pairs(op: str, dims: tuple[int, ...], params: tuple[Any, ...] = ()) -> Expr:
    """op over variables that alternate between x_i and y_j."""
    categories = (I, J, P)
    args = [variable(n, d, categories[n]) for n, d in enumerate(dims)]
    return node(op, *args, params=params)
