"""Culled jobs on a device: block-sparse kernels on sorted points, with the answers of the full loop."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from farsum_kernels.backends import culling, reference
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.formula.expr import I, J, constant, node, variable
from farsum_kernels.job import Extent, Spec, check_arrays
from tests.cuda.cases import over_distances, times
from tests.cuda.driver import EmulatedDriver
from tests.cuda.emulate import ORDERS, Order

pytestmark = pytest.mark.emulated

M, N = 2000, 2300


@pytest.fixture(autouse=True)
def _small_jobs_are_culled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culling, "large_enough", lambda kernel, over_j: True)
    monkeypatch.setattr(culling, "WORTH", 0.99)


def narrow(dim: int, scale: float) -> Spec:
    """A Gaussian sum of which almost every term underflows."""
    distance = node("SqDist", variable(0, dim, I), variable(1, dim, J))
    decay = node("Exp", node("Minus", node("Mult", constant(scale), distance)))
    return Spec(times(decay), "Sum", 1, "float32")


def cloud(rows: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, dim)).astype(np.float32)


def inputs(dim: int) -> dict[int, np.ndarray]:
    return {0: cloud(M, dim, 0), 1: cloud(N, dim, 1), 2: cloud(N, 1, 2)}


def run(
    spec: Spec, arrays: Mapping[int, np.ndarray], order: Order = "forward"
) -> tuple[Mapping[str, str], tuple[np.ndarray, ...]]:
    held = {n: arrays[n] for n in spec.inputs}
    launch = Kernel(spec, EmulatedDriver(order)).launch(held, check_arrays(spec, held))
    while launch.step() < 1:
        pass
    return launch.words, launch.results()


def in_full(spec: Spec, arrays: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
    launch = Kernel(spec, EmulatedDriver()).bind(arrays, check_arrays(spec, arrays))
    while launch.step() < 1:
        pass
    return launch.results()


@pytest.mark.parametrize("order", ORDERS)
def test_sums_of_what_underflows(order: Order) -> None:
    spec, arrays = narrow(2, 3e4), inputs(2)
    words, (got,) = run(spec, arrays, order)
    assert float(words["culled"].rstrip("%")) > 20
    np.testing.assert_allclose(got, reference.run(spec, {n: a.astype(np.float64) for n, a in arrays.items()})[0],
                               rtol=1e-4, atol=1e-6)  # fmt: skip
    np.testing.assert_allclose(got, in_full(spec, arrays)[0], rtol=3e-6)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("reduction", "k"), [("Min", 0), ("ArgMin", 0), ("Min_ArgMin", 0), ("KMin_ArgKMin", 5), ("KMin", 20)]
)
def test_nearest_neighbours_are_those_of_the_full_loop(reduction: str, k: int, axis: int) -> None:
    spec = over_distances(reduction, 2, k=k)
    spec = Spec(spec.formula, reduction, axis, "float32", k=k)
    arrays = {n: a for n, a in inputs(2).items() if n < 2}
    words, got = run(spec, arrays)
    assert "culled" in words
    for g, w in zip(got, in_full(spec, arrays), strict=True):
        np.testing.assert_array_equal(g, w)


def test_equal_distances_go_to_the_first_index() -> None:
    grid = np.random.default_rng(5).integers(0, 40, (N, 2)).astype(np.float32)
    spec, arrays = over_distances("ArgKMin", 2, k=3), {0: grid[:M], 1: grid}
    words, (got,) = run(spec, arrays)
    assert "culled" in words
    np.testing.assert_array_equal(got, in_full(spec, arrays)[0])
    np.testing.assert_array_equal(got, reference.run(spec, arrays)[0])


def test_values_that_are_not_numbers() -> None:
    arrays = inputs(2)
    arrays[0][17], arrays[1][5, 1], arrays[1][800], arrays[2][3] = np.nan, np.nan, np.inf, np.inf
    spec = over_distances("Min", 2)
    held = {n: arrays[n] for n in (0, 1)}
    np.testing.assert_array_equal(run(spec, held)[1][0], in_full(spec, held)[0])
    spec = narrow(2, 3e4)
    got, want = run(spec, arrays)[1][0], in_full(spec, arrays)[0]
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    assert not np.isfinite(want).all()


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes(dtype: str) -> None:
    spec = over_distances("Min_ArgMin", 2, dtype)
    arrays = {n: inputs(2)[n].astype(dtype) for n in (0, 1)}
    words, got = run(spec, arrays)
    assert "culled" in words
    for g, w in zip(got, in_full(spec, arrays), strict=True):
        np.testing.assert_array_equal(g, w)


def test_a_device_culls_only_what_takes_longer_than_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    spec = narrow(3, 3e4)
    slow, fast = Kernel(spec, EmulatedDriver(rate=1e11)), Kernel(spec, EmulatedDriver(rate=1e15))
    extent = Extent(100_000, 100_000, ())
    assert culling.large_enough(slow, extent) and not culling.large_enough(fast, extent)
