"""`solve` on a LazyTensor: every way to say which system, against numpy.linalg.solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from farsum.numpy import LazyTensor, Pm, Vi, Vj
from farsum_kernels.errors import (
    AxisError,
    DeadlineExceeded,
    DimensionError,
    FormulaError,
    InputMissing,
    OperandError,
    ShapeError,
    SolverDidNotConverge,
)

mark = pytest.mark
rng = np.random.default_rng(0)
x, b = rng.random((40, 3)), rng.normal(size=(40, 2))


def gaussian(x_i: Any, y_j: Any, width: Any = 0.3) -> Any:
    return (-(x_i - y_j).sqnorm2() / width).exp()


K = gaussian(Vi(x), Vj(x))
S = gaussian(Vi(1, 3), Vj(2, 3))
dense = np.exp(-((x[:, None] - x) ** 2).sum(-1) / 0.3)
want = np.linalg.solve(dense + 0.1 * np.eye(40), b)


def close(got: np.ndarray, truth: np.ndarray = want) -> None:
    assert got.shape == truth.shape
    np.testing.assert_allclose(got, truth, atol=1e-4 * np.abs(truth).max())


# fmt: off
WAYS: list[Any] = [
    pytest.param(lambda: K.solve(b, alpha=0.1), marks=mark.parity("L-197", "L-198", "L-199"), id="array"),
    pytest.param(lambda: K.solve(Vi(b), alpha=0.1), marks=mark.parity("L-198"), id="Vi"),
    pytest.param(lambda: K.solve(Vj(b), alpha=0.1), marks=mark.parity("L-198"), id="Vj"),
    pytest.param(lambda: K.solve(np.asfortranarray(b), alpha=0.1), marks=mark.parity("X-12"), id="Fortran order"),
    pytest.param(lambda: K.solve(b, alpha=0.1, call=False)(), marks=mark.parity("L-203"), id="call=False"),
    pytest.param(lambda: K.solve(b, call=False)(alpha=0.1), marks=mark.parity("L-203"), id="alpha at the call"),
    pytest.param(lambda: K.solve(Vi(0, 2), alpha=0.1)(b), marks=mark.parity("L-201"), id="symbol along i"),
    pytest.param(lambda: K.solve(Vj(0, 2))(b, alpha=0.1), marks=mark.parity("L-201"), id="symbol along j"),
    pytest.param(lambda: (K * Vj(0, 2)).solve(Vi(0, 2), var=Vj(0, 2), alpha=0.1)(b), marks=mark.parity("L-200"), id="var"),
    pytest.param(lambda: S.solve(Vi(0, 2), alpha=0.1)(b, x, x), marks=mark.parity("L-202", "X-34"), id="all symbolic"),
    pytest.param(lambda: (S * Vj(0, 2)).solve(Vi(0, 2), var=Vj(0, 2), alpha=0.1)(b, x, x),
                 marks=mark.parity("L-200", "X-34"), id="var, all symbolic"),
    pytest.param(lambda: gaussian(Vi(1, 3), Vj(2, 3), Pm(3, 1)).solve(Vi(0, 2), alpha=0.1)(b, x, x, 0.3),
                 marks=mark.parity("L-202", "X-34"), id="a parameter too"),
]
# fmt: on


@pytest.mark.parametrize("solved", WAYS)
def test_ways_to_say_it(solved: Callable[[], np.ndarray]) -> None:
    close(solved())


@mark.parity("L-198")
def test_batches() -> None:
    p, r = rng.random((3, 30, 3)), rng.normal(size=(3, 30, 2))
    lazy = gaussian(LazyTensor(p[:, :, None]), LazyTensor(p[:, None]))
    truth = np.linalg.solve(lazy.dense() + 0.1 * np.eye(30), r)
    close(lazy.solve(LazyTensor(r[:, :, None]), alpha=0.1), truth)
    one = np.linalg.solve(lazy.dense() + 0.1 * np.eye(30), np.broadcast_to(r[0], r.shape))
    close(lazy.solve(r[0], alpha=0.1), one)


def test_complex_right_hand_sides() -> None:
    z = b + 1j * b[::-1]
    close(K.solve(z, alpha=0.1), np.linalg.solve(dense + 0.1 * np.eye(40), z))


@mark.parity("L-204")
def test_options_reach_the_solver() -> None:
    rough = K.solve(b, alpha=0.1, eps=1e-1)
    assert 1e-6 < np.abs(0.1 * rough + dense @ rough - b).max() < 1.0
    with pytest.raises(SolverDidNotConverge) as caught:
        K.solve(b, alpha=0.1, max_iterations=2)
    assert len(caught.value.residuals) >= 2
    with pytest.raises(DeadlineExceeded):
        K.solve(b, alpha=0.1, deadline_s=0.0)
    half = K.solve(b.astype(np.float32), alpha=0.1, use_double_acc=True)
    close(half)


@mark.parametrize(
    ("wrong", "error", "words"),
    [
        pytest.param(lambda: K.solve(b[:, 0]), ShapeError, r"\(40,\): write b\[:, None\]", marks=mark.parity("L-198")),
        pytest.param(lambda: K.solve(Pm(b[:, 0])), AxisError, r"Vi\(b\), Vj\(b\)", marks=mark.parity("L-198")),
        pytest.param(lambda: K.solve(b[None]), ShapeError, r"\(N, E\)", marks=mark.parity("L-198")),
        pytest.param(lambda: K.solve(b[:7]), ShapeError, "40 rows along i and 7 along j"),
        pytest.param(lambda: K.solve("b"), OperandError, "not str"),
        pytest.param(lambda: S.solve(b), FormulaError, r"write Vi\(index, 2\)", marks=mark.parity("E-39")),
        pytest.param(lambda: K.solve(b, call=False)(b), ShapeError, "no input required", marks=mark.parity("L-203", "E-40")),
        pytest.param(lambda: K.solve(Vi(0, 2))(), ShapeError, "expected 1", marks=mark.parity("E-26")),
        pytest.param(lambda: K.solve(b, out=b), TypeError, "no out", marks=mark.parity("L-197")),
        pytest.param(lambda: K.solve(b, speed=3), TypeError, "speed", marks=mark.parity("L-197", "E-23")),
        pytest.param(lambda: (K * Vj(0, 2)).exp().solve(Vi(0, 2), var=Vj(0, 2)), FormulaError, "not linear"),
        pytest.param(lambda: (K * Vj(0, 2)).solve(Vi(1, 2), var=Vj(0, 2)), FormulaError, "the same index", marks=mark.parity("L-200")),
        pytest.param(lambda: K.solve(Vi(0, 2), var=Vj(0, 2)), InputMissing, "does not occur"),
        pytest.param(lambda: (K * Vj(x)).solve(b), DimensionError, "3 and 2|3 .* 2"),
    ],
)  # fmt: skip
def test_mistakes(wrong: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        wrong()
