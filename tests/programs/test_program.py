"""What a program may say, and what it computes in process: the same as its twin in NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum_kernels.errors import (
    DeadlineExceeded,
    DtypeError,
    FormulaError,
    FormulaTooLarge,
    ShapeError,
    SolverDidNotConverge,
)
from farsum_kernels.formula.expr import I, J, P, constant, node, variable
from farsum_kernels.job import Options, Spec
from farsum_kernels.program import MAX_ROUNDS, MAX_STEPS, Carried, Loop, Program, Step, Value
from farsum_proto import wire
from farsum_server.engine import LocalEngine
from tests.programs.recipes import (
    doubling,
    endless,
    power_arrays,
    power_in_numpy,
    power_iteration,
    step,
)

ENGINE = LocalEngine()


def run(program: Program, arrays: dict[int, Any], **options: Any) -> tuple[Any, ...]:
    return ENGINE.prepare(program).run(arrays, Options(**options)).values


@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-12), ("float32", 2e-6)])
def test_power_iteration_is_that_of_numpy(dtype: str, rtol: float) -> None:
    arrays = power_arrays(300, dtype)
    vector, value = run(power_iteration(300, 12, dtype), arrays)
    want, largest, _ = power_in_numpy(arrays, 12)
    assert vector.dtype == dtype and value.shape == (1, 1)
    assert_allclose(vector, want, rtol=rtol)
    assert_allclose(value, [[largest]], rtol=rtol)


def test_a_loop_ends_by_its_measure_and_tells_its_history() -> None:
    arrays = power_arrays(100)
    _, value, history = run(power_iteration(100, 50, below=1e-9), arrays)
    _, largest, want = power_in_numpy(arrays, 50, 1e-9)
    rounds = int(np.isfinite(history).sum())
    assert rounds == len(want) < 50 and history.shape == (50, 1)
    assert_allclose(history[:rounds, 0], want, rtol=1e-3, atol=1e-12)
    assert np.isnan(history[rounds:]).all()
    assert_allclose(value, [[largest]])


def test_states_change_together() -> None:
    x, y = variable(0, 1, I), variable(1, 1, I)
    body = (step("sum", node("Add", x, y), 1, "float64", v0="a", v1="b"),)
    loop = Loop((Carried("a", "one", "b"), Carried("b", "two", "sum")), body, 10)
    program = Program((Value("one", "float64", (1, 1)), Value("two", "float64", (1, 1))), (loop,), ("a", "b"))
    a, b = run(program, {0: np.array([[0.0]]), 1: np.array([[1.0]])})
    assert (a.item(), b.item()) == (55.0, 89.0)  # Fibonacci


def test_indices_become_numbers_of_the_next_formula() -> None:
    """The sums of segments: Σ_i [label_i = j] x_i, the labels being indices that a step has found."""
    rng = np.random.default_rng(0)
    x, c = rng.random((200, 2)).astype("float32"), rng.random((5, 2)).astype("float32")
    labels = Spec(node("SqDist", variable(0, 2, I), variable(1, 2, J)), "ArgMin", 1, "float32")
    chosen = node("Equal", variable(1, 1, I), node("RowIndex", variable(2, 2, J)))
    program = Program(
        (Value("x", "float32", (200, 2)), Value("c", "float32", (5, 2))),
        (
            Step(("label",), labels, ((0, "x"), (1, "c"))),
            step("sums", node("Mult", chosen, variable(0, 2, I)), 0, "float32", v0="x", v1="label", v2="c"),
        ),
        ("label", "sums"),
    )
    label, sums = run(program, {0: x, 1: c})
    want = ((x[:, None] - c) ** 2).sum(-1).argmin(1)
    assert label.dtype == np.int64
    assert_array_equal(label[:, 0], want)
    assert_allclose(sums, [x[want == j].sum(0) for j in range(5)], rtol=1e-5)


def test_steps_of_other_dtypes_convert_their_arguments() -> None:
    x = variable(0, 1, I)
    program = Program(
        (Value("x", "float64", (3, 1)),),
        (
            step("rounded", x, 1, "float32", v0="x"),
            step("difference", node("Subtract", x, variable(1, 1, I)), 1, "float64", v0="x", v1="rounded"),
        ),
        ("rounded", "difference"),
    )
    x64 = np.array([[1 / 3], [1e300], [2.0]])
    rounded, difference = run(program, {0: x64})
    with np.errstate(over="ignore"):
        want = x64.astype("float32")
    assert_array_equal(rounded, want)
    assert_array_equal(difference, x64 - want.astype("float64"))


def test_indices_that_are_not_exact_are_refused() -> None:
    program = Program(
        (Value("n", "int64", (2, 1)),), (step("f", variable(0, 1, I), 1, "float32", v0="n"),), ("f",)
    )
    assert_array_equal(run(program, {0: np.array([[1], [1 << 24]])})[0], [[1.0], [float(1 << 24)]])
    with pytest.raises(FormulaTooLarge, match=r"'n' holds whole numbers up to 16777217; float32 is exact"):
        run(program, {0: np.array([[1], [(1 << 24) + 1]])})


def test_results_are_arrays_of_their_own() -> None:
    program = Program((Value("x", "float64", (2, 1)),), doubling(1).body[:0], ("x",))
    x = np.ones((2, 1))
    (found,) = run(program, {0: x})
    assert found is not x and not np.may_share_memory(found, x)


def test_a_measure_that_is_not_a_number_ends_the_loop_with_what_there_is() -> None:
    x = variable(0, 1, I)
    body = (
        step("less", node("Subtract", x, constant(1)), 1, "float64", v0="x"),
        step("root", node("Sqrt", variable(0, 1, P)), 1, "float64", v0="x"),
    )
    loop = Loop((Carried("x", "start", "less"),), body, 1000, "root", 0.0)
    after = step("later", node("Square", x), 1, "float64", v0="x")
    program = Program((Value("start", "float64", (1, 1)),), (loop, after), ("x", "later"))
    with pytest.raises(SolverDidNotConverge, match="'root' of a loop is NaN in round 6 of 1000") as raised:
        run(program, {0: np.array([[4.0]])})
    x_found, later = raised.value.iterate
    assert x_found.item() == -2.0 and np.isnan(later).all()
    assert_allclose(raised.value.residuals, [2.0, 3**0.5, 2**0.5, 1.0, 0.0, np.nan])


def test_progress_and_deadline() -> None:
    seen: list[float] = []
    run(power_iteration(2500, 100), power_arrays(2500), progress=seen.append)
    assert seen == sorted(seen) and len(seen) > 2 and seen[-1] == 1.0
    program, arrays = endless()
    with pytest.raises(DeadlineExceeded):
        run(program, arrays, deadline_s=0.3)


def test_small_steps_are_not_looked_at_one_by_one() -> None:
    seen: list[float] = []
    (found,) = run(doubling(20, 5), {0: np.ones((4, 1))}, progress=seen.append)
    assert_array_equal(found, np.full((4, 1), 2.0**100))
    assert len(seen) < 20


# ── what is refused ───────────────────────────────────────────────────────────────────────────────

X = Value("x", "float64", (5, 3))
ROWS = variable(0, 3, I)
GOOD = step("y", ROWS, 1, "float64", v0="x")


def loop(**changes: Any) -> Loop:
    return replace(Loop((Carried("s", "x", "y"),), (step("y", ROWS, 1, "float64", v0="s"),), 3), **changes)


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (((X,), (replace(GOOD, arguments=((0, "z"),)),), ("y",)), FormulaError, r"step 0 \(y\): argument 0 names 'z'"),
    (((X,), (GOOD,), ("z",)), FormulaError, "an output names 'z', which is no value here; known are x, y"),
    (((X, X), (GOOD,), ("y",)), FormulaError, "the name 'x' is given twice"),
    (((X,), (GOOD, GOOD), ("y",)), FormulaError, "the name 'y' is given twice"),
    (((X,), (replace(GOOD, outputs=("not a name",)),), ("x",)), FormulaError, "is no name"),
    (((X,), (replace(GOOD, outputs=("y", "z")),), ("y",)), FormulaError, "gives 1 results; 2 names"),
    (((X,), (GOOD,), ("y", "y")), FormulaError, "each named once"),
    (((X,), (GOOD,), ()), FormulaError, "has outputs"),
    (((X,), (GOOD,) * (MAX_STEPS + 1), ("y",)), FormulaTooLarge, f"at most {MAX_STEPS} steps"),
    (((X,), (replace(GOOD, arguments=((0, "x"), (7, "x"))),), ("y",)), FormulaError, "takes the arguments"),
    (((X,), (step("y", variable(0, 2, I), 1, "float64", v0="x"),), ("y",)), ShapeError, r"'x' has shape \(5, 3\)"),
    (((X,), (step("y", variable(0, 3, P), 1, "float64", v0="x"),), ("y",)), ShapeError, "used as a parameter"),
    (((replace(X, dtype="bfloat16"),), (GOOD,), ("y",)), DtypeError, "has dtype bfloat16"),
    (((replace(X, shape=(-1, 3)),), (GOOD,), ("y",)), ShapeError, "declared with shape"),
    (((X,), (step("y", ROWS, 1, "bfloat16", v0="x"),), ("y",)), DtypeError, "does not compute in bfloat16"),
    (((X,), (loop(times=0),), ("s",)), FormulaError, f"runs 1 to {MAX_ROUNDS} times, not 0"),
    (((X,), (loop(times=MAX_ROUNDS + 1),), ("s",)), FormulaError, f"runs 1 to {MAX_ROUNDS} times"),
    (((X,), (loop(body=()),), ("s",)), FormulaError, "has steps"),
    (((X,), (loop(measure="y"),), ("s",)), ShapeError, r"measure 'y' of a loop has shape \(5, 3\)"),
    (((X,), (loop(measure="q"),), ("s",)), FormulaError, "names 'q'"),
    (((X,), (loop(history="h"),), ("s",)), FormulaError, "without a measure has no history"),
    (((X,), (loop(),), ("y",)), FormulaError, "a name of a loop that has ended"),
    (((X,), (loop(state=(Carried("s", "x", "gone"),)),), ("s",)), FormulaError, "names 'gone'"),
    (
        ((X,), (loop(body=(step("y", ROWS, 0, "float64", v0="s"),)),), ("s",)),
        ShapeError,
        r"begins with shape \(5, 3\) and has \(1, 3\) after a round",
    ),
    (
        ((X,), (loop(body=(step("y", ROWS, 1, "float32", v0="s"),)),), ("s",)),
        DtypeError,
        "begins as float64 and is float32 after a round; convert one",
    ),
]  # fmt: skip


@pytest.mark.parametrize("parts, error, match", REFUSED)
def test_what_cannot_be_is_refused(parts: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Program(*parts)


def test_arrays_that_do_not_fit_are_refused_by_name() -> None:
    prepared = ENGINE.prepare(Program((X,), (GOOD,), ("y",)))
    for arrays, error, match in (
        ({}, ShapeError, "input 'x' is missing"),
        ({0: np.ones((4, 3))}, ShapeError, r"'x' has shape \(4, 3\); declared is \(5, 3\)"),
        ({0: np.ones((5, 3), "float32")}, DtypeError, "'x' has dtype float32; declared is float64"),
    ):
        with pytest.raises(error, match=match):
            prepared.run(arrays)


# ── on the wire ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "program", [power_iteration(50, 7), power_iteration(9, 3, "float32", 1e-3), doubling(4, 9)]
)
def test_a_program_arrives_as_it_was_sent(program: Program) -> None:
    data = wire.encode_form(program, {})
    form = wire.decode_form(data)
    assert form.spec == program and hash(form.spec) == hash(program)
    assert form.spec.digest == program.digest
    assert wire.encode_form(form.spec, {}) == data
    assert [f.shape for f in form.faces] == [v.shape for v in program.inputs]
    assert [f.shape for f in form.outputs] == [v.shape for v in program.results]
    assert form.nbytes == program.layout.nbytes > 0 and form.cost > 0


def test_changed_programs_are_other_programs() -> None:
    program = power_iteration(50, 7, below=1e-3)
    (first,) = program.body
    assert isinstance(first, Loop)
    others = [
        replace(program, outputs=program.outputs[:1]),
        replace(program, body=(replace(first, times=8),)),
        replace(program, body=(replace(first, below=1e-4),)),
        power_iteration(51, 7, below=1e-3),
        power_iteration(50, 7, "float32", 1e-3),
    ]
    assert len({program, *others}) == 1 + len(others)


@pytest.mark.parametrize("cut", range(1, 400, 13))
def test_bytes_that_are_damaged_are_refused(cut: int) -> None:
    from farsum_kernels.errors import FarsumError

    data = wire.encode_form(power_iteration(50, 7, below=1e-3), {})
    spoilt = bytearray(data)
    spoilt[cut % len(data)] ^= 0xFF
    for bad in (data[:cut], bytes(spoilt)):
        try:
            form = wire.decode_form(bad)
        except FarsumError:
            continue
        assert isinstance(form.spec, Program | Spec)
