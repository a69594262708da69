"""The options of every reduction that computes: values with and without them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum.numpy import LazyTensor, Pm, Vi, Vj
from farsum.reduced import Reduced
from farsum_kernels.errors import (
    AxisMissing,
    DeviceMissing,
    DtypeError,
    FormulaError,
    OperandError,
    ShapeError,
    UnknownOperation,
)

mark = pytest.mark
rng = np.random.default_rng(0)
x, y, b = rng.random((5, 3)), rng.random((7, 3)), rng.random((7, 2))
z = x + 1j * x[::-1]
D2 = ((x[:, None] - y[None]) ** 2).sum(-1)
# Any: what the type checker refuses is tried here too.
x_i: Any = Vi(x)
y_j: Any = Vj(y)
b_j: Any = Vj(b)
D_ij: Any = x_i.sqdist(y_j)
E = np.exp(D2)

_rows, _cols, _ends = np.array([[0, 2], [2, 5]]), np.array([[0, 3], [3, 7]]), np.array([1, 2])
RANGES = (_rows, _ends, _cols, _cols, _ends, _rows)
SEEN = np.zeros((5, 7))
SEEN[:2, :3] = SEEN[2:, 3:] = 1

# ── names ─────────────────────────────────────────────────────────────────────────────────────────

SYNONYMS: list[tuple[str, dict[str, Any], Any]] = [
    ("logsumexp_reduction", {}, np.log(E.sum(1))[:, None]),
    ("logsumexp_reduction", {"weight": b_j}, np.log(E @ b)),
    ("sumsoftmaxweight_reduction", {"weight": b_j}, E @ b / E.sum(1)[:, None]),
    ("min_argmin_reduction", {}, (D2.min(1)[:, None], D2.argmin(1)[:, None])),
    ("max_argmax_reduction", {}, (D2.max(1)[:, None], D2.argmax(1)[:, None])),
    ("Kmin_reduction", {"K": 3}, np.sort(D2, 1)[:, :3]),
    ("argKmin_reduction", {"K": 3}, np.argsort(D2, 1)[:, :3]),
    ("Kmin_argKmin_reduction", {"K": 3}, (np.sort(D2, 1)[:, :3], np.argsort(D2, 1)[:, :3])),
]


def agree(got: Any, want: Any) -> None:
    assert isinstance(got, tuple) == isinstance(want, tuple)
    for g, w in zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]:
        assert_allclose(g, w, rtol=1e-12)


@mark.parity("L-156")
@mark.parametrize(("name", "keywords", "want"), SYNONYMS)
@mark.parametrize("axis", [{"axis": 1}, {"dim": 1}, {"axis": -2}], ids=str)
def test_synonyms_take_keywords(name: str, keywords: dict, want: Any, axis: dict) -> None:
    agree(getattr(D_ij, name)(**keywords, **axis), want)


@mark.parity("L-156")
@mark.parametrize("name", sorted({name for name, _, _ in SYNONYMS}))
def test_synonyms_take_nothing_by_position(name: str) -> None:
    with pytest.raises(TypeError, match="positional"):
        getattr(D_ij, name)(1)


NAMED: list[tuple[str, dict[str, Any], Any]] = [
    ("Sum", {}, D2.sum(1)[:, None]),
    ("Min", {}, D2.min(1)[:, None]),
    ("Max", {}, D2.max(1)[:, None]),
    ("ArgMin", {}, D2.argmin(1)[:, None]),
    ("ArgMax", {}, D2.argmax(1)[:, None]),
    ("Min_ArgMin", {}, (D2.min(1)[:, None], D2.argmin(1)[:, None])),
    ("Max_ArgMax", {}, (D2.max(1)[:, None], D2.argmax(1)[:, None])),
    ("KMin", {"opt_arg": 3}, np.sort(D2, 1)[:, :3]),
    ("ArgKMin", {"opt_arg": 3}, np.argsort(D2, 1)[:, :3]),
    ("KMin_ArgKMin", {"opt_arg": 3}, (np.sort(D2, 1)[:, :3], np.argsort(D2, 1)[:, :3])),
    ("LogSumExp", {}, np.log(E.sum(1))[:, None]),
    ("LogSumExp", {"other": b_j}, np.log(E @ b)),
    ("LogSumExpWeight", {"other": b_j}, np.log(E @ b)),
    ("SumSoftMaxWeight", {"other": b_j}, E @ b / E.sum(1)[:, None]),
    ("SoftMax", {"other": b_j}, E @ b / E.sum(1)[:, None]),
]


@mark.parity("L-157", "L-178")
@mark.parametrize(("name", "keywords", "want"), NAMED)
def test_any_reduction_by_its_name(name: str, keywords: dict, want: Any) -> None:
    agree(D_ij.reduction(name, axis=1, **keywords), want)
    agree(D_ij.reduction(reduction_op=name, dim=1, call=False, **keywords)(), want)


@mark.parity("L-157")
def test_the_generic_entry_counts_its_arguments() -> None:
    agree(D_ij.reduction("KMin", None, 3, 0), np.sort(D2, 0)[:3].T)
    agree(D_ij.reduction("LogSumExp", b_j, None, 1), np.log(E @ b))
    got = (x_i - y_j).reduction("Sum", axis=1, is_complex=None)
    assert_allclose(got, (x[:, None] - y).sum(1))


WRONG_NAMES = [
    pytest.param(lambda: D_ij.reduction("Summ", axis=1), UnknownOperation, "Summ", marks=mark.parity("L-157", "E-45")),
    pytest.param(lambda: D_ij.reduction("Zero", axis=1), UnknownOperation, "Zero", marks=mark.parity("L-157")),
    pytest.param(lambda: D_ij.reduction("Sum"), AxisMissing, "axis", marks=mark.parity("L-157", "E-22")),
    pytest.param(lambda: D_ij.reduction("Sum", axis=1, opt_arg=3), FormulaError, "K", marks=mark.parity("L-178")),
    pytest.param(lambda: D_ij.reduction("KMin", axis=1), FormulaError, "K", marks=mark.parity("L-178")),
    pytest.param(lambda: D_ij.reduction("KMin", axis=1, opt_arg=2.0), FormulaError, "2.0|int", marks=mark.parity("L-178")),
    pytest.param(lambda: D_ij.reduction("Sum", other=b_j, axis=1), FormulaError, "weight", marks=mark.parity("L-157")),
    pytest.param(lambda: D_ij.reduction("SumSoftMaxWeight", axis=1), FormulaError, "weight|formula2", marks=mark.parity("L-157")),
    pytest.param(lambda: D_ij.reduction("LogSumExp", other=b, axis=1), OperandError, "ndarray", marks=mark.parity("L-157", "E-25")),
    pytest.param(lambda: D_ij.argmin(), AxisMissing, "axis", marks=mark.parity("E-22")),
    pytest.param(lambda: D_ij.sum_reduction(), AxisMissing, "axis", marks=mark.parity("E-22")),
    pytest.param(lambda: D_ij.Kmin(3), AxisMissing, "axis", marks=mark.parity("E-22")),
]  # fmt: skip


@mark.parametrize(("wrong", "error", "words"), WRONG_NAMES)
def test_mistakes_of_a_reduction(wrong: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        wrong()


@mark.parity("L-157", "E-45")
def test_an_unknown_reduction_is_a_name_error_too() -> None:
    with pytest.raises(NameError, match="Summ"):
        D_ij.reduction("Summ", axis=1)


# ── what is given back ────────────────────────────────────────────────────────────────────────────

COMPUTING: list[tuple[str, tuple[Any, ...]]] = [
    ("sum", ()), ("min", ()), ("max", ()), ("argmin", ()), ("argmax", ()), ("sum_reduction", ()), ("min_reduction", ()),
    ("max_reduction", ()), ("argmin_reduction", ()), ("argmax_reduction", ()), ("logsumexp", ()), ("sumsoftmaxweight", (b_j,)),
    ("min_argmin", ()), ("max_argmax", ()), ("Kmin", (3,)), ("argKmin", (3,)), ("Kmin_argKmin", (3,)), ("reduction", ("Sum",)),
]  # fmt: skip
every_reduction = mark.parametrize(("name", "args"), COMPUTING, ids=[name for name, _ in COMPUTING])


@mark.parity("L-161")
@every_reduction
@mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_results_are_plain_arrays(name: str, args: tuple, dtype: type) -> None:
    lazy: Any = Vi(x.astype(dtype)).sqdist(Vj(y.astype(dtype)))
    if name == "sumsoftmaxweight":
        args = (Vj(b.astype(dtype)),)
    got = getattr(lazy, name)(*args, axis=1)
    for k, array in enumerate(got if isinstance(got, tuple) else (got,)):
        assert type(array) is np.ndarray and array.flags.writeable
        assert array.dtype == (np.int64 if k == 1 or name.startswith("arg") else dtype)


@mark.parity("L-170")
@every_reduction
def test_deferred_reductions_give_the_same(name: str, args: tuple) -> None:
    later = getattr(D_ij, name)(*args, axis=1, call=False)
    assert type(later) is Reduced
    agree(later(), getattr(D_ij, name)(*args, axis=1))
    agree(later(), later())


@mark.parity("L-162")
@every_reduction
@mark.parametrize(
    "lazy", [Pm(3), Pm(2.5), Pm([1.0]) * 2, LazyTensor(1) / 2 + 1], ids=["int", "float", "list", "ratio"]
)
def test_a_formula_without_data_has_nothing_to_reduce(name: str, args: tuple, lazy: Any) -> None:
    if name == "sumsoftmaxweight":
        args = (Pm([1.0, 2.0]),)
    with pytest.raises(FormulaError, match="no array"):
        getattr(lazy, name)(*args, axis=1)


# ── keywords ──────────────────────────────────────────────────────────────────────────────────────


@mark.parity("E-23", "L-160", "L-177")
@every_reduction
@mark.parametrize("keyword", ["backendd", "keepdim", "keepdims", "optional_flags", "sum_sheme", "eps"])
def test_unknown_keywords_are_refused(name: str, args: tuple, keyword: str) -> None:
    with pytest.raises(TypeError, match=keyword):
        getattr(D_ij, name)(*args, axis=1, **{keyword: True})


@mark.parity("E-23", "X-48", "L-150")
@mark.parametrize("name", ["sum", "min", "max", "argmin", "argmax"])
def test_keywords_of_lazy_reductions(name: str) -> None:
    plain = getattr(x_i, name)(-1)
    for options in (
        {"keepdim": True},
        {"keepdims": True},
        {"backend": "CPU", "call": True},
        {"use_double_acc": True},
    ):
        assert getattr(x_i, name)(-1, **options).formula == plain.formula
    for unknown in ("backendd", "optional_flags", "keepdimss"):
        with pytest.raises(TypeError, match=unknown):
            getattr(x_i, name)(-1, **{unknown: None})


@mark.parity("L-160")
@every_reduction
@mark.parametrize("axis", [(0, 1), [1], "1", 1.0, True], ids=repr)
def test_an_axis_is_an_int(name: str, args: tuple, axis: Any) -> None:
    with pytest.raises(TypeError, match="axis"):
        getattr(D_ij, name)(*args, axis=axis)


# ── backend ───────────────────────────────────────────────────────────────────────────────────────

GPU = ["GPU", "GPU_1D", "GPU_1D_device", "GPU_1D_host", "GPU_2D", "GPU_2D_device", "GPU_2D_host"]


@mark.parity("L-171", "L-172")
@mark.parametrize(
    "options", [{"backend": "auto"}, {"backend": "CPU"}, {"device_id": -1}, {"device_id": 0}], ids=str
)
def test_backends_that_are_there(options: dict) -> None:
    want = D_ij.sum(axis=1)
    assert_array_equal(D_ij.sum(axis=1, **options), want)
    assert_array_equal(D_ij.sum(axis=1, call=False)(**options), want)
    assert_array_equal(D_ij.sum(axis=1, call=False, **options)(), want)


@mark.parity("L-171", "E-28", "X-81")
@mark.parametrize("backend", GPU)
def test_gpu_backends_are_refused_where_there_is_no_gpu(backend: str) -> None:
    for use in (
        lambda: D_ij.sum(axis=1, backend=backend),
        lambda: D_ij.logsumexp(axis=0, backend=backend),
        lambda: D_ij.sum(axis=1, call=False)(backend=backend),
        lambda: (Vi(0, 3) | y_j).sum(axis=1)(x, backend=backend),
    ):
        with pytest.raises(DeviceMissing, match=f"{backend}.*CUDA") as caught:
            use()
        assert isinstance(caught.value, KeyError)


@mark.parity("L-171", "E-28")
@mark.parametrize("backend", ["cpu", "Cpu", "CUDA", "gpu", "", None, 0, "GPU_3D"], ids=repr)
def test_other_backends_are_refused(backend: Any) -> None:
    with pytest.raises(FormulaError, match="backend"):
        D_ij.sum(axis=1, backend=backend)


# ── out ───────────────────────────────────────────────────────────────────────────────────────────

OUT: list[tuple[Callable[..., Any], np.ndarray]] = [
    (lambda **o: D_ij.sum(axis=1, **o), D2.sum(1)[:, None]),
    (lambda **o: (x_i - y_j).sum(axis=0, **o), (x[:, None] - y).sum(0)),
    (lambda **o: D_ij.logsumexp(axis=1, **o), np.log(E.sum(1))[:, None]),
    (lambda **o: D_ij.sumsoftmaxweight(b_j, axis=1, **o), E @ b / E.sum(1)[:, None]),
    (lambda **o: D_ij.argmin(axis=1, **o), D2.argmin(1)[:, None]),
    (lambda **o: D_ij.argKmin(3, axis=1, **o), np.argsort(D2, 1)[:, :3]),
    (lambda **o: D_ij.sum(axis=1, call=False)(**o), D2.sum(1)[:, None]),
    (lambda **o: (Vi(0, 3).sqdist(y_j)).argmin(axis=1)(x, **o), D2.argmin(1)[:, None]),
    (lambda **o: D_ij.sum(axis=1, use_double_acc=True, **o), D2.sum(1)[:, None]),
    (lambda **o: (Vi(z) * y_j).sum(axis=1, **o), (z[:, None] * y).sum(1)),
    (lambda **o: D_ij.sum(axis=1, ranges=RANGES, **o), (D2 * SEEN).sum(1)[:, None]),
    (lambda **o: D_ij.sum(axis=1, mask="causal", **o), np.tril(D2).sum(1)[:, None]),
]


@mark.parity("L-174", "X-10", "X-76")
@mark.parametrize(("reduce", "want"), OUT)
def test_out_receives_the_final_result(reduce: Callable[..., Any], want: np.ndarray) -> None:
    out = np.zeros_like(want)
    assert reduce(out=out) is out
    assert_allclose(out, want, rtol=1e-12)
    wide = np.zeros((*want.shape[:-1], 2 * want.shape[-1]), want.dtype)
    spread = wide[..., ::2]
    assert reduce(out=spread) is spread
    assert_allclose(wide[..., ::2], want, rtol=1e-12)
    assert not wide[..., 1::2].any()


@mark.parity("L-174", "X-10")
@mark.parametrize(("reduce", "want"), OUT)
def test_out_must_fit(reduce: Callable[..., Any], want: np.ndarray) -> None:
    narrow = {"i": np.float64, "f": np.float32, "c": np.complex64}[want.dtype.kind]
    with pytest.raises((DtypeError, ShapeError), match="out"):
        reduce(out=np.zeros(want.shape, narrow))
    with pytest.raises(ShapeError, match="out"):
        reduce(out=np.zeros((want.shape[0], want.shape[1] + 1), want.dtype))
    with pytest.raises(ShapeError, match="out"):
        reduce(out=np.zeros(want.shape[0], want.dtype))
    locked = np.zeros_like(want)
    locked.flags.writeable = False
    with pytest.raises(ShapeError, match="out"):
        reduce(out=locked)
    with pytest.raises(ValueError, match="out"):
        reduce(out=want.tolist())


@mark.parity("L-174")
def test_out_takes_one_array() -> None:
    with pytest.raises(FormulaError, match="2 arrays"):
        D_ij.min_argmin(axis=1, out=np.zeros((5, 1)))


# ── accuracy ──────────────────────────────────────────────────────────────────────────────────────


def relative_error(name: str, options: dict[str, Any]) -> float:
    """Of a float32 reduction of 20 000 equal terms."""
    tenths: Any = Vj(np.full((20_000, 1), 0.1, np.float32))
    got = getattr(tenths, name)(axis=1, **options)
    assert got.dtype == np.float32
    wide = np.full(20_000, np.float32(0.1), np.float64)
    want = wide.sum() if name == "sum" else np.log(np.exp(wide).sum())
    return abs(float(got[0, 0]) / want - 1)


@mark.parity("L-175", "R-47", "R-48", "R-45", "X-37", "X-38")
@mark.parametrize("name", ["sum", "logsumexp"])
@mark.parametrize(
    "options", [{"use_double_acc": True}, {"dtype_acc": "float64"}, {"sum_scheme": "kahan_scheme"}], ids=str
)
def test_accuracy_options_round_once(name: str, options: dict) -> None:
    assert relative_error(name, options) < 2**-23


@mark.parity("L-175", "L-176", "R-46")
@mark.parametrize(
    "options",
    [
        {"dtype_acc": "float32"}, {"dtype_acc": "auto", "use_double_acc": False}, {"sum_scheme": "block_sum"},
        {"sum_scheme": "direct_sum"}, {"enable_chunks": True, "use_fast_math": True},
        {"enable_chunks": False, "use_fast_math": False}, {"rec_multVar_highdim": None},
    ],
    ids=str,
)  # fmt: skip
def test_other_options_keep_the_value(options: dict) -> None:
    assert relative_error("sum", options) == relative_error("sum", {}) < 1e-5


BAD_ACCURACY = [
    pytest.param({"dtype_acc": "double"}, "dtype_acc", marks=mark.parity("E-29")),
    pytest.param({"dtype_acc": None}, "dtype_acc", marks=mark.parity("E-29")),
    pytest.param(
        {"dtype_acc": "float64", "use_double_acc": True}, "not both", marks=mark.parity("E-29", "X-39")
    ),
    pytest.param({"sum_scheme": "fast"}, "direct_sum", marks=mark.parity("E-29", "X-39")),
    pytest.param({"sum_scheme": None}, "sum_scheme", marks=mark.parity("E-29")),
    pytest.param({"dtype_acc": "float32"}, "narrower", marks=mark.parity("E-29", "R-47")),
]


@mark.parametrize(("options", "words"), BAD_ACCURACY)
def test_accuracy_that_cannot_be_had(options: dict, words: str) -> None:
    with pytest.raises(FormulaError, match=words):
        D_ij.sum(axis=1, **options)


@mark.parity("E-29", "R-45", "R-47", "R-48")
@mark.parametrize("name", ["min", "argmax", "min_argmin"])
@mark.parametrize("options", [{"use_double_acc": True}, {"dtype_acc": "float64"}, {"sum_scheme": "kahan_scheme"}], ids=str)  # fmt: skip
def test_reductions_that_add_nothing_up(name: str, options: dict) -> None:
    with pytest.raises(FormulaError, match="adds nothing up"):
        getattr(D_ij, name)(axis=1, **options)


@mark.parity("E-36", "X-71", "R-43")
@mark.parametrize(("dtype", "n"), [(np.float16, 5000), (np.float32, 2**24 + 2)])
def test_indices_are_exact_however_long_the_axis(dtype: Any, n: int) -> None:
    v = np.zeros((n, 1), dtype)
    v[n - 1] = 1
    last: Any = Vj(v)
    got = last.argmax(axis=1)
    assert got.dtype == np.int64 and got[0, 0] == n - 1


# ── products with long vectors ────────────────────────────────────────────────────────────────────

long_i, long_j = rng.random((5, 120)), rng.random((7, 120))
LONG = [
    pytest.param(
        lambda: D_ij * Vi(long_i), D2[..., None] * long_i[:, None], marks=mark.parity("L-250", "X-32")
    ),
    pytest.param(lambda: D_ij * Vj(long_j), D2[..., None] * long_j, marks=mark.parity("L-251", "X-32")),
    pytest.param(lambda: D_ij * Pm(long_i[0]), D2[..., None] * long_i[0], marks=mark.parity("L-250", "X-32")),
]


@mark.parametrize("axis", [0, 1])
@mark.parametrize(("lazy", "dense"), LONG)
def test_long_vectors_honour_every_option(lazy: Callable[[], Any], dense: np.ndarray, axis: int) -> None:
    made, want = lazy(), dense.sum(axis)
    assert_allclose(made.sum(axis=axis), want)
    later = made.sum(axis=axis, call=False)
    assert type(later) is Reduced
    assert_allclose(later(), want)
    out = np.zeros_like(want)
    assert made.sum(axis=axis, out=out) is out
    assert_allclose(out, want)
    assert_allclose(made.sum(axis=axis, ranges=RANGES), (dense * SEEN[..., None]).sum(axis))
    for backend, error in [("GPU", DeviceMissing), ("bogus", FormulaError)]:
        with pytest.raises(error, match=backend):
            made.sum(axis=axis, backend=backend)
    with pytest.raises(FormulaError, match="dtype_acc"):
        made.sum(axis=axis, dtype_acc="double")
