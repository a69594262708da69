"""Recorded functions and loops: the numbers of the same function call by call, and every mistake named as it is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import farsum
from farsum.numpy import Pm, Vi, Vj
from farsum_kernels.errors import (
    AxisError,
    Cancelled,
    DeadlineExceeded,
    DtypeError,
    FormulaError,
    OperandError,
    ShapeError,
    SolverDidNotConverge,
)
from farsum_kernels.job import Options
from farsum_kernels.program import Loop

rng = np.random.default_rng(0)
x, y = rng.random((30, 3)), rng.random((20, 3))
v = rng.random((30, 1))


def both(function: Any, *args: Any, rtol: float = 1e-12) -> Any:
    """The result of a program, which is that of its function call by call, but for the axes that NumPy drops."""
    got, want = farsum.program(function)(*args), function(*args)
    single = not isinstance(got, tuple)
    for found, true in zip((got,) if single else got, (want,) if single else want, strict=True):
        true = np.asarray(true)
        assert found.ndim == 2 and found.size == true.size and found.dtype == true.dtype
        assert_allclose(found, true.reshape(found.shape), rtol=rtol)
    return got


# ── what can be written ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "write",
    [
        lambda a, b: a + b - a * 2 + 3 / (1 + b) - (-a) ** 2,
        lambda a, b: 1 - a / b,
        lambda a, b: abs(a - b) ** 0.5,
        lambda a, b: np.exp(-a) * np.log(1 + b) + np.sqrt(a) + np.square(b) + np.abs(a - 1),
        lambda a, b: np.sin(a) + np.cos(b) + np.arctan(a) + np.sign(a - b),
        lambda a, b: np.maximum(a, b) - np.minimum(a, 0.5) + np.maximum(0.2, b),
        lambda a, b: a.sum(axis=1, keepdims=True) + b,
        lambda a, b: a - a.mean(axis=0, keepdims=True),
        lambda a, b: a / a.sum(),
        lambda a, b: (a - b).max(axis=0, keepdims=True) + a.min(),
        lambda a, b: a + np.array([1.0, 2.0, 3.0]),
        lambda a, b: a * np.float64(2.5) + np.arange(90.0).reshape(30, 3),
        lambda a, b: np.linalg.norm(a) + b,
        lambda a, b: np.sum(a) * b + np.max(b) + np.mean(a),
        lambda a, b: np.log(a - 0.5).max(axis=0, keepdims=True) + np.log(b - 0.6).min(axis=1, keepdims=True),
        lambda a, b: np.log(a - 0.5).max() + b,
        lambda a, b: np.maximum(np.log(a - 0.5), np.log(b - 0.6)) + np.minimum(np.log(b - 0.6), 0.1),
        lambda a, b: np.log(a).min() + np.log(0 * b).max(),
        lambda a, b: a.astype("float32").astype("float64") + b,
    ],
)
def test_arithmetic_is_that_of_numpy(write: Any) -> None:
    with np.errstate(invalid="ignore", divide="ignore"):
        both(write, x, x[::-1] + 0.5)


@pytest.mark.parametrize(
    "write",
    [
        lambda a, b: Vi(a).sqdist(Vj(b)).sum(axis=1),
        lambda a, b: (-Vi(a).sqdist(Vj(b))).exp() @ (b * 2),
        lambda a, b: (-Vi(a).sqdist(Vj(y))).logsumexp(axis=1),
        lambda a, b: Vi(a + 1).sqdist(Vj(np.sqrt(b))).min(axis=0),
        lambda a, b: Vi(a).sqdist(Vj(b)).min_argmin(axis=1),
        lambda a, b: Vi(a).sqdist(Vj(b)).argKmin(3, axis=1),
        lambda a, b: (Vi(a) | Vj(b)).sumsoftmaxweight(Vj(b), axis=1),
        lambda a, b: (Vi(a).sqdist(Vj(b)) * Pm((a * a).sum().reshape(-1))).sum(axis=1),
        lambda a, b: (Vi(a).sqdist(Vj(b)) * 2.5).sum(axis=1, use_double_acc=True),
        lambda a, b: Vi(a).sqdist(Vj(b)).sum(axis=1, mask="causal"),
        lambda a, b: Vi(a).sqdist(Vj(b)).sum(axis=1, segments=([10, 20], [5, 15])),
        lambda a, b: Vi(0, 3).sqdist(Vj(1, 3)).sum(axis=1)(a, b),
    ],
)
def test_reductions_are_those_of_lazy_tensors(write: Any) -> None:
    both(write, x, y)


def test_a_chain_of_arithmetic_is_one_step() -> None:
    program, arrays, _ = farsum.program(lambda a: np.exp(-(a + 1.5) * 2.5) / 3.5).recorded(x)
    assert len(program.body) == 1 and len(program.inputs) == 4  # a, and three numbers
    assert [a.shape for a in arrays.values()].count((1, 1)) == 3


def test_an_array_that_is_used_twice_is_one_input() -> None:
    program, _, _ = farsum.program(
        lambda a: Vi(x).sqdist(Vj(a)).sum(axis=1) + Vi(x).sqdist(Vj(x)).sum(axis=1)
    ).recorded(x)
    assert [value.shape for value in program.inputs].count((30, 3)) == 1


def test_indices_are_numbers_after_astype() -> None:
    def sums(points: Any, centres: Any) -> Any:
        labels = Vi(points).sqdist(Vj(centres)).argmin(axis=1)
        chosen = Vi(labels.astype("float64")) == Vj(np.arange(4.0)[:, None])
        return labels, (chosen * Vi(points)).sum(axis=0)

    both(sums, x, y[:4])


def test_results_keep_the_form_in_which_they_are_returned() -> None:
    assert isinstance(farsum.program(lambda a: a + 1)(x), np.ndarray)
    assert isinstance(farsum.program(lambda a: (a + 1,))(x), tuple)
    first, same, given = farsum.program(lambda a: (lambda b: (b, b, a))(a + 1))(x)
    assert_array_equal(first, same)
    assert_array_equal(given, x)
    assert given is not x


def test_handles_go_in_and_come_out() -> None:
    held = farsum.put(x)
    kept = farsum.program(lambda a: Vi(a).sqdist(Vj(held)).sum(axis=1))(held, keep=True)
    assert isinstance(kept, type(held))
    assert_allclose(farsum.get(kept), Vi(x).sqdist(Vj(x)).sum(axis=1))


def test_methods_and_options_of_the_function() -> None:
    class Model:
        scale = 2.0

        @farsum.program
        def scaled(self, a: Any, power: int = 1) -> Any:
            """Its docstring."""
            return self.scale * a**power

    assert_allclose(Model().scaled(x, power=2), 2 * x**2)
    assert Model.scaled.__doc__ == "Its docstring." and "scaled" in repr(Model.scaled)


# ── loops ─────────────────────────────────────────────────────────────────────────────────────────


def smoothing(a: Any, b: Any, times: int = 7) -> Any:
    K = (-Vi(a).sqdist(Vj(a))).exp()
    weights = K.sum(axis=1)
    return farsum.repeat(lambda b: (K @ b) / weights, b, times=times)


def test_a_loop_is_the_same_call_by_call() -> None:
    both(smoothing, x, v)
    program, _, _ = farsum.program(smoothing).recorded(x, v)
    (loop,) = (item for item in program.body if isinstance(item, Loop))
    assert loop.times == 7 and len(loop.body) == 2  # the sum of weights does not change, and is before it


def test_states_change_together() -> None:
    one = np.ones((1, 1))

    def fibonacci(a: Any, b: Any) -> Any:
        return farsum.repeat(lambda a, b: (b, a + b), a, b, times=10)

    a, b = both(fibonacci, 0 * one, one)
    assert (a.item(), b.item()) == (55.0, 89.0)


def test_until_and_history() -> None:
    def halved(a: Any) -> Any:
        return farsum.repeat(lambda a: (a / 2, a.max()), a, times=50, until=0.3, history=True)

    a = np.full((2, 1), 4.0)
    got, told = farsum.program(halved)(a)
    want, wanted = halved(a)
    assert_array_equal(got, want)
    assert_array_equal(told, wanted)
    assert_array_equal(told[:6, 0], [4, 2, 1, 0.5, 0.25, np.nan])
    assert_array_equal(
        farsum.program(lambda a: farsum.repeat(lambda a: (a / 2, a.max()), a, times=2, until=0.0))(a), a / 4
    )


def test_what_is_written_before_a_loop_and_needed_first_within_it() -> None:
    def written(a: Any) -> Any:
        shifted = a + 1  # its step is not written before the loop asks for it
        b = farsum.repeat(lambda b: Vi(shifted).sqdist(Vj(b)).sum(axis=1) / 1000 + b, v, times=3)
        return b, shifted

    both(written, rng.random((30, 1)))


def test_loops_one_after_the_other() -> None:
    def annealed(b: Any) -> Any:
        for blur in (1.0, 0.5, 0.25):
            K = (-Vi(x).sqdist(Vj(x)) / blur).exp()
            b = farsum.repeat(lambda b, K=K: (K @ b) / K.sum(axis=1), b, times=2)
        return b

    both(annealed, v)


def test_solvers_are_steps_too() -> None:
    def refined(b: Any) -> Any:
        K = (-4 * Vi(x).sqdist(Vj(x))).exp()
        return farsum.repeat(lambda b: K.solve(b, alpha=1.0, eps=1e-12), b, times=3)

    K = np.exp(-4 * ((x[:, None] - x) ** 2).sum(-1)) + np.eye(30)
    assert_allclose(farsum.program(refined)(v), np.linalg.solve(K @ K @ K, v), atol=1e-9)
    values, vectors = farsum.program(lambda a: (-4 * Vi(a).sqdist(Vj(a))).exp().eigsh(2))(x)
    assert values.size == 2 and vectors.shape == (30, 2)


def test_a_measure_that_is_not_a_number_here_and_there() -> None:
    def rooted(a: Any) -> Any:
        return farsum.repeat(lambda a: (a - 1, np.sqrt(a).max()), a, times=100, until=0.0)

    three = np.full((1, 1), 3.0)
    with pytest.raises(SolverDidNotConverge, match="round 5 of 100") as there:
        farsum.program(rooted)(three)
    with np.errstate(invalid="ignore"), pytest.raises(SolverDidNotConverge, match="round 5 of 100") as here:
        rooted(three)
    for raised in (there, here):
        assert raised.value.iterate.item() == -2.0
        assert len(raised.value.residuals) == 5 and np.isnan(raised.value.residuals[-1])


def test_submit_and_deadline() -> None:
    program = farsum.program(smoothing)
    assert_array_equal(program.submit(x, v).result(60), program(x, v))
    many = rng.random((2000, 3)), rng.random((2000, 1))
    with pytest.raises(DeadlineExceeded):
        program(*many, times=100_000, deadline_s=0.3)
    with pytest.raises((DeadlineExceeded, Cancelled)):
        program.submit(*many, times=100_000, options=Options(deadline_s=0.3)).result(60)


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────

POINTS = np.ones((3, 2))


def looping(step: Any, **options: Any) -> Any:
    return farsum.program(lambda a: farsum.repeat(step, a, **({"times": 3} | options)))


def kept(a: Any, into: list[Any]) -> Any:
    into.append(a + 1)
    return a * 2


def escaping(a: Any) -> Any:
    inner: list[Any] = []
    b = farsum.repeat(lambda a: kept(a, inner), a, times=2)
    return b + inner[0]


def nested(a: Any) -> Any:
    return farsum.repeat(lambda a: farsum.repeat(lambda b: b + 1, a, times=2), a, times=2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: farsum.program(lambda a: a + 1 if a else a)(POINTS), FormulaError, "asked for while the program is recorded"),
        (lambda: farsum.program(lambda a: a * float(a.max()))(POINTS), FormulaError, "asked for"),
        (lambda: farsum.program(lambda a: a[0])(POINTS), FormulaError, "asked for"),
        (lambda: farsum.program(lambda a: list(a))(POINTS), FormulaError, "asked for"),
        (lambda: farsum.program(lambda a: np.linalg.inv(a))(POINTS), OperandError, "numpy.inv is not recorded"),
        (lambda: farsum.program(lambda a: np.tan(a))(POINTS), OperandError, "numpy.tan is not recorded; recorded are"),
        (lambda: farsum.program(lambda a: np.add(a, 1, where=False))(POINTS), OperandError, "with these options"),
        (lambda: farsum.program(lambda a: a.reshape(2, 3))(POINTS), ShapeError, "rows stay rows"),
        (lambda: farsum.program(lambda a: a.astype("int64"))(POINTS), DtypeError, "becomes float16"),
        (lambda: farsum.program(lambda a: a.sum(axis=2))(POINTS), AxisError, "none of 0, 1"),
        (lambda: farsum.program(lambda a: a + np.ones((4, 2)))(POINTS), ShapeError, "3 rows with 4 rows"),
        (lambda: farsum.program(lambda a: a + np.ones((3, 3)))(POINTS), ValueError, "dimension"),
        (lambda: farsum.program(lambda a: Vi(a).sqdist(Vj(y)).sum(axis=1))(POINTS), ValueError, "dim|entries"),
        (lambda: farsum.program(lambda a: Vi(a).sum(axis=1, deadline_s=1))(POINTS), FormulaError, "call of a program"),
        (lambda: farsum.program(lambda a: Vi(a).sqdist(Vj(a)))(POINTS), OperandError, "returned LazyTensor"),
        (lambda: farsum.program(lambda a: None)(POINTS), OperandError, "returned NoneType"),
        (lambda: farsum.program(lambda a: a)(np.ones(3)), ShapeError, r"write x\[:, None\]"),
        (lambda: farsum.program(lambda a: a)(np.ones((3, 2), complex)), DtypeError, "complex128"),
        (lambda: farsum.program(lambda a: farsum.program(lambda b: b)(a))(POINTS), FormulaError, "__wrapped__"),
        (lambda: looping(lambda a: a + 1, times=0)(POINTS), FormulaError, "1 to 1000000 times"),
        (lambda: looping(lambda a: a + 1, until=np.nan)(POINTS), FormulaError, "until is a number from 0"),
        (lambda: looping(lambda a: a + 1, history=True)(POINTS), FormulaError, "history is that of the measure"),
        (lambda: looping(lambda a: (a, a))(POINTS), FormulaError, "each of the 1 states; it returned 2 values"),
        (lambda: looping(lambda a: a + 1, until=1.0)(POINTS), FormulaError, "and the measure that until is for"),
        (lambda: looping(lambda a: (a + 1, a), until=1.0)(POINTS), ShapeError, "measure of farsum.repeat has shape"),
        (lambda: looping(lambda a: a.sum(axis=0))(POINTS), ShapeError, r"shape \(3, 2\) and has \(1, 2\)"),
        (lambda: looping(lambda a: (a + 1).astype("float32"))(POINTS), FormulaError, "begins as float64 and is float32"),
        (lambda: looping(lambda a: a)(POINTS), FormulaError, "computes nothing"),
        (lambda: farsum.program(lambda a: farsum.repeat(lambda: a, times=3))(POINTS), FormulaError, "needs a state"),
        (lambda: farsum.program(escaping)(POINTS), FormulaError, "used after the loop"),
        (lambda: farsum.program(nested)(POINTS), FormulaError, "loop within a loop"),
        (lambda: farsum.repeat(lambda a: (a, a), POINTS, times=3), FormulaError, "it returned 2 values"),
        (lambda: farsum.repeat(lambda a: (a, a), POINTS, times=3, until=0.1), ShapeError, "one number, not of shape"),
    ],
)  # fmt: skip
def test_mistakes(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_a_recording_that_failed_leaves_nothing_behind() -> None:
    with pytest.raises(ZeroDivisionError):
        farsum.program(lambda a: 1 / 0)(POINTS)
    assert_array_equal(farsum.repeat(lambda a: a + 1, POINTS, times=2), POINTS + 2)
