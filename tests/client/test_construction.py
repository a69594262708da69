"""What a LazyTensor is made from: numbers, lists, arrays, symbolic variables; and what it is not made from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum.numpy import ComplexLazyTensor, LazyTensor, Pm, Var, Vi, Vj
from farsum_kernels.errors import AxisError, DtypeError, FarsumError, FormulaError, OperandError, ShapeError

mark = pytest.mark
rng = np.random.default_rng(0)
x, y = rng.random((5, 3)), rng.random((7, 3))
zeros = np.zeros((1, 1))
# Any: what the type checker refuses is tried here too.
make: Any = LazyTensor
vi: Any = Vi
vj: Any = Vj
pm: Any = Pm
var: Any = Var


def value(lazy: Any, dtype: type = np.float64) -> np.ndarray:
    """The entries of a parameter, next to an array of `dtype`."""
    total = (lazy + Vi(zeros.astype(dtype))).sum(axis=1)
    assert total.dtype == dtype
    return total[0]


# ── numbers and lists ─────────────────────────────────────────────────────────────────────────────


@mark.parity("L-02")
@mark.parametrize("n", [0, 7, -3, 123456789, np.int64(7), np.uint8(7)])
def test_an_int_is_an_exact_constant(n: Any) -> None:
    constant = make(n)
    assert (constant.shape, constant.dim(), constant.dtype, constant.variables) == ((1, 1), 3, None, ())
    assert (constant.ni, constant.nj) == (None, None)
    assert value(constant)[0] == int(n)
    assert value(make(n, axis=0))[0] == int(n)  # a constant runs along no axis


@mark.parity("L-03", "L-04")
@mark.parametrize("number", [2.5, np.float16(2.5), np.float32(2.5), np.float64(2.5)])
@mark.parametrize("dtype", [np.float32, np.float64])
def test_a_float_takes_the_dtype_of_the_arrays(number: Any, dtype: type) -> None:
    parameter = make(number)
    assert (parameter.shape, parameter.dtype, parameter.axis) == ((1, 1), None, 2)
    assert value(parameter, dtype)[0] == 2.5
    assert value(number * Vi(np.ones((1, 1), dtype)), dtype)[0] == 2.5


@mark.parity("L-05")
@mark.parametrize("axis", [None, 2])
def test_a_list_is_a_parameter_vector(axis: int | None) -> None:
    parameter = make([1, 2.5, np.float32(0.5), np.int64(4)], axis=axis)
    assert (parameter.shape, parameter.dtype, parameter.axis) == ((1, 1, 4), None, 2)
    assert_array_equal(value(parameter), [1, 2.5, 0.5, 4])
    assert_array_equal(value(parameter, np.float32), [1, 2.5, 0.5, 4])
    assert make([3.0]).shape == (1, 1)


@mark.parity("L-06")
@mark.parametrize("axis", [None, 2])
@mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_vector_is_a_parameter_with_its_own_dtype(dtype: type, axis: int | None) -> None:
    parameter = make(np.array([1, 2.5], dtype), axis=axis)
    assert (parameter.shape, parameter.dtype, parameter.axis) == ((1, 1, 2), np.dtype(dtype).name, 2)
    assert_array_equal((parameter + Vi(zeros)).sum(axis=1), [[1, 2.5]])


@mark.parity("L-08", "X-50", "Z-10")
@mark.parametrize("dtype", [np.float32, np.float64])
def test_an_array_without_axes_is_one_parameter(dtype: type) -> None:
    parameter = make(np.array(2.5, dtype))
    assert (parameter.shape, parameter.dtype) == ((1, 1), np.dtype(dtype).name)
    assert value(parameter, dtype)[0] == 2.5
    assert_array_equal((np.array(2.5) * Vi(x)).sum(axis=1), 2.5 * x)


# ── arrays with rows ──────────────────────────────────────────────────────────────────────────────


@mark.parity("L-15", "X-68")
@mark.parametrize("batch", [(), (2,), (2, 4)])
def test_middle_axes_of_one_make_a_parameter(batch: tuple[int, ...]) -> None:
    p = rng.random((*batch, 1, 1, 3))
    parameter = make(p)
    assert (parameter.ni, parameter.nj, parameter.axis) == (None, None, 2)
    assert parameter.shape == (*batch, 1, 1, 3)
    assert parameter.batchdims == (batch or None)
    got = (parameter * Vi(x)).sum(axis=len(batch))  # over i
    assert_allclose(got, (p * x[:, None]).sum(-3))


@mark.parity("L-15")
def test_a_single_row_fits_any_number_of_rows() -> None:
    row = make(x[None, :1])  # (1, 1, 3): one row of x_i or of y_j alike
    assert_allclose((row - Vj(y)).sqnorm2().sum(axis=0), ((x[:1] - y) ** 2).sum(1)[:, None])
    assert_allclose((Vi(x) - row).sqnorm2().sum(axis=1), ((x - x[:1]) ** 2).sum(1)[:, None])


# ── symbolic variables ────────────────────────────────────────────────────────────────────────────


@mark.parity("L-18", "L-32")
@mark.parametrize(
    ("short", "category"), [(lambda: Vi(2, 3), 0), (lambda: Vj(2, 3), 1), (lambda: Pm(2, 3), 2)]
)
def test_a_triple_is_a_symbolic_variable(short: Callable[[], Any], category: int) -> None:
    for made in (make((2, 3, category)), short()):
        assert made.symbolic_variables == ((2, 3, category),)
        assert (made.ind, made.axis, made.shape, made.dtype) == (2, category, (1, 1, 3), None)
        assert (made.ni, made.nj, made.variables) == (None, None, ())


@mark.parity("L-35")
def test_the_general_form_of_a_variable() -> None:
    assert Var(2, 3, 1).symbolic_variables == Vj(2, 3).symbolic_variables == ((2, 3, 1),)
    assert_array_equal(Var(x, cat=0).sum(axis=1), x)
    assert_array_equal((Var(x, None, 0) - Var(y, None, 1)).sum(axis=1), (Vi(x) - Vj(y)).sum(axis=1))
    assert_array_equal((Vi(x) * Var([1.0, 2.0, 3.0], cat=2)).sum(axis=1), x * [1, 2, 3])
    with pytest.raises(ValueError, match="cat"):
        var(0, 3, 5)
    with pytest.raises(ValueError):
        var(0)


@mark.parity("L-31")
def test_what_a_parameter_is_made_from() -> None:
    for given, want in [(2, [2]), (2.5, [2.5]), ([1, 2], [1, 2]), (np.array([1.0, 2.0]), [1, 2]), (np.array(2.5), [2.5])]:  # fmt: skip
        assert_array_equal(value(pm(given)), want)
        assert pm(given).axis == 2
    assert (pm(3).variables, pm(3).dtype) == ((), None)  # an int is a constant, not data


# ── complex numbers ───────────────────────────────────────────────────────────────────────────────


@mark.parity("L-19", "L-20", "X-43")
@mark.parametrize(
    ("given", "want", "dtype"),
    [
        (1 + 2j, [1 + 2j], None),
        (np.complex128(1 + 2j), [1 + 2j], None),
        (np.complex64(1 + 2j), [1 + 2j], None),
        ([1 + 2j], [1 + 2j], None),
        ([1 + 2j, 3 + 4j], [1 + 2j, 3 + 4j], None),
        ([1 + 2j, 3, 0.5, -1j], [1 + 2j, 3, 0.5, -1j], None),
        ([3, 1 + 2j], [3, 1 + 2j], None),
        (np.array([1 + 2j, 3 + 4j]), [1 + 2j, 3 + 4j], "complex128"),
        (np.array([1 + 2j, 3 + 4j], np.complex64), [1 + 2j, 3 + 4j], "complex64"),
        (np.array(1 + 2j), [1 + 2j], "complex128"),
    ],
)
def test_complex_numbers_make_a_complex_lazytensor(
    given: Any, want: list[complex], dtype: str | None
) -> None:
    made = make(given)
    assert type(made) is ComplexLazyTensor and not isinstance(made, LazyTensor)
    assert (made.dtype, made.dim()) == (dtype, 3)
    assert made.shape == ((1, 1, len(want)) if len(want) > 1 else (1, 1))
    got = (made * Vi(np.ones((2, 1)))).sum(axis=1)
    assert got.dtype == np.complex128
    assert_array_equal(got, np.tile(want, (2, 1)))


@mark.parity("L-19")
@mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_arrays_have_rows_as_real_ones_do(dtype: Any) -> None:
    z = (x + 1j * x[::-1]).astype(dtype)
    for made in (make(z[:, None]), make(z, axis=0), Vi(z)):
        assert (type(made), made.shape, made.dtype, made.ni) == (
            ComplexLazyTensor,
            (5, 1, 3),
            dtype.__name__,
            5,
        )
        assert_allclose(made.sum(axis=0), z.sum(0, keepdims=True), rtol=1e-6)
    assert make(z[None]).nj == vj(z).nj == 5


# ── what it is not made from ──────────────────────────────────────────────────────────────────────

UNUSABLE = [
    pytest.param(lambda: make(), OperandError, "LazyTensor", marks=mark.parity("L-01")),
    pytest.param(lambda: make(None), OperandError, "None", marks=mark.parity("L-01")),
    pytest.param(lambda: make("x"), OperandError, "str", marks=mark.parity("E-06", "L-24")),
    pytest.param(lambda: make(True), OperandError, "bool", marks=mark.parity("L-24", "X-52")),
    pytest.param(lambda: make(np.True_), OperandError, "bool", marks=mark.parity("L-24", "X-52")),
    pytest.param(lambda: make({1.0, 2.0}), OperandError, "set", marks=mark.parity("E-06")),
    pytest.param(lambda: make(np.ones((1, 1)).view(np.matrix), axis=0), OperandError, "matrix", marks=mark.parity("L-24", "X-52")),
    pytest.param(lambda: make(np.ma.array(x), axis=0), OperandError, "MaskedArray", marks=mark.parity("L-24", "X-52")),
    pytest.param(lambda: make(Vi(x)), OperandError, "LazyTensor", marks=mark.parity("L-24")),
    pytest.param(lambda: make([1.0], axis=0), AxisError, "parameter", marks=mark.parity("L-05")),
    pytest.param(lambda: make([1.0], axis=1), AxisError, "parameter", marks=mark.parity("L-05")),
    pytest.param(lambda: make(["x"]), ValueError, "'x'|str", marks=mark.parity("L-05", "X-69")),
    pytest.param(lambda: make([[1.0, 2.0]]), ValueError, "numbers", marks=mark.parity("L-05", "X-69")),
    pytest.param(lambda: make([]), ValueError, "at least one|empty", marks=mark.parity("L-05", "X-69")),
    pytest.param(lambda: make(x[0], axis=0), AxisError, "parameter", marks=mark.parity("L-06")),
    pytest.param(lambda: make(x[0], axis=1), AxisError, "parameter", marks=mark.parity("L-06")),
    pytest.param(lambda: make(np.array(2)), DtypeError, "int64", marks=mark.parity("L-08")),
    pytest.param(lambda: make(np.array(2.0), axis=0), AxisError, "parameter", marks=mark.parity("L-08")),
    pytest.param(lambda: make(x), ShapeError, r"\(5, 3\).*Vi\(x\).*Vj\(x\)", marks=mark.parity("L-11")),
    pytest.param(lambda: make(x, axis=3), ValueError, r"3", marks=mark.parity("L-11")),
    pytest.param(lambda: make(x, axis=-1), ValueError, r"\(5, 3\)|-1", marks=mark.parity("L-11")),
    pytest.param(lambda: make(x, axis=2), ShapeError, r"\(5, 3\)", marks=mark.parity("L-12")),
    pytest.param(lambda: make((0, 3, 0), axis=0), AxisError, "takes no axis", marks=mark.parity("L-18", "E-03")),
    pytest.param(lambda: make((0, 3)), ValueError, "three ints", marks=mark.parity("L-18", "E-05")),
    pytest.param(lambda: make((0, 3, 0, 1)), ValueError, "three ints", marks=mark.parity("L-18", "E-05")),
    pytest.param(lambda: make((0, 3.0, 0)), ValueError, "three ints", marks=mark.parity("L-18", "E-05")),
    pytest.param(lambda: make((x, 3, 0)), ValueError, "three ints", marks=mark.parity("L-18", "E-05")),
    pytest.param(lambda: make((0, 3, 3)), ValueError, "3", marks=mark.parity("L-18")),
    pytest.param(lambda: make((0, 3, -1)), ValueError, "-1", marks=mark.parity("L-18")),
    pytest.param(lambda: make((-1, 3, 0)), ValueError, "-1", marks=mark.parity("L-18")),
    pytest.param(lambda: make((0, 0, 0)), ValueError, "0", marks=mark.parity("L-18")),
    pytest.param(lambda: pm(x), ShapeError, r"\(5, 3\)|vector", marks=mark.parity("L-31", "X-51")),
    pytest.param(lambda: pm(x[:, None]), ShapeError, r"\(5, 1, 3\)|vector", marks=mark.parity("L-31", "L-36")),
    pytest.param(lambda: pm(x[None, :1]), ShapeError, r"\(1, 1, 3\)|vector", marks=mark.parity("L-36")),
    pytest.param(lambda: pm("x"), OperandError, "str", marks=mark.parity("L-31")),
    pytest.param(lambda: vi(x, 3), ValueError, "index|int", marks=mark.parity("L-33")),
    pytest.param(lambda: vj(y, 3), ValueError, "index|int", marks=mark.parity("L-33")),
    pytest.param(lambda: pm(x[0], 3), ValueError, "index|int", marks=mark.parity("L-33")),
    pytest.param(lambda: vi(0), ValueError, "dim", marks=mark.parity("L-34", "X-53")),
    pytest.param(lambda: vj(0), ValueError, "dim", marks=mark.parity("L-34", "X-53")),
    pytest.param(lambda: vi(x[:, None]), ShapeError, r"\(5, 1, 3\)", marks=mark.parity("L-36", "L-30")),
    pytest.param(lambda: vj(y[None]), ShapeError, r"\(1, 7, 3\)", marks=mark.parity("L-36", "L-30")),
    pytest.param(lambda: vi(2.5), ValueError, "float|number", marks=mark.parity("L-30")),
    pytest.param(lambda: vj([1.0, 2.0]), ValueError, "list", marks=mark.parity("L-30")),
]  # fmt: skip


@mark.parametrize(("wrong", "error", "words"), UNUSABLE)
def test_what_cannot_be_used_is_refused_at_once(wrong: Callable[[], Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        wrong()
    assert isinstance(caught.value, FarsumError)


@mark.parity("E-06", "X-52")
def test_an_operand_error_is_every_error_that_was_raised_before() -> None:
    for former in (FormulaError, ValueError, TypeError, AttributeError):
        with pytest.raises(former):
            make(object())


@mark.parity("L-27")
def test_torch_is_not_imported_to_recognise_its_tensors() -> None:
    script = (
        "import sys, numpy as np\n"
        "from farsum.numpy import LazyTensor, Vi\n"
        "class Tensor: pass\n"
        "for x in (Tensor(), 'x', None):\n"
        "    try: LazyTensor(x)\n"
        "    except TypeError: pass\n"
        "    else: raise SystemExit('taken')\n"
        "Vi(np.ones((2, 3))).sum(axis=1)\n"
        "raise SystemExit([m for m in ('torch', 'jax', 'cupy') if m in sys.modules] or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
