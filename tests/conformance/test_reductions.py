"""Every reduction, on every backend, dtype, dimension and kind of plan, against NumPy; and its laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from farsum_kernels.backends import reference
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.formula.reductions import REDUCTIONS, Kind
from farsum_kernels.job import Spec
from tests import oracles
from tests.evaluate import BACKENDS, close, run

DTYPES = ("float32", "float64")


def _spec(reduction: str, dim: int, dtype: str, axis: int = 1, k: int = 5) -> Spec:
    x, y = variable(0, dim, I), variable(1, dim, J)
    rule = REDUCTIONS[reduction]
    formula = node("SqDist", x, y) if rule.scalar else node("Subtract", x, y)
    weight = node("Square", y) if rule.weight != "none" else None
    return Spec(formula, reduction, axis, dtype, weight, k if rule.listed else 0)


def _dense(spec: Spec, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    x, y = x.astype(np.float64), y.astype(np.float64)
    f = x[:, None] - y[None]
    f = (f**2).sum(-1, keepdims=True) if REDUCTIONS[spec.reduction].scalar else f
    more: list[Any] = (
        [spec.k] if spec.k else [np.broadcast_to(y**2, (len(x), *y.shape))] if spec.weight else []
    )
    if spec.axis == 0:
        f, more = f.swapaxes(0, 1), [m if isinstance(m, int) else m.swapaxes(0, 1) for m in more]
    return oracles.REDUCTIONS[spec.reduction](f, *more)


def _agree(got: tuple[np.ndarray, ...], want: tuple[np.ndarray, ...], dtype: str) -> None:
    for g, w in zip(got, want, strict=True):
        if w.dtype.kind == "i":
            assert g.dtype == np.int64
            # Points are random: two distances that rounding could exchange are rare.
            assert g.shape == w.shape and (g == w).mean() > 0.999
        else:
            assert g.dtype in (np.dtype(dtype), np.dtype("float64"))
            close(g, w, dtype, factor=4)


def test_every_reduction_has_an_oracle() -> None:
    assert set(REDUCTIONS) == set(oracles.REDUCTIONS)


# (M, N): one task, tails of every kind, many tasks, few rows and many columns (splits)
SIZES = [(1, 1), (5, 7), (48, 256), (101, 613), (3, 20_003), (2100, 41)]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 3, 11])
def test_reduction_has_the_value_of_numpy(reduction: str, dtype: str, dim: int) -> None:
    rng = np.random.default_rng(0)
    for m, n in SIZES:
        spec = _spec(reduction, dim, dtype, k=min(5, n))
        x, y = rng.random((m, dim)).astype(dtype), rng.random((n, dim)).astype(dtype)
        want = _dense(spec, x, y)
        for backend in BACKENDS if m * n * dim < 500_000 else ("cpu",):
            _agree(run(backend, spec, {0: x, 1: y}), want, dtype)


@pytest.mark.parity("R-30")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_axis_0_reduces_over_i(backend: str, reduction: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((61, 3)), rng.random((29, 3))
    spec = _spec(reduction, 3, "float64", axis=0)
    _agree(run(backend, spec, {0: x, 1: y}), _dense(spec, x, y), "float64")


@pytest.mark.parity("R-32")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [9, 4000])
def test_ties_go_to_the_smallest_index(backend: str, n: int) -> None:
    x, y = np.zeros((3, 1)), np.tile([[1.0], [0.0], [1.0]], (n // 3, 1))
    y = np.concatenate([y, y[: n - len(y)]])
    for reduction, want in (("ArgMin", 1), ("ArgMax", 0)):
        formula = node("Abs", node("Subtract", variable(0, 1, I), variable(1, 1, J)))
        (got,) = run(backend, Spec(formula, reduction, 1, "float64"), {0: x, 1: y})
        assert (got == want).all()
    (got,) = run(backend, Spec(formula, "ArgKMin", 1, "float64", k=2), {0: x, 1: y})
    np.testing.assert_array_equal(got, [[1, 4]] * 3)


@pytest.mark.parity("R-32")
@pytest.mark.parametrize("k", [3, 16, 17, 40])
def test_equal_values_stay_in_order_when_better_ones_come(k: int) -> None:
    values = np.array([3.0, 3.0, 2.0, 3.0, 2.0, 1.0, 3.0, 2.0, 1.0, 0.0] * 4)
    (got,) = run(
        "cpu", Spec(variable(0, 1, J), "ArgKMin", 1, "float32", k=k), {0: values[:, None].astype("f4")}
    )
    np.testing.assert_array_equal(got[0], np.argsort(values, kind="stable")[:k])


@pytest.mark.parity("R-33", "R-35")
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_skipped_by_extrema_and_kept_by_sums(backend: str) -> None:
    y = np.array([[np.nan], [2.0], [1.0], [np.nan]])
    v = variable(0, 1, J)

    def reduced(reduction: str, values: np.ndarray = y, k: int = 0) -> list[float]:
        return [float(o.ravel()[0]) for o in run(backend, Spec(v, reduction, 1, "float64", k=k), {0: values})]

    assert reduced("Min_ArgMin") == [1.0, 2.0]
    assert reduced("Max_ArgMax") == [2.0, 1.0]
    assert reduced("Min_ArgMin", y[:1]) == [np.inf, 0]
    assert reduced("Max_ArgMax", np.full((3, 1), -np.inf)) == [-np.inf, 0]
    assert np.isnan(reduced("Sum") + reduced("LogSumExp")).all()
    for place in range(40):  # anywhere in a block of columns, and after the last whole one
        column = np.arange(41.0, 0.0, -1.0)[:, None]
        column[place] = np.nan
        assert reduced("Min_ArgMin", column) == [1.0, 40.0]
        assert reduced("Max_ArgMax", column) == ([40.0, 1.0] if place == 0 else [41.0, 0.0])
        assert reduced("KMin_ArgKMin", column, 1) == [1.0, 40.0]


@pytest.mark.parity("R-34", "X-70")
@pytest.mark.parametrize("backend", BACKENDS)
def test_more_neighbours_than_points(backend: str) -> None:
    y = np.array([[3.0], [1.0], [2.0]])
    values, indices = run(backend, Spec(variable(0, 1, J), "KMin_ArgKMin", 1, "float64", k=5), {0: y})
    np.testing.assert_array_equal(values, [[1, 2, 3, np.inf, np.inf]])
    np.testing.assert_array_equal(indices, [[1, 2, 0, 0, 0]])


@pytest.mark.parity("R-36", "R-37", "X-36")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [1, 9])
def test_empty_axes(backend: str, dim: int) -> None:
    empty = {"Sum": 0, "Min": np.inf, "Max": -np.inf, "ArgMin": 0, "ArgMax": 0, "LogSumExp": -np.inf,
             "KMin": np.inf, "ArgKMin": 0}  # fmt: skip
    for reduction, identity in empty.items():
        spec = _spec(reduction, dim, "float64")
        (got,) = run(backend, spec, {0: np.ones((4, dim)), 1: np.ones((0, dim))})
        assert got.shape[0] == 4 and (got == identity).all()
        (got,) = run(backend, spec, {0: np.ones((0, dim)), 1: np.ones((4, dim))})
        assert got.shape[0] == 0


@pytest.mark.parity("R-38", "R-39", "X-35")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 1, 7, 16, 300])
def test_logsumexp_of_infinities(backend: str, dtype: str, place: int) -> None:
    def lse(values: np.ndarray) -> float:
        spec = Spec(variable(0, 1, J), "LogSumExp", 1, dtype)
        return float(run(backend, spec, {0: values.astype(dtype)[:, None]})[0].item())

    values = np.zeros(400)
    values[place] = -np.inf
    assert lse(values) == pytest.approx(np.log(399), rel=1e-6)
    assert lse(np.full(20, -np.inf)) == -np.inf
    values[place] = np.inf
    assert lse(values) == np.inf
    assert lse(np.full(2, np.inf)) == np.inf
    large = 1e37 if dtype == "float32" else 1e307
    assert lse(np.array([large, -large])) == pytest.approx(large, rel=1e-6)


@pytest.mark.parity("R-41")
@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_broadcast_and_count_their_own_rows(backend: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((4, 1, 50, 3)), rng.random((3, 60, 3))
    d = node("SqDist", variable(0, 3, I), variable(1, 3, J))
    values, indices = run(backend, Spec(d, "Min_ArgMin", 1, "float64"), {0: x, 1: y})
    dense = ((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(-1)
    assert values.shape == (4, 3, 50, 1)
    np.testing.assert_allclose(values[..., 0], dense.min(-1), rtol=1e-13)
    np.testing.assert_array_equal(indices[..., 0], dense.argmin(-1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_error_of_a_sum_does_not_grow_with_n(dtype: str) -> None:
    unit = np.finfo(dtype).eps
    for n in (1_000, 1_000_000):
        y = np.random.default_rng(0).random((n, 1)).astype(dtype)
        (got,) = run("cpu", Spec(variable(0, 1, J), "Sum", 1, dtype), {0: y})
        exact = np.sum(y.astype(np.longdouble))
        assert abs(float(got.item()) - exact) / exact < 8 * unit


# The laws of a monoid, on states of random terms.

_terms = hnp.arrays(np.float64, (6, 1), elements=st.floats(-30, 30))


def _states(reduction: str, terms: np.ndarray) -> list[list[np.ndarray]]:
    from farsum_kernels.scalar.ir import Block

    rule = REDUCTIONS[reduction]
    block = Block(spoken=reference.NUMPY)
    lifted = rule.lift((block.arg(0),), block.arg(1))
    states = []
    for j, term in enumerate(terms):
        values = reference._run(block.code, [term, np.array([j])], np.dtype(float))
        states.append([np.asarray(values[v.index], float) * np.ones(1) for v in lifted])
    return states


@given(terms=_terms)
@pytest.mark.parametrize(
    "reduction", [r for r, rule in REDUCTIONS.items() if not rule.listed and rule.weight != "required"]
)
def test_merging_is_associative_and_has_an_identity(reduction: str, terms: np.ndarray) -> None:
    rule, dtype = REDUCTIONS[reduction], np.dtype(float)
    a, b, c, *_ = _states(reduction, terms)

    def merge(p: list[np.ndarray], q: list[np.ndarray]) -> list[np.ndarray]:
        return reference.merge_states(rule, p, q, dtype)

    def finished(state: list[np.ndarray]) -> np.ndarray:
        return np.array([float(v.item()) for g in reference.finish_state(rule, state, dtype) for v in g])

    np.testing.assert_allclose(
        finished(merge(merge(a, b), c)), finished(merge(a, merge(b, c))), rtol=1e-12, atol=1e-12
    )
    lowest = float(np.finfo(float).min)
    identity = [np.array([lowest if v == "lowest" else v]) for v in rule.identity(1, 0)]
    np.testing.assert_allclose(finished(merge(identity, a)), finished(a), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(finished(merge(a, identity)), finished(a), rtol=1e-12, atol=1e-12)


def test_states_have_one_component_per_kind() -> None:
    for rule in REDUCTIONS.values():
        for dim in (1, 3) if not rule.scalar else (1,):
            for width in (0, 2):
                assert len(rule.state(dim, width)) == len(rule.identity(dim, width))
                assert all(isinstance(k, Kind) for k in rule.state(dim, width))


@pytest.mark.parity("R-13", "R-14")
@pytest.mark.parametrize("backend", BACKENDS)
def test_raw_states_are_the_maximum_and_the_shifted_sums(backend: str) -> None:
    f, g = np.array([[3.0], [1.0], [2.0], [1.0]]), np.array([[1.0, 2], [3, 4], [5, 6], [7, 8]])
    v, w = variable(0, 1, J), variable(1, 2, J)
    p = np.exp(f - 3)
    (plain,) = run(backend, Spec(v, "Max_SumShiftExp", 1, "float64"), {0: f})
    np.testing.assert_allclose(plain, [[3, p.sum()]])
    (unweighted,) = run(backend, Spec(v, "Max_SumShiftExpWeight", 1, "float64"), {0: f})
    np.testing.assert_allclose(unweighted, plain)
    (weighted,) = run(backend, Spec(v, "Max_SumShiftExpWeight", 1, "float64", w), {0: f, 1: g})
    np.testing.assert_allclose(weighted, [[3, *(p * g).sum(0)]])


@pytest.mark.parity("R-44")
def test_float32_comes_back_as_float32_and_is_summed_more_precisely() -> None:
    y = np.full((200_000, 1), 0.1, np.float32)
    (got,) = run("cpu", Spec(variable(0, 1, J), "Sum", 1, "float32"), {0: y})
    assert got.dtype == np.float32
    exact = float(y[0, 0]) * len(y)
    plain = y.cumsum(dtype=np.float32)[-1]
    assert abs(got[0, 0] - exact) < 0.01 * abs(plain - exact)


@pytest.mark.parity("R-49")
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_warns_of_values_that_are_documented(backend: str) -> None:
    """Warnings are errors here: log 0, 0/0 and overflow are values, not accidents."""
    v, w = variable(0, 1, J), variable(1, 1, J)
    nothing = {0: np.zeros((0, 1)), 1: np.zeros((0, 1))}
    (lse,) = run(backend, Spec(v, "LogSumExp", 1, "float64"), {0: nothing[0]})
    (mean,) = run(backend, Spec(v, "SumSoftMaxWeight", 1, "float64", w), nothing)
    assert lse[0, 0] == -np.inf and np.isnan(mean[0, 0])
    (negative,) = run(
        backend, Spec(v, "LogSumExp", 1, "float64", w), {0: np.zeros((1, 1)), 1: -np.ones((1, 1))}
    )
    assert np.isnan(negative[0, 0])
