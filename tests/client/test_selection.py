"""Reductions over some of the pairs of a LazyTensor: masks, segments, a radius."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum.numpy import LazyTensor, Pm, Vi, Vj
from farsum_kernels.errors import FarsumError, FormulaError, OperandError, ShapeError

mark = pytest.mark
rng = np.random.default_rng(0)
x, y, b = rng.random((5, 3)), rng.random((7, 3)), rng.random((7, 2))
z, w = x + 1j * x[::-1], y - 1j * y[::-1]
xs, ys = rng.random((2, 1, 5, 1, 3)), rng.random((4, 1, 7, 3))
X, Y = x[:, None], y[None]
D2 = ((X - Y) ** 2).sum(-1)
# Any: what the type checker refuses is tried here too.
x_i: Any = Vi(x)
y_j: Any = Vj(y)
K: Any = (-x_i.sqdist(y_j)).exp()
kernel = np.exp(-D2)
V: Any = x_i - y_j
vectors = X - Y
batched: Any = LazyTensor(xs) - LazyTensor(ys)


def only(dense: np.ndarray, seen: np.ndarray, absent: float) -> np.ndarray:
    return np.where(seen, dense, absent)


def indices_of(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The indices, 0 where there is no pair."""
    return np.where(np.isfinite(np.take_along_axis(values, order, 1)), order, 0)


def softmax(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.exp(f) @ g / np.exp(f).sum(1, keepdims=True)


def logsumexp(f: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.exp(f).sum(1, keepdims=True))


INF = np.inf
# Of a matrix F of which the pairs in `seen` take part, along its rows; g is a weight of the columns.
SELECTIVE: dict[str, tuple[Callable[..., Any], Callable[[np.ndarray, np.ndarray, np.ndarray], Any]]] = {
    "sum": (lambda f, g, **o: f.sum(**o), lambda F, s, g: only(F, s, 0).sum(1, keepdims=True)),
    "min": (lambda f, g, **o: f.min(**o), lambda F, s, g: only(F, s, INF).min(1, keepdims=True)),
    "max": (lambda f, g, **o: f.max(**o), lambda F, s, g: only(F, s, -INF).max(1, keepdims=True)),
    "argmin": (lambda f, g, **o: f.argmin(**o), lambda F, s, g: only(F, s, INF).argmin(1)[:, None]),
    "argmax": (lambda f, g, **o: f.argmax(**o), lambda F, s, g: only(F, s, -INF).argmax(1)[:, None]),
    "logsumexp": (lambda f, g, **o: f.logsumexp(**o), lambda F, s, g: logsumexp(only(F, s, -INF))),
    "softmax": (lambda f, g, **o: f.sumsoftmaxweight(g, **o), lambda F, s, g: softmax(only(F, s, -INF), g)),
    "Kmin": (lambda f, g, **o: f.Kmin(3, **o), lambda F, s, g: np.sort(only(F, s, INF), 1)[:, :3]),
    "argKmin": (
        lambda f, g, **o: f.argKmin(3, **o),
        lambda F, s, g: indices_of(only(F, s, INF), np.argsort(only(F, s, INF), 1, kind="stable")[:, :3]),
    ),
}
selective = mark.parametrize("name", list(SELECTIVE))


def check(name: str, f: Any, F: np.ndarray, seen: np.ndarray, **options: Any) -> None:
    """A reduction of f over j, and one over i, against the dense matrix F."""
    lazy, dense = SELECTIVE[name]
    m, n = F.shape
    g_j, g_i = np.linspace(1, 2, n)[:, None], np.linspace(2, 3, m)[:, None]
    got = lazy(f, Vj(g_j), axis=1, **options)
    assert got.dtype == (np.int64 if name.startswith("arg") else np.float64)
    assert_allclose(got, dense(F, seen, g_j), rtol=1e-10)
    assert_allclose(lazy(f, Vi(g_i), axis=0, **options), dense(F.T, seen.T, g_i), rtol=1e-10)


places = np.arange(5)[:, None], np.arange(7)[None]
holes = rng.random((5, 7)) < 0.4
holes[2], holes[:, 4] = False, False
MASKS: list[tuple[Any, np.ndarray]] = [
    ("causal", places[1] <= places[0]), ("lower", places[1] <= places[0]), ("upper", places[1] >= places[0]),
    (("band", 1), abs(places[0] - places[1]) <= 1), (("band", 0), places[0] == places[1]), (("band", 99), np.ones((5, 7), bool)),
    (holes, holes), (np.asfortranarray(holes), holes), (holes.tolist(), holes), (np.zeros((5, 7), bool), np.zeros((5, 7), bool)),
    (lambda i, j: j <= i, places[1] <= places[0]), (lambda i, j: (i + 2 * j) % 3 == 0, (places[0] + 2 * places[1]) % 3 == 0),
    (lambda i, j: holes[i, j], holes),
]  # fmt: skip
MASK_IDS = [
    "causal",
    "lower",
    "upper",
    "band 1",
    "band 0",
    "band 99",
    "array",
    "columns first",
    "list",
    "none",
    "function",
    "modulo",
    "lookup",
]


@selective
@mark.parametrize(("mask", "seen"), MASKS, ids=MASK_IDS)
def test_a_mask_chooses_the_pairs(name: str, mask: Any, seen: np.ndarray) -> None:
    check(name, x_i.sqdist(y_j), D2, seen, mask=mask)


@mark.parametrize(("mask", "seen"), MASKS, ids=MASK_IDS)
def test_masks_of_tall_matrices_vectors_and_transposes(mask: Any, seen: np.ndarray) -> None:
    if not isinstance(mask, str | tuple):
        mask, seen = seen.T, seen.T
    else:
        i, j = np.arange(7)[:, None], np.arange(5)[None]
        width = mask[1] if isinstance(mask, tuple) else 0
        seen = {"upper": j >= i, "band": abs(i - j) <= width}.get(
            mask if isinstance(mask, str) else "band", j <= i
        )
    dense = np.where(seen[..., None], np.swapaxes(vectors, 0, 1), 0)
    assert_allclose(V.T.sum(axis=1, mask=mask), dense.sum(1))
    assert_allclose((Vi(y) - Vj(x)).sum(axis=0, mask=mask), -dense.sum(0))
    later = V.T.sum(axis=1, mask=mask, call=False)
    assert_allclose(later(), dense.sum(1))


def test_masks_of_complex_sums_and_products() -> None:
    got = (Vi(z) * Vj(w)).sum(axis=1, mask=holes)
    assert_allclose(got, np.where(holes[..., None], z[:, None] * w, 0).sum(1))
    assert_allclose(K.matvec(b, mask=holes), np.where(holes, kernel, 0) @ b)


@selective
@mark.parametrize(("rows", "columns"), [([2, 3], [3, 4]), ([2, 0, 3], [3, 2, 2]), ([5], [7]), ([0, 5], [7, 0]), (np.array([1, 4]), (6, 1))], ids=repr)  # fmt: skip
def test_segments_meet_in_pairs(name: str, rows: Any, columns: Any) -> None:
    labels = np.repeat(np.arange(len(rows)), rows)[:, None], np.repeat(np.arange(len(columns)), columns)[None]
    check(name, x_i.sqdist(y_j), D2, labels[0] == labels[1], segments=(rows, columns))


far, near = rng.random((60, 2)), rng.random((80, 2))
FAR2 = ((far[:, None] - near) ** 2).sum(-1)


@selective
@mark.parametrize("radius", [0.0, 0.05, 0.2, 0.7, 9.0])
def test_a_radius_chooses_neighbours(name: str, radius: float) -> None:
    f: Any = Vi(far).sqdist(Vj(near))
    check(name, f, FAR2, np.sqrt(FAR2) <= radius, radius=radius)
    other = np.sin(3 * FAR2)
    check(name, (3 * f).sin(), other, np.sqrt(FAR2) <= radius, radius=radius)


@selective
@mark.parametrize("dim", [1, 3, 10])
def test_a_radius_around_points_that_are_named(name: str, dim: int) -> None:
    p, q = rng.random((60, dim)), rng.random((80, dim))
    distance = np.sqrt(((p[:, None] - q) ** 2).sum(-1))
    radius = float(np.quantile(distance, 0.1))
    u, v = rng.random((60, 2)), rng.random((80, 2))
    check(name, Vi(u) | Vj(v), u @ v.T, distance <= radius, radius=(radius, Vi(p), Vj(q)))


def test_a_radius_of_nothing_sees_the_same_points() -> None:
    f: Any = Vi(far).sqdist(Vj(far))
    assert_array_equal((f + 1).sum(axis=1, radius=0), np.ones((60, 1)))
    assert_array_equal(f.argmin(axis=1, radius=0)[:, 0], np.arange(60))


def test_a_radius_with_vectors_dtypes_and_later_calls() -> None:
    seen = np.sqrt(FAR2) <= 0.3
    lazy: Any = Vi(far) - Vj(near)
    want = np.where(seen[..., None], far[:, None] - near, 0)
    assert_allclose(lazy.sum(axis=1, radius=0.3), want.sum(1), atol=1e-12)
    assert_allclose(lazy.T.sum(axis=1, radius=0.3), want.sum(0), atol=1e-12)
    assert_allclose(lazy.sum(axis=0, radius=0.3, call=False)(), want.sum(0), atol=1e-12)
    single: Any = Vi(far.astype(np.float32)) - Vj(near.astype(np.float32))
    got = single.sum(axis=1, radius=0.3)
    assert got.dtype == np.float32
    assert_allclose(got, want.sum(1), atol=1e-5)
    with_inf: Any = 1 / (lazy.sqnorm2() - FAR2[0, 0])  # infinite, or nearly, at a pair outside
    assert np.isfinite(with_inf.sum(axis=1, radius=float(np.sqrt(FAR2[0, 0])) * 0.9)).all()


def test_a_ragged_mask_of_many_pairs() -> None:
    p, q = rng.random((300, 2)), rng.random((200, 2))
    seen = rng.random((300, 200)) < 0.5
    f: Any = Vi(p).sqdist(Vj(q))
    for name in ("sum", "argKmin", "logsumexp"):
        check(name, f, ((p[:, None] - q) ** 2).sum(-1), seen, mask=seen)


def test_a_radius_among_far_flung_points() -> None:
    p, q = rng.random((1500, 3)), rng.random((1200, 3))
    p[::7] *= 1000.0  # outliers, far from each other and from the rest
    q[::5] = p[:240]  # and points in common
    distance = np.sqrt(((p[:, None] - q) ** 2).sum(-1))
    f: Any = Vi(p).sqdist(Vj(q))
    for name in ("sum", "min", "argKmin"):
        check(name, f + 1, distance**2 + 1, distance <= 0.2, radius=0.2)


def test_points_that_are_not_numbers_have_no_neighbours() -> None:
    p = far.copy()
    p[3] = np.nan
    ones: Any = Vi(np.ones((60, 1))) * Vj(np.ones((80, 1)))
    got = ones.sum(axis=1, radius=(0.3, Vi(p), Vj(near)))
    want = (np.sqrt(((p[:, None] - near) ** 2).sum(-1)) <= 0.3).sum(1, keepdims=True)
    assert_array_equal(got, want)
    assert got[3, 0] == 0


@mark.parametrize("select", [{"mask": "causal"}, {"radius": 0.5}, {"segments": ([2, 3], [3, 4])}], ids=str)
def test_selections_of_a_batch_are_right_or_refused(select: dict) -> None:
    distance = np.sqrt(((xs - ys) ** 2).sum(-1))
    seen = {"mask": places[1] <= places[0], "radius": distance <= 0.5,
            "segments": (places[0] >= 2) == (places[1] >= 3)}[next(iter(select))]  # fmt: skip
    try:
        got = batched.sqnorm2().sum(axis=3, **select)
    except FormulaError as error:
        assert "batch" in str(error)
        return
    assert_allclose(got[..., 0], np.where(seen, distance**2, 0).sum(-1))


MISUSE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"mask": holes.T}, ShapeError, r"\(5, 7\).*\(7, 5\)"),
    ({"mask": holes.astype(int)}, FarsumError, "bool.*int"),
    ({"mask": holes[0]}, ShapeError, r"\(5, 7\)"),
    ({"mask": "diagonal"}, OperandError, "causal.*diagonal"),
    ({"mask": ("band", -1)}, OperandError, "band"),
    ({"mask": ("band", 1.5)}, OperandError, "band"),
    ({"mask": ("ribbon", 1)}, OperandError, "ribbon"),
    ({"mask": lambda i, j: i - j}, OperandError, "bool.*int"),
    ({"mask": lambda i, j: np.ones((2, 2), bool)}, FarsumError, "2, 2|shape"),
    ({"mask": 3}, FarsumError, "mask"),
    ({"radius": -1.0}, OperandError, "-1"),
    ({"radius": "far"}, OperandError, "far"),
    ({"radius": np.nan}, OperandError, "nan"),
    ({"radius": True}, OperandError, "True"),
    ({"radius": (1.0, x, y)}, FarsumError, r"Vi\(x\)"),
    ({"radius": (1.0, y_j, x_i)}, OperandError, r"Vi\(x\)"),
    ({"radius": (1.0, x_i, Vj(b))}, ShapeError, "3.*2"),
    ({"segments": ([2, 2], [3, 4])}, ShapeError, "4.*5"),
    ({"segments": ([2, 3], [3, 5])}, ShapeError, "8.*7"),
    ({"segments": ([2, 3], [7])}, ShapeError, "2.*1"),
    ({"segments": ([2.0, 3.0], [3, 4])}, FarsumError, "int"),
    ({"segments": ([-1, 6], [3, 4])}, ShapeError, "0"),
    ({"segments": [2, 3, 4]}, OperandError, "pair"),
    ({"mask": "causal", "radius": 1.0}, FormulaError, "one of"),
    ({"mask": "causal", "ranges": (np.zeros((1, 2), int),) * 6}, FormulaError, "ranges"),
]


@mark.parametrize(("options", "error", "words"), MISUSE)
def test_selections_that_do_not_fit(options: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        x_i.sqdist(y_j).sum(axis=1, **options)


def test_a_radius_needs_to_know_its_points() -> None:
    for unclear in ((x_i * Vi(x + 1) - y_j).sqnorm2(), x_i | Pm(x[0]), Vi(b) * Vj(y[:, :1].copy())):
        with pytest.raises(FormulaError, match=r"radius=\(r, x_i, y_j\)"):
            unclear.sum(axis=1, radius=1.0)
