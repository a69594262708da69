"""Nearest neighbours by way of the tensor cores are those of the direct kernel, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from farsum_kernels.backends import reference
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.backends.cuda.layout import DIRECT, FILTER, Gpu, filter_pays
from farsum_kernels.formula.expr import Expr, node
from farsum_kernels.job import RANGES, Extent, Spec, check_arrays
from tests.cuda.cases import Case, gauss, over_distances, points, times
from tests.cuda.driver import EmulatedDriver
from tests.cuda.emulate import ORDERS, Order

pytestmark = pytest.mark.emulated

REDUCTIONS = [("ArgMin", 0), ("Min", 0), ("Min_ArgMin", 0), ("ArgKMin", 3), ("KMin_ArgKMin", 20)]


def run(
    spec: Spec, arrays: Mapping[int, np.ndarray], path: str | None = FILTER, order: Order = "forward"
) -> tuple[Mapping[str, str], tuple[np.ndarray, ...]]:
    launch = Kernel(spec, EmulatedDriver(order), path).launch(arrays, check_arrays(spec, arrays))
    while launch.step() < 1:
        pass
    return launch.words, launch.results()


def agree(
    spec: Spec, arrays: Mapping[int, np.ndarray], gives_up: bool = False, order: Order = "forward"
) -> None:
    """The same bits by way of the filter as without it."""
    words, got = run(spec, arrays, FILTER, order)
    assert ("filter" in words) == gives_up
    assert words["path"] == (DIRECT if gives_up else FILTER)
    for g, w in zip(got, run(spec, arrays, DIRECT)[1], strict=True):
        np.testing.assert_array_equal(g, w)


def reduced(formula: Expr, reduction: str, k: int = 0, axis: int = 1, dtype: str = "float32") -> Spec:
    return Spec(formula, reduction, axis, dtype, k=k)


def normal(m: int, n: int, dim: int, seed: int = 0) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal((rows, dim)).astype(np.float32) for k, rows in enumerate((m, n))}


# Each kernel takes g++ seconds: what is not marked slow does with few of them.
BEST, LIST = over_distances("Min_ArgMin", 40), over_distances("KMin_ArgKMin", 40, k=3)
PRODUCT = reduced(node("Scalprod", *points(40)), "Max_ArgMax")


def test_the_places_are_those_of_the_definition() -> None:
    arrays = normal(150, 500, 40)
    for spec in (BEST, LIST, PRODUCT):
        agree(spec, arrays)
        np.testing.assert_array_equal(run(spec, arrays)[1][1], reference.run(spec, arrays)[1])


@pytest.mark.slow
@pytest.mark.parametrize(("reduction", "k"), REDUCTIONS)
@pytest.mark.parametrize("dim", [17, 100])
def test_every_reduction(reduction: str, k: int, dim: int) -> None:
    agree(over_distances(reduction, dim, k=k), normal(150, 500, dim))


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_threads_changes_no_bit(order: Order) -> None:
    for spec in (BEST, LIST, PRODUCT):
        agree(spec, normal(140, 333, 40), order=order)


@pytest.mark.parametrize("order", ORDERS)
def test_long_vectors_pass_in_chunks(order: Order) -> None:
    agree(over_distances("Min_ArgMin", 136), normal(140, 333, 136), order=order)


@pytest.mark.parametrize(
    "dim", [3, pytest.param(10, marks=pytest.mark.slow), pytest.param(16, marks=pytest.mark.slow)]
)
def test_short_vectors(dim: int) -> None:
    agree(over_distances("Min_ArgMin", dim), normal(150, 500, dim))
    agree(over_distances("KMin_ArgKMin", dim, k=3), close_ones(dim=dim))
    agree(reduced(node("Minus", node("Scalprod", *points(dim))), "ArgMax"), normal(70, 300, dim))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [20, 300])
@pytest.mark.parametrize(
    ("reduction", "axis"), [("ArgMax", 1), ("Min_ArgMin", 0), ("Max", 0), ("ArgKMin", 0)]
)
def test_largest_values_and_the_other_axis(reduction: str, axis: int, dim: int) -> None:
    spec = over_distances(reduction, dim, k=3 if "K" in reduction else 0)
    agree(reduced(spec.formula, reduction, spec.k, axis), normal(140, 261, dim))


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["Max_ArgMax", "ArgMin"])
def test_products_roots_and_signs(reduction: str) -> None:
    x, y = points(40)
    distance, product = node("SqDist", x, y), node("Scalprod", x, y)
    for formula in (
        product,
        node("Minus", product),
        node("Minus", distance),
        node("Norm2", node("Subtract", x, y)),
        node("Minus", node("Norm2", node("Subtract", y, x))),
    ):
        agree(reduced(formula, reduction), normal(70, 300, 40))


@pytest.mark.parametrize("sizes", [(1, 70), (3, 5), (129, 64), (40, 3000), (300, 130)])
def test_odd_sizes_and_splits(sizes: tuple[int, int]) -> None:
    agree(LIST, normal(*sizes, 40))
    agree(BEST, normal(*sizes, 40))


def test_no_columns() -> None:
    arrays = normal(40, 0, 40)
    for g, w in zip(run(BEST, arrays)[1], run(BEST, arrays, DIRECT)[1], strict=True):
        np.testing.assert_array_equal(g, w)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves(dtype: str) -> None:
    spec = over_distances("Min_ArgMin", 48, dtype)
    agree(spec, Case("halves", spec, 140, 300).arrays())


def test_equal_values_go_to_the_smallest_index() -> None:
    rng = np.random.default_rng(1)
    # Whole numbers: distances are exact, and each column stands there eight times.
    y = np.tile(rng.integers(-2, 3, (70, 40)), (8, 1)).astype(np.float32)
    x = np.concatenate([y[:60], rng.integers(-2, 3, (80, 40)).astype(np.float32)])
    for spec in (BEST, LIST, PRODUCT):
        agree(spec, {0: x, 1: y})
        for g, w in zip(run(spec, {0: x, 1: y})[1], reference.run(spec, {0: x, 1: y}), strict=True):
            np.testing.assert_array_equal(g, w)


def close_ones(m: int = 100, n: int = 400, dim: int = 40, apart: float = 1e-3) -> dict[int, np.ndarray]:
    """Columns so near to each other that float16 cannot tell them apart."""
    rng = np.random.default_rng(2)
    middle = rng.standard_normal((6, dim))
    y = middle[rng.integers(0, 6, n)] + apart * rng.standard_normal((n, dim))
    return {0: rng.standard_normal((m, dim)).astype(np.float32), 1: y.astype(np.float32)}


@pytest.mark.parametrize("apart", [1e-3, 1e-5, 1e-7])
def test_values_that_float16_cannot_tell_apart(apart: float) -> None:
    for spec in (BEST, LIST, reduced(node("Norm2", node("Subtract", *points(40))), "ArgMin")):
        agree(spec, close_ones(apart=apart))


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0), (1e6, 0), (1.0, 300.0), (1e-2, 1e3), (1.0, -1e5)])
def test_sizes_and_shifts(scale: float, shift: float) -> None:
    arrays = {k: (a * np.float32(scale) + np.float32(shift)) for k, a in normal(70, 300, 40).items()}
    agree(BEST, arrays)
    if not shift:
        agree(PRODUCT, arrays)


def test_points_far_outside() -> None:
    arrays = normal(70, 300, 40)
    arrays[1][7] *= 1e5
    arrays[0][3] *= 1e5
    agree(BEST, arrays)
    arrays[0] *= 1e3  # rows and columns have scales of their own
    agree(PRODUCT, arrays)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, 1e12])
@pytest.mark.parametrize("side", [0, 1])
def test_what_has_no_bound_is_done_in_full(value: float, side: int) -> None:
    arrays = normal(70, 200, 40)
    arrays[side][11, 3] = value
    agree(BEST, arrays, gives_up=True)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_point_many_times_is_done_in_full(value: float) -> None:
    arrays = {0: np.full((70, 40), value, np.float32), 1: np.full((200, 40), value, np.float32)}
    agree(BEST, arrays, gives_up=True)


def test_a_filter_that_lets_everything_through_gives_up() -> None:
    rng = np.random.default_rng(4)
    # Two small clouds far from each other: the error of a large norm is larger than every distance inside.
    clouds = np.array([[-1.0], [1.0]]) * np.ones((1, 40))
    arrays = {
        k: (clouds[rng.integers(0, 2, size)] + 1e-4 * rng.standard_normal((size, 40))).astype(np.float32)
        for k, size in enumerate((100, 1500))
    }
    agree(BEST, arrays, gives_up=True)


def test_vectors_inside_wider_rows() -> None:
    x, y = points(50)
    for width in (30, 6):
        inner = [node("Extract", v, params=(7, width)) for v in (x, y)]
        agree(reduced(node("SqDist", *inner), "Min_ArgMin"), normal(70, 200, 50))


def test_what_the_filter_is_not_for() -> None:
    driver = EmulatedDriver()
    x, y = points(40)
    for spec in (
        over_distances("ArgMin", 2),
        over_distances("ArgMin", 40, "float64"),
        Spec(times(gauss(40)), "Sum", 1, "float32"),
        reduced(node("Sqrt", node("Scalprod", x, y)), "ArgMin"),
        reduced(node("Add", node("SqDist", x, y), node("Scalprod", x, y)), "ArgMin"),
        reduced(node("Norm2", node("Add", x, y)), "ArgMin"),
    ):
        kernel = Kernel(spec, driver, FILTER)
        assert kernel.bilinear is None and kernel.plan(Extent(100, 100, ())).layout.path == DIRECT


def test_batches_and_ranges_are_done_in_full() -> None:
    batch = {k: np.stack([a, a + 1]) for k, a in normal(40, 70, 40).items()}
    assert run(BEST, batch)[0]["path"] == DIRECT
    blocks = np.array([[0, 70]]), np.array([1]), np.array([[0, 70]])
    ranges = dict(zip(RANGES, (*blocks, *blocks), strict=True))
    assert run(BEST, normal(70, 70, 40) | ranges)[0]["path"] == DIRECT


def test_the_cost_model_filters_where_it_pays() -> None:
    card = Gpu(100, 3e13)
    assert filter_pays(100, 0, 100_000, 100_000, card) and filter_pays(100, 10, 100_000, 1_000_000, card)
    assert not filter_pays(100, 0, 1_000, 1_000, card)  # done before the points are packed
    assert not filter_pays(100, 4_000, 100_000, 10_000, card)  # too many to keep
    assert filter_pays(10, 0, 10**6, 10**6, card) and not filter_pays(3, 0, 10**6, 10**6, card)
    spec = over_distances("ArgMin", 100)
    explained = Kernel(spec, EmulatedDriver(rate=3e13)).plan(Extent(100_000, 100_000, ())).describe()
    assert explained["path"] == FILTER
