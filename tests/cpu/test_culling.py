"""Culling leaves out what adds nothing, and nothing else: the answers are those of the full loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from farsum.numpy import Pm, Vi, Vj
from farsum_kernels.backends import culling
from farsum_kernels.backends.cpu.kernel import Kernel
from farsum_kernels.backends.cpu.native import machine
from farsum_kernels.formula.expr import variables
from farsum_kernels.formula.lower import Want, lower
from farsum_kernels.job import Extent, Spec

rng = np.random.default_rng(0)
M, N = 11_000, 13_100


def launches(reduced: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The same job culled and in full, both done."""
    dtype = reduced.frame.dtype
    kernel = Kernel(reduced.computation.spec(dtype), machine())
    arrays = reduced._held(dtype)
    m, n = reduced.frame.ni, reduced.frame.nj
    done = []
    monkeypatch.setattr(culling, "POINT_S", 0.0)
    for pairs in (0, 1 << 60):
        monkeypatch.setattr(culling, "MIN_PAIRS", pairs)
        launch = kernel.launch(arrays, Extent(m, n, ()))
        while launch.step() < 1.0:
            pass
        done.append((launch, launch.results()))
    return done[0], done[1]


def agree(reduced: Any, monkeypatch: pytest.MonkeyPatch, rtol: float) -> None:
    (culled, got), (full, want) = launches(reduced, monkeypatch)
    assert "culled" in culled.words and "culled" not in full.words
    assert culled._found.share < culling.WORTH
    for g, w in zip(got, want, strict=True):
        if g.dtype == np.int64:
            np.testing.assert_array_equal(g, w)
        else:
            # A power below the smallest normal number may be zero.
            np.testing.assert_allclose(g, w, rtol=rtol, atol=50 * float(np.finfo(g.dtype).tiny))


def cloud(rows: int, dim: int, dtype: type) -> np.ndarray:
    return rng.random((rows, dim)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@pytest.mark.parametrize("axis", [0, 1])
def test_sums_of_what_underflows(dtype: type, dim: int, axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, b = cloud(M, dim, dtype), cloud(N, dim, dtype), cloud(N, 1, dtype)
    sigma = 0.002 * (0.3 if dtype is np.float64 else 1.0)
    gauss: Any = (-(Vi(x) - Vj(y)).sqnorm2() / (2 * sigma**2)).exp()
    rtol = 3e-6 if dtype is np.float32 else 1e-13
    agree((gauss * Vj(b)).sum(axis=axis, call=False), monkeypatch, rtol)
    laplace: Any = (-(Vi(x) - Vj(y)).norm2() / (sigma / 20)).exp()
    agree(laplace.sum(axis=axis, call=False), monkeypatch, rtol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("axis", [0, 1])
def test_nearest_neighbours(dtype: type, dim: int, axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lazy: Any = Vi(cloud(M, dim, dtype)).sqdist(Vj(cloud(N, dim, dtype)))
    rtol = 4e-7 if dtype is np.float32 else 1e-15
    for reduced in (
        lazy.min(axis=axis, call=False),
        lazy.sqrt().argmin(axis=axis, call=False),
        lazy.min_argmin(axis=axis, call=False),
        lazy.Kmin_argKmin(5, axis=axis, call=False),
    ):
        agree(reduced, monkeypatch, rtol)


@pytest.mark.parametrize("seed", range(3))
def test_equal_values_go_to_the_first_index(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = np.random.default_rng(seed).integers(0, 60, (4_000, 2)).astype(np.float64)  # many distances twice
    lazy: Any = Vi(grid[:3_000]).sqdist(Vj(grid))
    agree(lazy.argmin(axis=1, call=False), monkeypatch, 0)
    agree(lazy.argKmin(7, axis=1, call=False), monkeypatch, 0)


def test_rows_of_equal_values_are_settled_before_the_job_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = np.random.default_rng(3).integers(0, 60, (4_000, 2)).astype(np.float64)
    lazy: Any = Vi(grid[:3_000]).sqdist(Vj(grid))
    (culled, _), _ = launches(lazy.argmin(axis=1, call=False), monkeypatch)
    assert culled._settling.share == 1.0, "in slices, which end with the deadline, not as results are read"


def test_bfloat16_is_decoded_before_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud(M, 2, np.float32) - 0.5, cloud(N, 2, np.float32) - 0.5  # bits of negative numbers sort high
    reduced: Any = (-(Vi(x) - Vj(y)).sqnorm2() / 1e-5).exp().sum(axis=1, call=False)
    spec = reduced.computation.spec("bfloat16")
    held = reduced._held("float32")
    arrays = {n: (a.view(np.uint32) >> 16).astype(np.uint16) for n, a in held.items()}
    found = []
    monkeypatch.setattr(culling, "POINT_S", 0.0)
    for pairs in (0, 1 << 60):
        monkeypatch.setattr(culling, "MIN_PAIRS", pairs)
        launch = Kernel(spec, machine()).launch(arrays, Extent(M, N, ()))
        while launch.step() < 1.0:
            pass
        found.append((launch.words, launch.results()[0]))
    assert "culled" in found[0][0] and "culled" not in found[1][0]
    assert found[1][1].any()
    bits = [values.astype(np.int64) for _, values in found]
    assert np.abs(bits[0] - bits[1]).max() <= 1, "the last bit: sums were added in another order"


@pytest.mark.parametrize(("name", "limit"), [("MAX_TILES", 10), ("MAX_ROWS", N - 1)])
def test_what_is_too_much_to_remember_is_not_culled(
    name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(culling, name, limit)
    monkeypatch.setattr(culling, "AT_ONCE", 1_000)  # so that tiles are grouped
    lazy: Any = (-Vi(cloud(M, 2, np.float32)).sqdist(Vj(cloud(N, 2, np.float32))) / 1e-5).exp()
    (launch, got), (_, want) = launches(lazy.sum(axis=1, call=False), monkeypatch)
    assert "culled" not in launch.words
    np.testing.assert_array_equal(got[0], want[0])


def test_numbers_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, b = cloud(M, 3, np.float32), cloud(N, 3, np.float32), cloud(N, 1, np.float32)
    x[17], y[5, 1], y[800], b[3] = np.nan, np.nan, np.inf, np.inf
    lazy: Any = Vi(x).sqdist(Vj(y))
    agree(lazy.min(axis=1, call=False), monkeypatch, 4e-7)
    gauss: Any = (-lazy / 1e-5).exp() * Vj(b)
    (_, got), (_, want) = launches(gauss.sum(axis=1, call=False), monkeypatch)
    np.testing.assert_array_equal(np.isfinite(got[0]), np.isfinite(want[0]))
    assert not np.isfinite(want[0]).all(), "0 times an infinite weight is NaN, far away too"


def test_parameters_and_shifted_clouds(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud(M, 3, np.float32) + 1000, cloud(N, 3, np.float32) + 1000
    lazy: Any = (-Pm(np.array([4e4], np.float32)) * (Vi(x) - Vj(y)).sqnorm2()).exp()
    agree(lazy.sum(axis=1, call=False), monkeypatch, 3e-6)
    expanded: Any = (
        Vi(x).sqnorm2() + Vj(y).sqnorm2() - 2 * (Vi(x) | Vj(y))
    )  # rounds by far more than it is small
    (_, got), (_, want) = launches(expanded.min(axis=1, call=False), monkeypatch)
    np.testing.assert_array_equal(got[0], want[0])


@pytest.mark.parametrize(
    "write",
    [
        lambda a, b: (a - b).sqnorm2().sin().sum(axis=1, call=False),
        lambda a, b: (-(a - b).sqnorm2()).exp().sum(axis=1, call=False),
        lambda a, b: (-(a - b).sqnorm2()).logsumexp(axis=1, call=False),
        lambda a, b: (a - b).sqnorm2().max(axis=1, call=False),
        lambda a, b: (a - b).sum(axis=1, call=False),
    ],
    ids=["unknown", "wide", "logsumexp", "max", "vectors"],
)
def test_what_is_not_worth_it_or_not_understood(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reduced = write(Vi(cloud(M, 3, np.float32)), Vj(cloud(N, 3, np.float32)))
    (launch, got), (_, want) = launches(reduced, monkeypatch)
    assert "culled" not in launch.words
    np.testing.assert_array_equal(got[0], want[0])


@pytest.mark.parametrize(
    "write",
    [
        lambda a, b: (a - b).sqnorm2(),
        lambda a, b: (a * b - 2 * b).sum(-1).abs(),
        lambda a, b: ((a - 0.5) | b).exp(),
        lambda a, b: (a - b).norm2().sqrt() / (1.5 + b[0]),
        lambda a, b: (a[0] - b[1]).relu() * (-a[1]).exp(),
        lambda a, b: (a[0].sin() + b[0]).square(),
    ],
)
def test_bounds_hold_every_value(write: Any) -> None:
    a, b = rng.normal(size=(40, 3)), rng.normal(size=(50, 3))
    lazy = write(Vi(a), Vj(b))
    program = lower([Want(lazy.expr)], 6)
    boxes: list[Any] = []
    for index, v in variables(lazy.expr).items():
        values = lazy.frame.inputs[index].array
        tiles = (
            values[None, None] if v.params[2] == 2 else values.reshape(10 - 5 * v.params[2], -1, v.params[1])
        )
        boxes.append((tiles.min(axis=1), tiles.max(axis=1)))
    low, high, slack = culling.term_bounds(program, boxes, "float64")
    dense = lazy.dense()
    dense = np.broadcast_to(dense, (40, 50)).reshape(10, 4, 5, 10)
    # Bounds that are NaN say nothing.
    assert (
        not (dense.min(axis=(1, 3)) < low - slack).any() and not (dense.max(axis=(1, 3)) > high + slack).any()
    )


def test_a_job_of_the_engine_is_culled() -> None:
    x = cloud(24_000, 3, np.float32)
    plan = (-Vi(x).sqdist(Vj(x)) / 1e-5).exp().sum(axis=1, call=False)
    spec: Spec = plan.computation.spec("float32")
    launch = Kernel(spec, machine()).launch(plan._held("float32"), Extent(24_000, 24_000, ()))
    assert "culled" in launch.words


def test_a_job_that_is_done_before_its_points_are_sorted_is_not_culled() -> None:
    x, y = (
        cloud(200, 3, np.float32),
        cloud(3_000_000, 3, np.float32),
    )  # few rows: sorting costs more than all pairs
    plan = (-Vi(x).sqdist(Vj(y)) / 1e-5).exp().sum(axis=1, call=False)
    kernel = Kernel(plan.computation.spec("float32"), machine())
    extent = Extent(200, 3_000_000, ())
    assert extent.pairs > culling.MIN_PAIRS and not culling.large_enough(kernel, extent)
