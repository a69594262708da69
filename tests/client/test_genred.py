"""Reductions written as text, against NumPy; every mistake is found before anything is sent."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum.numpy import Genred, generic_argkmin, generic_argmin, generic_logsumexp, generic_sum
from farsum_kernels.errors import (
    AxisError,
    DeviceMissing,
    DimensionError,
    DtypeError,
    FarsumError,
    FormulaError,
    OperandError,
    ShapeError,
    UnknownOperation,
)

mark = pytest.mark
rng = np.random.default_rng(0)
x, y, b, p = rng.random((5, 3)), rng.random((7, 3)), rng.random((7, 2)), np.array([0.5])
D2 = ((x[:, None] - y[None]) ** 2).sum(-1)
XY = ["x = Vi(3)", "y = Vj(3)"]
GAUSS = ("Exp(-p*SqDist(x,y))*b", [*XY, "b = Vj(2)", "p = Pm(1)"])


def softmax_mean(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    w = np.exp(f - f.max(1, keepdims=True))
    return (w @ g) / w.sum(1, keepdims=True)


@mark.parity("G-01", "G-02", "G-22", "G-32")
def test_a_reduction_has_the_value_of_numpy() -> None:
    got = Genred(*GAUSS, axis=1)(x, y, b, p)
    assert_allclose(got, np.exp(-0.5 * D2) @ b, rtol=1e-12)
    again = Genred("Exp(-p*SqDist(x,y))*b", ["p=Pm(2,1)", "x=Vi(0,3)", "b=Vj(3,2)", "y=Vj(1,3)"], axis=1)
    assert_array_equal(again(x, y, p, b), got)


@mark.parity("G-04", "R-30", "X-49")
def test_the_default_axis_reduces_over_i() -> None:
    assert_allclose(Genred("SqDist(x,y)", XY)(x, y), D2.sum(0)[:, None], rtol=1e-12)
    over_j: Any = np.int64(1)
    assert_allclose(Genred("SqDist(x,y)", XY, axis=over_j)(x, y), D2.sum(1)[:, None], rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("reduction", "want"),
    [
        pytest.param("Sum", lambda d: d.sum(1)[:, None], marks=mark.parity("R-01", "G-03")),
        pytest.param("Min", lambda d: d.min(1)[:, None], marks=mark.parity("R-02")),
        pytest.param("Max", lambda d: d.max(1)[:, None], marks=mark.parity("R-02")),
        pytest.param("ArgMin", lambda d: d.argmin(1)[:, None], marks=mark.parity("R-03")),
        pytest.param("ArgMax", lambda d: d.argmax(1)[:, None], marks=mark.parity("R-03")),
        pytest.param("LogSumExp", lambda d: np.log(np.exp(d).sum(1))[:, None], marks=mark.parity("R-08")),
    ],
)  # fmt: skip
def test_reductions_of_one_output(reduction: str, axis: int, want) -> None:
    got = Genred("SqDist(x,y)", XY, reduction, axis=axis)(x, y)
    expected = want(D2 if axis == 1 else D2.T)
    assert got.dtype == expected.dtype
    assert_allclose(got, expected, rtol=1e-12)


@mark.parity("R-04", "R-15", "X-67")
@pytest.mark.parametrize("name", ["Min_ArgMin", "MinArgMin", "Max_ArgMax", "MaxArgMax"])
def test_values_with_their_indices(name: str) -> None:
    values, indices = Genred("SqDist(x,y)", XY, name, axis=1)(x, y)
    best, where = (D2.min(1), D2.argmin(1)) if name.startswith("Min") else (D2.max(1), D2.argmax(1))
    assert_allclose(values[:, 0], best, rtol=1e-12)
    assert_array_equal(indices[:, 0], where)
    assert indices.dtype == np.int64


@mark.parity("G-06", "R-05", "R-06", "R-07")
def test_the_k_smallest() -> None:
    order = np.argsort(D2, axis=1)[:, :3]
    k_min = Genred("SqDist(x,y)", XY, "KMin", axis=1, opt_arg=3)(x, y)
    assert_allclose(k_min, np.take_along_axis(D2, order, 1), rtol=1e-12)
    k: Any = np.int32(3)
    found = Genred("SqDist(x,y)", XY, "ArgKMin", axis=1, opt_arg=k)(x, y)
    assert found.shape == (5, 3) and found.dtype == np.int64
    assert_array_equal(found, order)
    values, indices = Genred("x-y", XY, "KMinArgKMin", axis=1, opt_arg=2)(x, y)
    assert values.shape == indices.shape == (5, 2, 3)
    assert_array_equal(indices, np.argsort(x[:, None] - y[None], axis=1, kind="stable")[:, :2])


@mark.parity("G-07", "R-09", "R-11", "R-12", "R-19", "X-30")
def test_weights() -> None:
    aliases = [*XY, "b = Vj(2)"]
    for name in ("SumSoftMaxWeight", "SoftMax"):
        got = Genred("SqDist(x,y)", aliases, name, axis=1, formula2="b")(x, y, b)
        assert_allclose(got, softmax_mean(D2, b), rtol=1e-12)
    for name in ("LogSumExp", "LogSumExpWeight"):
        got = Genred("SqDist(x,y)", aliases, name, axis=1, formula2="b")(x, y, b)
        assert_allclose(got, np.log(np.exp(D2) @ b), rtol=1e-12)
    doubled = Genred("SqDist(x,y)", XY, "LogSumExp", axis=1, formula2="IntCst(2)")(x, y)
    assert_allclose(doubled, np.log(2 * np.exp(D2).sum(1))[:, None], rtol=1e-12)


@mark.parity("F-05", "F-14", "X-65", "G-11")
def test_inline_variables_complete_the_aliases_of_a_copy() -> None:
    aliases = ["x = Vi(3)"]
    f = Genred("SqDist(x,Var(1,3,1))*w", [*aliases, "w = Pm(2,1)"], axis=1)
    assert_allclose(f(x, y, np.array([2.0])), 2 * D2.sum(1)[:, None], rtol=1e-12)
    g = Genred("SqDist(x,Var(1,3,1))", aliases, "KMin", 1, opt_arg=2)
    assert aliases == ["x = Vi(3)"]
    assert g.aliases == ["x = Vi(3)", "Var(1,3,1)"]
    assert (g.nargs, g.axis, g.opt_arg, g.reduction_op) == (2, 1, 2, "KMin")
    assert g.formula == "KMin_Reduction(SqDist(x,Var(1,3,1)),2,0)"
    assert g.optional_flags == {"dtype_acc": "auto", "sum_scheme": "auto"}


@mark.parity("F-12", "G-23")
def test_unused_arguments_count_for_the_sizes() -> None:
    hole = np.full((7, 3), np.nan)
    assert_allclose(Genred("x", XY, axis=1)(x, hole), 7 * x, rtol=1e-12)
    assert Genred("y", XY, axis=1)(np.full((5, 3), np.nan), y).shape == (5, 3)
    got = Genred("x", ["x = Vi(3)", "p = Pm(1)"], axis=1)(x, np.full((2, 1), np.nan))
    assert_allclose(got, np.stack([x, x]))


@mark.parity("G-33", "R-43", "X-71")
def test_indices_are_exact_past_the_floats() -> None:
    n = 2**24 + 2
    v = np.zeros((n, 1), np.float32)
    v[n - 1] = 1
    assert Genred("v", ["v = Vj(1)"], "ArgMax", axis=1)(v)[0, 0] == n - 1


@mark.parity("R-31", "X-73")
def test_a_kind_that_is_missing_counts_once() -> None:
    assert_allclose(Genred("x", ["x = Vi(3)"], axis=1)(x), x)
    assert Genred("p", ["p = Pm(1)"], axis=1)(p).shape == (1, 1)


@mark.parity("G-13")
def test_pickling() -> None:
    f = Genred(*GAUSS, axis=1)
    assert_array_equal(pickle.loads(pickle.dumps(f))(x, y, b, p), f(x, y, b, p))


@mark.parity("G-22")
def test_a_parameter_may_look_like_a_row_or_a_number() -> None:
    f = Genred(*GAUSS, axis=1)
    want = f(x, y, b, p)
    for same in (p[None], p[0], np.array(0.5)):
        if isinstance(same, np.ndarray):
            assert_array_equal(f(x, y, b, same), want)


@mark.parity("G-26")
def test_layouts_in_memory() -> None:
    f = Genred("SqDist(x,y)", XY, axis=1)
    want = f(x, y)
    assert_array_equal(f(np.asfortranarray(x), y[::-1][::-1]), want)
    wide = np.zeros((5, 6))
    wide[:, ::2] = x
    assert_array_equal(f(wide[:, ::2], y), want)


@mark.parity("G-27")
def test_batch_dimensions() -> None:
    xs, ys, ps = rng.random((2, 4, 5, 3)), rng.random((1, 4, 7, 3)), rng.random((2, 1, 1))
    f = Genred("p*SqDist(x,y)", [*XY, "p = Pm(1)"], axis=1)
    want = (ps[..., None, None] * ((xs[..., :, None, :] - ys[..., None, :, :]) ** 2)).sum(-1).sum(-1)
    got = f(xs, ys, ps)
    assert got.shape == (2, 4, 5, 1)
    assert_allclose(got[..., 0], want, rtol=1e-12)
    assert_array_equal(f(xs, ys, ps[..., None, :]), got)


@mark.parity("G-28", "X-16")
def test_different_numbers_of_batch_dimensions_broadcast() -> None:
    xs = rng.random((2, 4, 3))
    got = Genred("SqDist(x,y)", XY, axis=1)(xs, y)
    assert_allclose(got[1], ((xs[1][:, None] - y[None]) ** 2).sum(-1).sum(1)[:, None], rtol=1e-12)
    with pytest.raises(ShapeError, match="y has batch dimensions"):
        Genred("SqDist(x,y)", XY, axis=1)(xs, rng.random((3, 7, 3)))


@mark.parity("G-25")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_arrays_decide_the_dtype(dtype: type) -> None:
    got = Genred("SqDist(x,y)", XY, axis=1)(x.astype(dtype), y.astype(dtype))
    assert got.dtype == dtype


@mark.parity("G-31", "X-10", "X-76")
def test_out_receives_the_final_values() -> None:
    f = Genred("SqDist(x,y)", XY, "LogSumExp", axis=1)
    out = np.empty((5, 1))
    assert f(x, y, out=out) is out
    assert_array_equal(out, f(x, y))
    places = np.empty((5, 1), np.int64)
    Genred("SqDist(x,y)", XY, "ArgMin", axis=1)(x, y, out=places)
    assert_array_equal(places[:, 0], D2.argmin(1))
    with pytest.raises(DtypeError, match="out has dtype float32"):
        f(x, y, out=np.empty((5, 1), np.float32))
    with pytest.raises(ShapeError, match=r"out has shape \(5, 2\)"):
        f(x, y, out=np.empty((5, 2)))
    with pytest.raises(FormulaError, match="gives 2 arrays"):
        Genred("SqDist(x,y)", XY, "Min_ArgMin", axis=1)(x, y, out=out)
    out.flags.writeable = False
    with pytest.raises(ShapeError, match="read-only"):
        f(x, y, out=out)


@mark.parity("G-30", "X-11", "L-210", "L-211", "L-212")
@pytest.mark.parametrize("axis", [0, 1])
def test_block_sparse_ranges(axis: int) -> None:
    rows, cols = np.array([[0, 2], [2, 5]], np.int32), np.array([[0, 3], [3, 7]], np.int32)
    ends = np.array([1, 2], np.int32)
    ranges = (rows, ends, cols, cols, ends, rows)
    mask = np.zeros((5, 7))
    mask[:2, :3] = mask[2:, 3:] = 1
    got = Genred("SqDist(x,y)", XY, axis=axis)(x, y, ranges=ranges)
    assert_allclose(got[:, 0], (D2 * mask).sum(axis), rtol=1e-12)
    with pytest.raises(ShapeError, match="6 arrays, not 3"):
        Genred("SqDist(x,y)", XY, axis=axis)(x, y, ranges=ranges[:3])
    with pytest.raises(DtypeError, match=r"ranges\[0\] has dtype float64"):
        Genred("SqDist(x,y)", XY, axis=axis)(x, y, ranges=(rows * 1.0, *ranges[1:]))


@mark.parity("G-29", "X-13")
def test_ranges_and_batches_do_not_mix() -> None:
    r, e = np.array([[0, 5]]), np.array([1])
    with pytest.raises(ShapeError, match="batch"):
        Genred("SqDist(x,y)", XY, axis=1)(np.stack([x, x]), y, ranges=(r, e, r, r, e, r))


# ── generic_* ─────────────────────────────────────────────────────────────────────────────────────


@mark.parity("G-40", "G-44")
@pytest.mark.parametrize(("output", "axis"), [("a = Vi(1)", 1), ("Vj(1)", 0), ("Vx(0,1)", 1)])
def test_generic_sum_takes_its_axis_from_the_output(output: str, axis: int) -> None:
    f = generic_sum("SqDist(x,y)", output, *XY)
    assert (f.axis, f.reduction_op) == (axis, "Sum")
    assert_allclose(f(x, y)[:, 0], D2.sum(axis), rtol=1e-12)


@mark.parity("G-41", "G-45")
def test_generic_logsumexp_takes_a_weight() -> None:
    plain = generic_logsumexp("SqDist(x,y)", "a = Vi(1)", *XY)(x, y)
    assert_allclose(plain[:, 0], np.log(np.exp(D2).sum(1)), rtol=1e-12)
    f = generic_logsumexp("SqDist(x,y)", "a = Vi(2)", *XY, "b = Vj(2)", formula2="b")
    assert_allclose(f(x, y, b), np.log(np.exp(D2) @ b), rtol=1e-12)


@mark.parity("G-42", "G-43", "Z-01")
def test_generic_argmin_and_argkmin_give_int64() -> None:
    nearest = generic_argmin("SqDist(x,y)", "a = Vi(1)", *XY)(x, y)
    assert nearest.shape == (5, 1) and nearest.dtype == np.int64
    assert_array_equal(nearest[:, 0], D2.argmin(1))
    three = generic_argkmin("SqDist(x,y)", "a = Vj(3)", *XY)(x, y)
    assert three.shape == (7, 3) and three.dtype == np.int64
    assert_array_equal(three, np.argsort(D2, axis=0)[:3].T)


@mark.parity("G-44", "G-45", "X-75", "E-44")
def test_outputs_that_do_not_fit() -> None:
    with pytest.raises(AxisError, match=r"write Vi\(3\) or Vj\(3\)"):
        generic_sum("x-y", "a = Pm(3)", *XY)
    with pytest.raises(DimensionError, match=r"has dimension 2; Sum_Reduction.* gives 3"):
        generic_sum("x-y", "a = Vi(2)", *XY)
    with pytest.raises(TypeError, match="axis follows"):
        generic_sum("x-y", "a = Vi(3)", *XY, axis=1)
    with pytest.raises(TypeError, match="from `output`"):
        generic_argkmin("SqDist(x,y)", "a = Vi(3)", *XY, opt_arg=3)


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────


def _must_not_be_asked(spec: object) -> None:
    raise AssertionError("something was sent")


@pytest.fixture(autouse=True)
def _nothing_is_sent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "misuse" in request.node.name:
        monkeypatch.setattr("farsum.compute.prepared", _must_not_be_asked)


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        pytest.param(lambda: Genred("x", XY, axis=2), AxisError, "axis must be 0", marks=mark.parity("G-04", "E-44")),
        pytest.param(lambda: Genred("x", XY, axis=True), AxisError, "not True", marks=mark.parity("G-04")),
        pytest.param(lambda: Genred("x+w", XY), UnknownOperation, "'w' is neither", marks=mark.parity("G-12")),
        pytest.param(lambda: Genred("x", XY, "Summ"), UnknownOperation, "unknown reduction", marks=mark.parity("R-16")),
        pytest.param(lambda: Genred("x", XY, "Zero"), UnknownOperation, "unknown reduction", marks=mark.parity("R-16")),
        pytest.param(lambda: Genred("x", XY, opt_arg=3), FormulaError, "takes no K", marks=mark.parity("R-17")),
        pytest.param(lambda: Genred("x", XY, "KMin"), FormulaError, "needs K", marks=mark.parity("R-18", "G-06")),
        pytest.param(lambda: Genred("x", XY, "KMin", opt_arg=0), FormulaError, "needs K", marks=mark.parity("R-18")),
        pytest.param(lambda: Genred("x", XY, "KMin", opt_arg=2.0), FormulaError, "not 2.0", marks=mark.parity("R-18")),  # type: ignore[arg-type]
        pytest.param(lambda: Genred("x", XY, "LogSumExp"), DimensionError, "the formula is 'x'", marks=mark.parity("R-08", "E-24")),
        pytest.param(lambda: Genred("x|y", XY, "LogSumExpWeight"), FormulaError, "formula2", marks=mark.parity("R-10")),
        pytest.param(lambda: Genred("x|y", XY, "SoftMax"), FormulaError, "formula2", marks=mark.parity("R-12")),
        pytest.param(lambda: Genred("x", XY, formula2="y"), FormulaError, "takes no weight", marks=mark.parity("G-07")),
        pytest.param(lambda: Genred("Sum_Reduction(x,0)", XY), FormulaError, "reduction already"),
        pytest.param(lambda: Genred("x", XY, dtype="int32"), DtypeError, "dtype int32", marks=mark.parity("X-74", "G-05")),
        pytest.param(lambda: Genred("x", XY, dtype_acc="double"), FormulaError, "dtype_acc must be", marks=mark.parity("R-47", "G-09")),
        pytest.param(lambda: Genred("x", XY, dtype_acc="float32", use_double_acc=True), FormulaError, "not both", marks=mark.parity("R-48", "X-39")),
        pytest.param(lambda: Genred("x", XY, "Min", dtype_acc="float64"), FormulaError, "adds nothing up", marks=mark.parity("R-47")),
        pytest.param(lambda: Genred("x", XY, "Min", use_double_acc=True), FormulaError, "adds nothing up", marks=mark.parity("R-48")),
        pytest.param(lambda: Genred("x", XY, sum_scheme="fast"), FormulaError, "direct_sum, block_sum", marks=mark.parity("R-45", "X-39")),
        pytest.param(lambda: Genred("x", XY, "ArgMin", sum_scheme="kahan_scheme"), FormulaError, "adds nothing up", marks=mark.parity("R-45")),
        pytest.param(lambda: Genred("x", XY, optional_flags=[]), TypeError, "optional_flags", marks=mark.parity("X-67")),  # type: ignore[call-arg]
    ],
)  # fmt: skip
def test_misuse_of_the_constructor(build, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        build()
    assert isinstance(caught.value, FarsumError | TypeError)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        pytest.param(lambda f: f(x), ShapeError, r"expected 2 arguments \(x, y\), received 1", marks=mark.parity("G-20", "E-26")),
        pytest.param(lambda f: f(x, y, "CPU"), ShapeError, "received 3", marks=mark.parity("G-20")),
        pytest.param(lambda f: f(x, y.tolist()), OperandError, "y must be a NumPy array or a tensor, not list", marks=mark.parity("G-21")),
        pytest.param(lambda f: f(x, 2.0), OperandError, "y must be a NumPy array or a tensor, not float", marks=mark.parity("G-21", "E-43")),
        pytest.param(lambda f: f(rng.random((5, 4)), y), ShapeError, r"x has shape \(5, 4\).*\(\.\.\., M, 3\)", marks=mark.parity("G-24", "X-14")),
        pytest.param(lambda f: f(x, rng.random((7, 2))), ShapeError, r"y has shape \(7, 2\).*\(\.\.\., N, 3\)", marks=mark.parity("G-24", "X-14")),
        pytest.param(lambda f: f(x[0], y), ShapeError, r"x has shape \(3,\)", marks=mark.parity("X-14")),
        pytest.param(lambda f: f(x.astype(int), y), DtypeError, "x of shape .* has dtype int64", marks=mark.parity("G-25", "E-30")),
        pytest.param(lambda f: f(x, y, backend="cpu"), FormulaError, "is not one of auto, CPU", marks=mark.parity("E-28")),
        pytest.param(lambda f: f(x, y, backend="GPU_1D"), DeviceMissing, "needs a CUDA engine", marks=mark.parity("X-81", "E-28")),
    ],
)  # fmt: skip
def test_misuse_of_the_call(call, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(Genred("SqDist(x,y)", XY, axis=1))


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_arrays_are_interleaved_reals(dtype: type) -> None:
    rng = np.random.default_rng(0)
    z, w = (rng.normal(size=(n, 2)) + 1j * rng.normal(size=(n, 2)) for n in (5, 7))
    z, w = z.astype(dtype), w.astype(dtype)
    product = Genred("ComplexMult(z, Conj(w))", ["z = Vi(4)", "w = Vj(4)"], axis=1)(z, w)
    assert product.dtype == z.real.dtype
    tolerance = 1e-5 if dtype is np.complex64 else 1e-13
    np.testing.assert_allclose(product.view(dtype), (z[:, None] * w[None].conj()).sum(1), rtol=tolerance)


@mark.parity("G-25", "X-15")
def test_arrays_of_two_dtypes_promote_as_in_numpy() -> None:
    mixed = Genred("SqDist(x,y)", XY, axis=1)(x, y.astype(np.float32))
    assert mixed.dtype == np.float64
    np.testing.assert_allclose(mixed, ((x[:, None] - y.astype(np.float32)[None]) ** 2).sum((1, 2))[:, None])
    with pytest.raises(DtypeError, match="y has dtype float32 where the job computes in float64"):
        Genred("SqDist(x,y)", XY, axis=1, dtype="float64")(x, y.astype(np.float32))


@mark.parity("X-14")
def test_misuse_rows_of_one_kind_must_agree() -> None:
    f = Genred("SqDist(x,y)*w", [*XY, "w = Vi(1)"], axis=1)
    with pytest.raises(ShapeError, match="w has 4 rows along i where x has 5"):
        f(x, y, rng.random((4, 1)))


@mark.parity("X-17")
def test_misuse_of_an_inline_variable() -> None:
    with pytest.raises(ShapeError, match=r"argument 0 has shape \(5, 3\)"):
        Genred("Var(0,2,0)", [], axis=1)(x)


@mark.parity("X-14", "F-12")
def test_misuse_of_an_unused_argument() -> None:
    with pytest.raises(ShapeError, match=r"y has shape \(7, 4\)"):
        Genred("x", XY, axis=1)(x, rng.random((7, 4)))


@mark.parity("G-05", "G-08", "X-74")
@pytest.mark.parametrize("word", ["dtype", "cuda_type"])
def test_misuse_of_a_declared_dtype(word: str) -> None:
    options: dict[str, Any] = {word: "float32"}
    f = Genred("SqDist(x,y)", XY, axis=1, **options)
    with pytest.raises(DtypeError, match="x has dtype float64"):
        f(x, y)


@mark.parity("G-09", "R-47")
def test_misuse_of_a_narrow_accumulator() -> None:
    with pytest.raises(FormulaError, match="narrower"):
        Genred("SqDist(x,y)", XY, axis=1, dtype_acc="float32")(x, y)


def _error_of_a_long_sum(reduction: str, options: dict) -> float:
    """The relative error of a float32 reduction of 20 000 equal terms."""
    a, v = np.zeros((1, 1), np.float32), np.full((20_000, 1), 0.1, np.float32)
    got = Genred("v+0*a", ["a = Vi(1)", "v = Vj(1)"], reduction, axis=1, **options)(a, v)
    assert got.dtype == np.float32
    wide = v.astype(np.float64)
    want = wide.sum() if reduction == "Sum" else np.log(np.exp(wide).sum())
    return abs(float(got[0, 0]) / want - 1)


@mark.parity("G-09", "R-45", "R-47", "R-48", "X-37", "X-38")
@pytest.mark.parametrize(
    "options", [{"use_double_acc": True}, {"dtype_acc": "float64"}, {"sum_scheme": "kahan_scheme"}], ids=str
)
@pytest.mark.parametrize("reduction", ["Sum", "LogSumExp"])
def test_accuracy_options_round_once(reduction: str, options: dict) -> None:
    assert _error_of_a_long_sum(reduction, options) < 2**-23


@mark.parity("G-09", "G-10", "R-45", "R-46")
@pytest.mark.parametrize(
    "options",
    [
        {"dtype_acc": "float32"},
        {"sum_scheme": "block_sum"},
        {"sum_scheme": "direct_sum"},
        {"enable_chunks": False, "rec_multVar_highdim": None, "use_fast_math": False},
    ],
    ids=str,
)
def test_other_options_keep_the_value(options: dict) -> None:
    assert _error_of_a_long_sum("Sum", options) == _error_of_a_long_sum("Sum", {}) < 1e-5
