"""What a LazyTensor says of itself: sizes, names, inputs, ranges, text."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum.numpy import ComplexLazyTensor, LazyTensor, Pm, Vi, Vj
from farsum.reduced import Reduced
from farsum_kernels.errors import DeviceMissing, FormulaError, ShapeError

mark = pytest.mark
rng = np.random.default_rng(0)
x, y, p = rng.random((5, 3)), rng.random((7, 3)), rng.random(3)
z = x + 1j * x[::-1]
xb, yb = rng.random((2, 1, 5, 1, 3)), rng.random((4, 1, 7, 3))
D2 = ((x[:, None] - y[None]) ** 2).sum(-1)
x_i: Any = Vi(x)
y_j: Any = Vj(y)
D_ij: Any = x_i.sqdist(y_j)
batched: Any = LazyTensor(xb) - LazyTensor(yb)
z_i: Any = Vi(z)

# Rows 0:2 see columns 0:3, rows 2:5 see columns 3:7, and the other way round.
_rows, _cols, _ends = np.array([[0, 2], [2, 5]]), np.array([[0, 3], [3, 7]]), np.array([1, 2])
RANGES = (_rows, _ends, _cols, _cols, _ends, _rows)
SEEN = np.zeros((5, 7))
SEEN[:2, :3] = SEEN[2:, 3:] = 1


def gaussian() -> Any:
    return (-Vi(x).sqdist(Vj(y))).exp()


# ── sizes ─────────────────────────────────────────────────────────────────────────────────────────

SIZES = [  # lazy, shape, _shape, dim(), batchdims, ni, nj
    (lambda: x_i, (5, 1, 3), (5, 1, 3), 3, None, 5, None),
    (lambda: y_j, (1, 7, 3), (1, 7, 3), 3, None, None, 7),
    (lambda: Pm(p), (1, 1, 3), (1, 1, 3), 3, None, None, None),
    (lambda: Pm(2), (1, 1), (1, 1, 1), 3, None, None, None),
    (lambda: x_i - y_j, (5, 7, 3), (5, 7, 3), 3, None, 5, 7),
    (lambda: D_ij, (5, 7), (5, 7, 1), 3, None, 5, 7),
    (lambda: D_ij.T, (7, 5), (7, 5, 1), 3, None, 7, 5),
    (lambda: batched, (2, 4, 5, 7, 3), (2, 4, 5, 7, 3), 5, (2, 4), 5, 7),
    (lambda: batched.sum(-1), (2, 4, 5, 7), (2, 4, 5, 7, 1), 5, (2, 4), 5, 7),
    (lambda: batched.T, (2, 4, 7, 5, 3), (2, 4, 7, 5, 3), 5, (2, 4), 7, 5),
    (lambda: Vi(0, 3), (1, 1, 3), (1, 1, 3), 3, None, None, None),
    (lambda: Vi(0, 3) - y_j, (1, 7, 3), (1, 7, 3), 3, None, None, 7),
    (lambda: z_i, (5, 1, 3), (5, 1, 6), 3, None, 5, None),
    (lambda: z_i.sum(-1), (5, 1), (5, 1, 2), 3, None, 5, None),
]


@mark.parity("L-40", "L-41", "L-42", "L-43", "L-45", "X-82")
@mark.parity("L-44")
@mark.parametrize(("lazy", "shape", "reals", "dim", "batch", "ni", "nj"), SIZES)
def test_sizes(
    lazy: Callable[[], Any], shape: tuple, reals: tuple, dim: int, batch: tuple | None, ni: int | None, nj: int | None
) -> None:  # fmt: skip
    made = lazy()
    assert (made.shape, made._shape, made.ndim, made.dim()) == (shape, reals, len(shape), dim)
    assert (made.batchdims, made.nbatchdims) == (batch, len(batch or ()))
    assert (made.ni, made.nj) == (ni, nj)


@mark.parity("L-45")
def test_empty_sides_are_not_unknown_sides() -> None:
    assert (Vi(x[:0]).ni, Vi(x[:0]).shape) == (0, (0, 1, 3))
    assert (Vi(x[:0]) - y_j).shape == (0, 7, 3)


@mark.parity("L-46")
def test_axis_is_the_place_of_a_leaf() -> None:
    leaves = [
        x_i,
        LazyTensor(xb),
        Vi(0, 3),
        z_i,
        y_j,
        LazyTensor(yb),
        Vj(0, 3),
        Pm(p),
        Pm(2),
        Pm(2.5),
        Pm(0, 3),
    ]
    assert [leaf.axis for leaf in leaves] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert [made.axis for made in (x_i + 1, -x_i, D_ij, batched)] == [None] * 4
    assert [D_ij.sum(axis=axis, call=False).axis for axis in (0, 1)] == [0, 1]
    assert batched.sum(axis=3, call=False).axis == 1  # the reduced side, however many batch axes there are


@mark.parity("L-47", "L-240")
def test_dtypes_have_their_names() -> None:
    halves = Vi(x.astype(np.float16)).dtype, Vi(x.astype(np.float32)).dtype, x_i.dtype
    assert halves == ("float16", "float32", "float64")
    assert (Pm(2).dtype, (Pm([1.0, 2.0]) * 2.5).dtype, Vi(0, 3).dtype) == (None, None, None)
    assert (z_i.dtype, Vi(z.astype(np.complex64)).dtype, LazyTensor(1j).dtype) == (
        "complex128",
        "complex64",
        None,
    )
    assert (Vi(z.astype(np.complex64)) * y_j).dtype == "complex128"
    assert (Vi(z.astype(np.complex64)) * Vj(y.astype(np.float32))).dtype == "complex64"
    with pytest.raises(AttributeError):
        x_i.dtype = "float32"


@mark.parity("L-51")
def test_complex_or_not() -> None:
    assert not any(made.is_complex for made in (x_i, D_ij, z_i.real, abs(z_i), D_ij.sum(axis=1, call=False)))
    assert all(
        made.is_complex for made in (z_i, z_i * y_j, x_i * 1j, x_i.exp1j(), z_i.sum(axis=0, call=False))
    )


# ── what it stands on ─────────────────────────────────────────────────────────────────────────────


@mark.parity("L-48")
def test_formula_and_inputs() -> None:
    made = (x_i - y_j) * 2.5 + Pm(p)
    assert made.formula == "(((Var(0,3,0) - Var(1,3,1)) * Var(2,1,2)) + Var(3,3,2))"
    assert made.formula2 is None
    held: list[Any] = [x, y, 2.5, p]
    for got, want in zip(made.variables, held, strict=True):
        assert_array_equal(np.ravel(got), np.ravel(want))
    assert all(np.shares_memory(got, want) for got, want in zip(x_i.variables, (x,), strict=True))
    assert made.symbolic_variables == ()
    assert not hasattr(made, "ind") and not hasattr(x_i, "ind")
    mixed = (Vi(2, 3) + Vi(0, 3) * Vj(1, 3)) * y_j
    assert mixed.symbolic_variables == ((2, 3, 0), (0, 3, 0), (1, 3, 1))
    assert len(mixed.variables) == 1 and Vj(4, 2).ind == 4
    assert D_ij.logsumexp(axis=1, weight=y_j, call=False).formula2 == "Var(1,3,1)"


@mark.parity("L-223")
@mark.parametrize(
    ("lazy", "formula"),
    [
        (lambda: x_i - y_j, "(Var(0,3,0) - Var(1,3,1))"),
        (lambda: x[:, None] + y_j, "(Var(1,3,0) + Var(0,3,1))"),
        (lambda: x[:, None] - y_j, "(Var(1,3,0) - Var(0,3,1))"),
        (lambda: y_j + x[:, None], "(Var(0,3,1) + Var(1,3,0))"),
        (lambda: [1.0, 2.0, 3.0] * y_j, "(Var(1,3,2) * Var(0,3,1))"),
        (lambda: (x_i - y_j) * x_i, "((Var(0,3,0) - Var(1,3,1)) * Var(0,3,0))"),
        (lambda: x_i * 2.5 + [1.0, 2.0, 3.0], "((Var(0,3,0) * Var(1,1,2)) + Var(2,3,2))"),
        (lambda: ((x_i - Vj(1, 3)) * Pm(0, 1)).sum(-1), "Sum(((Var(2,3,0) - Var(1,3,1)) * Var(0,1,2)))"),
        (lambda: (x_i - Vj(4, 3)) * y_j, "((Var(5,3,0) - Var(4,3,1)) * Var(6,3,1))"),
        (lambda: (x_i | y_j).T, "(Var(0,3,1) | Var(1,3,0))"),
    ],
)
def test_symbols_keep_their_numbers_and_arrays_follow_in_order(lazy: Callable[[], Any], formula: str) -> None:
    assert lazy().formula == formula
    assert str(lazy()).splitlines()[:2] == ["KeOps LazyTensor", f"    formula: {formula}"]


@mark.parity("L-220")
def test_str_has_the_known_lines() -> None:
    assert str(D_ij).splitlines()[-1] == "    shape: (5, 7)"
    lines = str((Vi(0, 3) - Vj(1, 3)).sqnorm2() * x_i).splitlines()
    assert lines[0] == "KeOps LazyTensor"
    assert lines[2:] == ["    symbolic variables: Var(0, 3, 0), Var(1, 3, 1)", "    shape: (5, 1, 3)"]
    assert str(z_i).splitlines()[1:] == ["    formula: Var(0,6,0)", "    shape: (5, 1, 3)"]


@mark.parity("L-221")
@mark.parametrize(
    ("lazy", "words"),
    [
        (lambda: D_ij, ["LazyTensor", "(5, 7)", "float64", "Var(0,3,0)", "sum(axis=1)"]),
        (lambda: batched, ["(2, 4, 5, 7, 3)", "sum(axis=3)", "sum(axis=2)"]),
        (lambda: z_i * y_j, ["ComplexLazyTensor", "(5, 7, 3)", "complex128"]),
        (lambda: D_ij.argKmin(3, axis=1, call=False), ["ArgKMin", "call"]),
        (lambda: (Vi(0, 3) | y_j).sum(axis=1), ["Sum", "Var(0, 3, 0)"]),
    ],
)
def test_repr_teaches(lazy: Callable[[], Any], words: list[str]) -> None:
    text = repr(lazy())
    assert all(word in text for word in words), text
    assert " object at 0x" not in text


def test_repr_of_a_long_formula_is_short() -> None:
    assert len(repr(sum(((x_i - k).square() for k in range(200)), 0))) < 1000


# ── ranges and backend ────────────────────────────────────────────────────────────────────────────


@mark.parity("L-49", "L-218")
def test_ranges_are_used_kept_and_swapped() -> None:
    K, dense = gaussian(), np.exp(-D2)
    assert K.ranges is None
    K.ranges = RANGES
    assert len(K.ranges) == 6
    for made, want in [(K, dense), (2 * K, 2 * dense), (K + gaussian(), 2 * dense), (K.T.T, dense)]:
        assert_allclose(made.sum(axis=1)[:, 0], (want * SEEN).sum(1))
        assert_allclose(made.sum(axis=0)[:, 0], (want * SEEN).sum(0))
    assert_allclose(K @ y, (dense * SEEN) @ y)
    for got, want in zip(K.T.ranges, RANGES[3:] + RANGES[:3], strict=True):
        assert_array_equal(got, want)
    assert_allclose(K.T.sum(axis=1)[:, 0], (dense * SEEN).sum(0))
    assert_allclose(K.sum(axis=1, call=False)()[:, 0], (dense * SEEN).sum(1))
    assert_allclose(
        K.sum(axis=1, ranges=None)[:, 0], dense.sum(1)
    )  # given None is stronger than the attribute
    K.ranges = None
    assert_allclose(K.sum(axis=1)[:, 0], dense.sum(1))


@mark.parity("L-49")
def test_ranges_of_one_formula_do_not_leak_into_another() -> None:
    K = gaussian()
    derived = K * 2
    K.ranges = RANGES
    assert derived.ranges is None and (2 * K).ranges is not None


@mark.parity("L-49", "X-11")
def test_ranges_are_six_arrays() -> None:
    K = gaussian()
    with pytest.raises(ShapeError, match="6"):
        K.ranges = RANGES[:3]
        K.sum(axis=1)


@mark.parity("L-50")
def test_the_backend_is_used_and_kept() -> None:
    K = gaussian()
    assert K.backend is None
    K.backend = "CPU"
    assert [made.backend for made in (K, 2 * K, K + gaussian(), K.T, K.exp())] == ["CPU"] * 5
    assert_allclose(K.sum(axis=1)[:, 0], np.exp(-D2).sum(1))
    K.backend = None
    assert (2 * K).backend is None


@mark.parity("L-50")
@mark.parametrize(
    ("backend", "error"), [("GPU", DeviceMissing), ("GPU_1D", DeviceMissing), ("cpu", FormulaError)]
)
def test_a_backend_that_is_not_there(backend: str, error: type[Exception]) -> None:
    K = gaussian()
    with pytest.raises(error, match=backend):
        K.backend = backend
        (2 * K).sum(axis=1)


# ── what it is not ────────────────────────────────────────────────────────────────────────────────


@mark.parity("L-52")
def test_the_transpose_is_a_new_lazytensor() -> None:
    weighted: Any = D_ij * Vi(x[:, :1].copy())
    want = D2 * x[:, :1]
    for transpose in (weighted.T, weighted.t()):
        assert transpose.shape == (7, 5)
        assert_allclose(transpose.sum(axis=1)[:, 0], want.sum(0))
        assert_allclose(transpose.sum(axis=0)[:, 0], want.sum(1))
        assert transpose.T.formula == weighted.formula
    assert weighted.shape == (5, 7)
    dense = xb - yb
    assert_allclose(batched.T.sum(axis=3), dense.sum(2))
    assert batched.t().shape == (2, 4, 7, 5, 3)


@mark.parity("L-53")
@mark.parametrize("name", ["device", "requires_grad", "numpy", "nothing_of_the_kind"])
def test_no_attributes_of_a_tensor(name: str) -> None:
    for made in (D_ij, z_i):
        with pytest.raises(AttributeError, match=name):
            getattr(made, name)


@mark.parity("L-53")
def test_no_length_and_no_hash() -> None:
    for made in (D_ij, z_i, D_ij.sum(axis=1, call=False)):
        with pytest.raises(TypeError):
            len(made)
        with pytest.raises(TypeError):
            hash(made)


@mark.parity("L-54", "X-45")
@mark.parametrize(
    "use",
    [
        lambda: bool(D_ij), lambda: x_i < y_j < x_i, lambda: D_ij and x_i, lambda: D_ij or x_i, lambda: not D_ij,
        lambda: 1 if x_i == y_j else 2, lambda: x_i in [y_j], lambda: bool(z_i), lambda: z_i == z_i and 1,
    ],
)  # fmt: skip
def test_a_formula_is_neither_true_nor_false(use: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="truth value"):
        use()


@mark.parity("L-158", "X-45")
@mark.parametrize("builtin", [min, max])
def test_minima_of_python_do_not_choose_an_operand(builtin: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="truth value"):
        builtin(x_i, y_j)


@mark.parity("L-55")
def test_iteration_gives_the_components_and_ends() -> None:
    first, second, third = x_i - y_j
    for made, k in [(first, 0), (second, 1), (third, 2)]:
        assert made.shape == (5, 7)
        assert_allclose(made.sum(axis=1)[:, 0], (x[:, None, k] - y[None, :, k]).sum(1))
    assert len(list(D_ij)) == 1
    parts = list(z_i)
    assert len(parts) == 3 and all(isinstance(part, ComplexLazyTensor) for part in parts)
    assert_allclose(parts[2].sum(axis=0), z[:, 2].sum(keepdims=True)[None])


# ── copies ────────────────────────────────────────────────────────────────────────────────────────


@mark.parity("L-56", "X-54")
@mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
@mark.parametrize(
    "build",
    [lambda: D_ij, lambda: batched.sum(-1), lambda: Vi(x) * [1.0, 2.0, 3.0] - 2, lambda: Vi(x) - Vj(x), lambda: z_i * y_j],
)  # fmt: skip
def test_copies_compute_the_same(build: Callable[[], Any], duplicate: Callable[[Any], Any]) -> None:
    made = build()
    again, axis = duplicate(made), made.dim() - 2
    assert type(again) is type(made)
    assert (again.formula, again.shape, again.dtype) == (made.formula, made.shape, made.dtype)
    assert_array_equal(again.sum(axis=axis), made.sum(axis=axis))


@mark.parity("L-56", "X-54")
@mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies_keep_ranges_and_backend(duplicate: Callable[[Any], Any]) -> None:
    K = gaussian()
    K.ranges, K.backend = RANGES, "CPU"
    again = duplicate(K)
    assert again.backend == "CPU"
    assert_allclose(again.sum(axis=1)[:, 0], (np.exp(-D2) * SEEN).sum(1))
    again.ranges = None
    assert K.ranges is not None


@mark.parity("L-56")
def test_a_shallow_copy_reads_the_same_arrays_and_a_deep_one_does_not() -> None:
    mine = x.copy()
    lazy: Any = Vi(mine).sqdist(y_j)
    shallow, deep = copy.copy(lazy), copy.deepcopy(lazy)
    mine += 1
    assert_allclose(shallow.sum(axis=1)[:, 0], ((mine[:, None] - y) ** 2).sum((1, 2)))
    assert_allclose(deep.sum(axis=1)[:, 0], D2.sum(1))


def test_a_reduced_object_is_of_its_own_kind() -> None:
    assert type(D_ij.sum(axis=1, call=False)) is Reduced
    assert not isinstance(D_ij, Reduced)
