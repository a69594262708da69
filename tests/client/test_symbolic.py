"""Reductions that are written now and computed later: `call=False`, and variables that a call fills."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum.numpy import LazyTensor, Pm, Vi, Vj
from farsum.reduced import Reduced
from farsum_kernels.errors import (
    AxisError,
    AxisMissing,
    DtypeError,
    FarsumError,
    FormulaError,
    InputMissing,
    OperandError,
    ShapeError,
)

mark = pytest.mark
rng = np.random.default_rng(0)
x, y, b, p = rng.random((5, 3)), rng.random((7, 3)), rng.random((7, 2)), np.array([0.5])
D2 = ((x[:, None] - y[None]) ** 2).sum(-1)
E = np.exp(D2)
# Any: what the type checker refuses is tried here too.
x_i: Any = Vi(x)
y_j: Any = Vj(y)
s_i: Any = Vi(0, 3)
s_j: Any = Vj(1, 3)
S_ij: Any = s_i.sqdist(s_j)
D_ij: Any = x_i.sqdist(y_j)
gauss: Any = ((-S_ij * Pm(2, 1)).exp() * Vj(3, 2)).sum(axis=1)
duplicates = [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))]


def agree(got: Any, want: Any) -> None:
    for g, w in zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]:
        assert_allclose(g, w, rtol=1e-12)


# ── values ────────────────────────────────────────────────────────────────────────────────────────

REDUCTIONS: list[tuple[Callable[[Any], Any], Any]] = [
    (lambda f: f.sum(axis=1), D2.sum(1)[:, None]),
    (lambda f: f.sum(axis=0), D2.sum(0)[:, None]),
    (lambda f: f.sum_reduction(axis=-2, call=True), D2.sum(1)[:, None]),
    (lambda f: f.logsumexp(axis=1), np.log(E.sum(1))[:, None]),
    (lambda f: f.logsumexp(axis=1, weight=Vj(b)), np.log(E @ b)),
    (lambda f: f.sumsoftmaxweight(Vj(b), axis=1), E @ b / E.sum(1)[:, None]),
    (lambda f: f.argmin(axis=0), D2.argmin(0)[:, None]),
    (lambda f: f.min_argmin(axis=1), (D2.min(1)[:, None], D2.argmin(1)[:, None])),
    (lambda f: f.Kmin(3, axis=1), np.sort(D2, 1)[:, :3]),
    (lambda f: f.argKmin(3, axis=1), np.argsort(D2, 1)[:, :3]),
    (lambda f: f.reduction("Max", axis=1), D2.max(1)[:, None]),
    (lambda f: f.T.sum(axis=1), D2.sum(0)[:, None]),  # the symbols swap too: x is then given as rows of j
]


@mark.parity("L-183", "L-182")
@mark.parametrize(("reduce", "want"), REDUCTIONS)
def test_symbolic_variables_defer_every_reduction(reduce: Callable[[Any], Any], want: Any) -> None:
    made = reduce(S_ij)
    assert type(made) is Reduced
    agree(made(x, y), want)
    agree(reduce(s_i.sqdist(y_j))(x), want)
    agree(reduce(Vi(x).sqdist(Vj(0, 3)))(y), want)


@mark.parity("L-182", "L-32")
def test_arguments_come_in_rising_order_of_index() -> None:
    agree(gauss(x, y, p, b), np.exp(-0.5 * D2) @ b)
    shuffled: Any = ((-Vi(3, 3).sqdist(Vj(0, 3)) * Pm(1, 1)).exp() * Vj(2, 2)).sum(axis=1)
    agree(shuffled(y, p, b, x), np.exp(-0.5 * D2) @ b)


@mark.parity("L-182")
def test_a_symbolic_weight_is_an_argument() -> None:
    made = S_ij.logsumexp(axis=1, weight=Vj(2, 2))
    agree(made(x, y, b), np.log(E @ b))
    agree(D_ij.sumsoftmaxweight(Vj(0, 2), axis=1)(b), E @ b / E.sum(1)[:, None])


@mark.parity("L-184")
def test_arrays_and_symbols_mix() -> None:
    held = x.copy()
    made = ((Vi(held) - Vj(1, 3)) * Pm(0, 1) + [1.0, 2.0, 3.0]).sum(axis=1)
    want = ((x[:, None] - y) * 0.5 + [1, 2, 3]).sum(1)
    agree(made(p, y), want)
    held += 1
    agree(made(p, y), want + 0.5 * 7)


@mark.parity("L-170", "L-182")
def test_nothing_is_asked_for_where_nothing_is_missing() -> None:
    made = D_ij.sum(axis=1, call=False)
    agree(made(), D2.sum(1)[:, None])
    with pytest.raises(ShapeError, match=r"0 .*1"):
        made(x)


@mark.parity("L-186")
def test_one_index_is_one_variable() -> None:
    twice = (Vi(0, 3) * 2 + Vi(0, 3) - Vj(1, 3)).sum(axis=1)
    agree(twice(x, y), (3 * x[:, None] - y).sum(1))
    assert len(set(twice.symbolic_variables)) == 2


@mark.parity("L-189", "X-29")
@mark.parametrize("axis", [0, 1])
@mark.parametrize("long", [lambda: Vi(2, 120), lambda: Vj(2, 120), lambda: Pm(2, 120)])
def test_long_symbolic_vectors(long: Callable[[], Any], axis: int) -> None:
    v = rng.random((7, 120))
    rows = {0: v[:5], 1: v, 2: v[0]}[long().axis]
    dense = D2[..., None] * (rows[:, None] if long().axis == 0 else rows)
    agree((S_ij * long()).sum(axis=axis)(x, y, rows), dense.sum(axis))


@mark.parity("L-182", "L-173")
def test_options_of_a_call() -> None:
    made, want = S_ij.sum(axis=1), D2.sum(1)[:, None]
    out = np.zeros((5, 1))
    assert made(x, y, out=out, backend="CPU", device_id=0, deadline_s=60) is out
    agree(out, want)
    rows, cols, ends = np.array([[0, 2], [2, 5]]), np.array([[0, 3], [3, 7]]), np.array([1, 2])
    seen = np.zeros((5, 7))
    seen[:2, :3] = seen[2:, 3:] = 1
    agree(made(x, y, ranges=(rows, ends, cols, cols, ends, rows)), (D2 * seen).sum(1)[:, None])
    agree(made(x, y), want)
    with pytest.raises(TypeError, match="axis"):
        made(x, y, axis=1)


@mark.parity("L-182")
@mark.parametrize("parameter", [0.5, np.float32(0.5), [0.5], np.array(0.5), p, p[None]], ids=repr)
def test_how_a_parameter_may_be_given(parameter: Any) -> None:
    got = gauss(x, y, parameter, b)
    assert got.dtype == np.float64
    agree(got, np.exp(-0.5 * D2) @ b)


@mark.parity("L-182", "L-63")
def test_batches_come_with_the_call() -> None:
    xs, ys = rng.random((2, 1, 5, 3)), rng.random((4, 7, 3))
    dense = ((xs[..., :, None, :] - ys[..., None, :, :]) ** 2).sum(-1)
    made = S_ij.sum(axis=1)
    agree(made(xs, ys)[..., 0], dense.sum(-1))
    agree(made(x, y), D2.sum(1)[:, None])
    agree(made(xs[0, 0], ys)[..., 0], dense[0].sum(-1))


@mark.parity("L-187", "X-56")
def test_the_dtype_is_that_of_each_call() -> None:
    made = ((S_ij * 0.1 + Pm(2, 1)) * [1.0, 2.0]).sum(axis=1)
    want = ((D2[..., None] * 0.1 + 0.5) * [1, 2]).sum(1)
    for dtype, rtol in [(np.float32, 1e-6), (np.float64, 1e-14), (np.float16, 5e-3), (np.float64, 1e-14), (np.float32, 1e-6)]:  # fmt: skip
        got = made(x.astype(dtype), y.astype(dtype), 0.5)
        assert got.dtype == dtype
        assert_allclose(got, want, rtol=rtol)


@mark.parity("L-187", "X-56", "L-60")
def test_dtypes_of_a_call_promote() -> None:
    single = x.astype(np.float32)
    assert S_ij.sum(axis=1)(single, y).dtype == np.float64
    assert s_i.sqdist(y_j).sum(axis=1)(single).dtype == np.float64
    held: Any = Vj(y.astype(np.float32))
    later = s_i.sqdist(held).sum(axis=1)
    assert [later(given).dtype for given in (single, x, single)] == [np.float32, np.float64, np.float32]
    agree(later(x), ((x[:, None] - y.astype(np.float32)) ** 2).sum((1, 2))[:, None])


# ── what it says of itself ────────────────────────────────────────────────────────────────────────


@mark.parity("L-180", "L-220")
@mark.parametrize(
    ("made", "text"),
    [
        (
            lambda: (s_i - s_j).sqnorm2().argKmin(3, axis=1),
            "KeOps LazyTensor\n    formula: SqNorm2((Var(0,3,0) - Var(1,3,1)))\n"
            "    symbolic variables: Var(0, 3, 0), Var(1, 3, 1)\n    shape: (1, 1)\n"
            "    reduction: ArgKMin (axis=1)\n        opt_arg: 3",
        ),
        (
            lambda: (x_i | y_j).logsumexp(axis=1, weight=Vj(b), call=False),
            "KeOps LazyTensor\n    formula: (Var(0,3,0) | Var(1,3,1))\n    shape: (5, 7)\n"
            "    reduction: LogSumExp (axis=1)\n        formula2: Var(2,2,1)",
        ),
        (
            lambda: (x_i - y_j).sum(axis=0, call=False),
            "KeOps LazyTensor\n    formula: (Var(0,3,0) - Var(1,3,1))\n    shape: (5, 7, 3)\n"
            "    reduction: Sum (axis=0)",
        ),
    ],
)
def test_a_reduced_object_prints_its_reduction(made: Callable[[], Any], text: str) -> None:
    assert str(made()) == text


@mark.parity("L-180", "L-46", "L-48")
def test_a_reduced_object_tells_what_it_does() -> None:
    made = S_ij.logsumexp(axis=0, weight=Vj(2, 2))
    assert (made.axis, made.reduction_op, made.opt_arg) == (0, "LogSumExp", None)
    assert (made.formula2, made.shape) == ("Var(2,2,1)", (1, 1))
    assert D_ij.Kmin(3, axis=1, call=False).opt_arg == 3
    assert (x_i - y_j).sum(axis=1, call=False).shape == (5, 7, 3)


@mark.parity("L-188")
def test_unknown_rows_show_as_one() -> None:
    assert (S_ij.shape, s_i.shape, (s_i - s_j).shape) == ((1, 1), (1, 1, 3), (1, 1, 3))
    assert (s_i - y_j).shape == (1, 7, 3)
    assert s_i.sqdist(y_j).sum(axis=1).shape == (1, 7)


@mark.parity("L-190", "L-184")
def test_symbols_swap_with_the_transpose() -> None:
    swapped = (s_i * s_j * Vi(x[:, :1].copy())).T
    assert swapped.shape == (1, 5, 3)
    # x, given for the variable 0, now runs along j.
    agree(swapped.sum(axis=1)(x, y), (x[None] * y[:, None] * x[None, :, :1]).sum(1))
    agree(swapped.sum(axis=0)(x, y), (x[None] * y[:, None] * x[None, :, :1]).sum(0))


# ── copies and threads ────────────────────────────────────────────────────────────────────────────


@mark.parity("L-56", "X-54")
@mark.parametrize("duplicate", duplicates)
def test_reduced_objects_survive_being_copied(duplicate: Callable[[Any], Any]) -> None:
    agree(duplicate(gauss)(x, y, p, b), np.exp(-0.5 * D2) @ b)
    mixed = (s_i.sqdist(y_j) * [2.0]).argKmin(3, axis=1)
    assert str(duplicate(mixed)) == str(mixed)
    assert_array_equal(duplicate(mixed)(x), mixed(x))
    held = D_ij.sum(axis=1, call=False, use_double_acc=True)
    assert_array_equal(duplicate(held)(), held())


@mark.parity("L-187", "X-56")
def test_many_threads_call_one_object_at_once() -> None:
    made = (S_ij * Pm(2, 1)).sum(axis=1)

    def one(seed: int) -> float:
        dtype: Any = (np.float32, np.float64)[seed % 2]
        local = np.random.default_rng(seed)
        a, c = local.random((4 + seed % 3, 3)).astype(dtype), local.random((6 + seed % 5, 3)).astype(dtype)
        got = made(a, c, float(seed))
        assert got.dtype == dtype
        want = seed * ((a[:, None] - c).astype(np.float64) ** 2).sum((1, 2))[:, None]
        return float(np.abs(got - want).max() / max(want.max(), 1))

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(one, range(64))) < 1e-5


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────


@mark.parity("L-181", "E-27")
@mark.parametrize("lazy", [lambda: D_ij, lambda: S_ij, lambda: x_i, lambda: Pm(2), lambda: Vi(x * 1j)])
def test_what_is_not_reduced_cannot_be_called(lazy: Callable[[], Any]) -> None:
    for args in ((), (x,), (x, y)):
        with pytest.raises(FormulaError, match="reduce"):
            lazy()(*args)


@mark.parity("L-182", "E-26")
@mark.parametrize("given", range(7))
def test_the_number_of_arguments_is_told(given: int) -> None:
    args = [x, y, p, b, b, b][:given]
    if given == 4:
        agree(gauss(*args), np.exp(-0.5 * D2) @ b)
        return
    with pytest.raises(ShapeError, match=f"4 .*{len(args)}"):
        gauss(*args)


MISUSE = [
    pytest.param(lambda: (Vi(0, 3) - Vj(2, 3)).sum(axis=1)(x, y), InputMissing, "1", marks=mark.parity("L-185")),
    pytest.param(lambda: (Vi(1, 3) - y_j).sum(axis=1)(x), InputMissing, "0", marks=mark.parity("L-185")),
    pytest.param(lambda: (Vi(0, 3) + Vj(0, 3)).sum(axis=1)(x), FormulaError, "0.*index|index.*0", marks=mark.parity("L-186")),
    pytest.param(lambda: (Vi(0, 3) + Vi(0, 1)).sum(axis=1)(x), FormulaError, "0.*index|index.*0", marks=mark.parity("L-186")),
    pytest.param(lambda: S_ij.sum(axis=1)(x[:, :2].copy(), y), ShapeError, r"\(5, 2\)", marks=mark.parity("L-182", "X-14")),
    pytest.param(lambda: S_ij.sum(axis=1)(x, y[0]), ShapeError, r"\(3,\)", marks=mark.parity("L-182")),
    pytest.param(lambda: S_ij.sum(axis=1)(x.astype(int), y), DtypeError, "int64", marks=mark.parity("E-30")),
    pytest.param(lambda: S_ij.sum(axis=1)(x, y.tolist()), OperandError, "list", marks=mark.parity("L-182")),
    pytest.param(lambda: S_ij.sum(axis=1)(x, None), OperandError, "None", marks=mark.parity("L-182")),
    pytest.param(lambda: S_ij.sum(axis=1)(x, 2.0), OperandError, "float", marks=mark.parity("L-182")),
    pytest.param(lambda: S_ij.sum(axis=1)(x_i, y_j), OperandError, "LazyTensor", marks=mark.parity("L-182")),
    pytest.param(lambda: gauss(x, y, [0.5, 1.0], b), ShapeError, r"2", marks=mark.parity("L-182")),
    pytest.param(lambda: gauss(x, y, p, b[:5]), ShapeError, "5.*7|7.*5", marks=mark.parity("X-14")),
    pytest.param(lambda: (s_i * x_i).sum(axis=1)(x[:4]), ShapeError, "4.*5|5.*4", marks=mark.parity("X-14")),
    pytest.param(lambda: S_ij.sum(axis=5), AxisError, "axis", marks=mark.parity("E-21")),
    pytest.param(lambda: S_ij.logsumexp(), AxisMissing, "axis", marks=mark.parity("E-22")),
    pytest.param(lambda: (Pm(0, 1) * 2).sum(axis=1)(2.0), FarsumError, "array", marks=mark.parity("L-162")),
]  # fmt: skip


@mark.parametrize(("wrong", "error", "words"), MISUSE)
def test_mistakes_are_explained(wrong: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        wrong()


@mark.parity("E-20", "L-180")
@mark.parametrize("done", [lambda: D_ij.sum(axis=1, call=False), lambda: S_ij.argKmin(3, axis=1)])
@mark.parametrize(
    "use",
    [
        lambda r: r.sum(axis=1), lambda r: r.sum(-1), lambda r: r.logsumexp(axis=0), lambda r: r.argmin(axis=1), lambda r: r.min_argmin(axis=1),
        lambda r: r.Kmin(3, axis=1), lambda r: r.reduction("Sum", axis=1), lambda r: r @ y, lambda r: r.exp(), lambda r: r.elem(0),
        lambda r: r + 1, lambda r: 1 - r, lambda r: -r, lambda r: r**2, lambda r: r[0], lambda r: r.norm2(),
        lambda r: r.solve(y_j), lambda r: r.factorize(x_i), lambda r: r.grad_matrix(x_i), lambda r: r.concat(x_i), lambda r: r % 2,
    ],
)  # fmt: skip
def test_nothing_follows_a_reduction(done: Callable[[], Any], use: Callable[[Any], Any]) -> None:
    with pytest.raises((FormulaError, TypeError), match=r"reduced|unsupported operand"):
        use(done())


@mark.parity("L-180")
def test_a_reduced_object_has_no_other_attributes() -> None:
    made = D_ij.sum(axis=1, call=False)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = made.no_such_thing
    assert not isinstance(made, LazyTensor)


@mark.parity("L-190")
def test_a_reduced_object_is_printed_transposed_and_computes_the_same() -> None:
    reduced = (s_i - s_j).sqnorm2().sum(axis=1)
    for swapped in (reduced.T, reduced.t()):
        assert swapped.axis == 0 and swapped.formula == "SqNorm2((Var(0,3,1) - Var(1,3,0)))"
        np.testing.assert_array_equal(swapped(x, y), reduced(x, y))


def test_a_call_like_the_last_one_is_looked_at_all_the_same() -> None:
    """The second call of equal shapes skips the checks, and nothing else: not new numbers, shapes, dtypes or mistakes."""
    held = x.copy()
    mixed: Any = (-Vi(held).sqdist(Vj(0, 3))).exp().sum(axis=1)
    for change in (0.0, 1.0):
        held += change
        want = np.exp(-((held[:, None] - y[None]) ** 2).sum(-1)).sum(1, keepdims=True)
        for _ in range(2):
            assert_allclose(mixed(y), want, rtol=1e-12)
    assert_allclose(mixed(y[:4]), np.exp(-((held[:, None] - y[None, :4]) ** 2).sum(-1)).sum(1, keepdims=True))
    assert_allclose(mixed(y[::-1]), mixed(y), rtol=1e-12)
    pairs: Any = S_ij.sum(axis=1)
    for made, dtype in ((1.0 * x, "float64"), (x.astype("float32"), "float32")):
        for _ in range(2):
            assert pairs(made, y.astype(dtype)).dtype == dtype
    out = np.empty((5, 1), np.float32)
    assert pairs(x.astype("float32"), y.astype("float32"), out=out) is out
    with pytest.raises(ShapeError, match="out has shape"):
        pairs(x.astype("float32"), y.astype("float32"), out=out[:3])
    with pytest.raises(ShapeError, match="argument 1"):
        pairs(x.astype("float32"), y[:, :2].astype("float32"))
    with pytest.raises(OperandError, match="argument 0"):
        pairs([1.0], y)
