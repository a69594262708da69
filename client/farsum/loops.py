"""Loops that run where the data is: a function over arrays, recorded as a program and run as one job."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from math import isfinite, isnan, prod
from typing import Any

import numpy as np

from farsum import progress
from farsum.handle import Handle, handle_of
from farsum.recorded import Recorded, Tape, current
from farsum.target import prepared
from farsum_kernels.errors import FormulaError, OperandError, ShapeError, SolverDidNotConverge
from farsum_kernels.job import Options, Result
from farsum_kernels.program import MAX_ROUNDS, Carried, Loop, Program


class RecordedFunction:
    """What `farsum.program` makes of a function; `__wrapped__` is that function, which runs call by call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function

    def __repr__(self) -> str:
        return f"program {getattr(self._function, '__name__', self._function)}"

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        return self if owner is None else functools.partial(self, owner)

    def __call__(
        self,
        *args: Any,
        deadline_s: float | None = None,
        keep: bool = False,
        watch: Callable[[Any], object] | None = None,
        watch_s: float = 1.0,
        **named: Any,
    ) -> Any:
        """The result of the function on these arrays, computed as one job.

        deadline_s   give up after so many seconds
        keep         leave the results where they are computed, and give handles to them
        watch        called with the results as they stand every watch_s seconds, NaN where they are not there yet;
                     from a server up to 4 MiB

        Raises what the function raises while it is recorded; SolverDidNotConverge, whose iterate holds the results
        as they stood, when the measure of a loop is NaN.
        """
        program, arrays, shape = self.recorded(*args, **named)
        options = progress.options(deadline_s, keep)
        if watch is not None:
            options = replace(options, watch=lambda values: watch(shape(values, False)), watch_s=watch_s)
        try:
            return shape(_run(program, arrays, options).values, keep)
        except SolverDidNotConverge as error:
            values = error.iterate if isinstance(error.iterate, tuple) else (error.iterate,)
            error.iterate = shape(values, False)
            raise
        finally:
            progress.done(options)

    def submit(self, *args: Any, options: Options = Options(), **named: Any) -> Future[Any]:
        """The same without waiting."""
        program, arrays, shape = self.recorded(*args, **named)
        found: Future[Any] = Future()
        inner = prepared(program).submit(_reachable(arrays), options)

        def done(result: Future[Result]) -> None:
            try:
                found.set_result(shape(result.result().values, options.keep))
            except BaseException as error:
                found.set_exception(error)

        inner.add_done_callback(done)
        found.cancel = inner.cancel  # type: ignore[method-assign]
        return found

    def recorded(self, *args: Any, **named: Any) -> tuple[Program, dict[int, Any], Callable[..., Any]]:
        """The program of a call on these arrays, its inputs, and what gives its results their order."""
        if current.get() is not None:
            raise FormulaError(f"{self} is called while another program is recorded; call {self}.__wrapped__")
        tape = Tape()
        token = current.set(tape)
        try:
            found = self._function(
                *(_argument(tape, a, f"argument{n}_") for n, a in enumerate(args)),
                **{name: _argument(tape, a, f"{name}_") for name, a in named.items()},
            )
            several = isinstance(found, tuple | list)
            results = [_result(tape, each) for each in (found if several else (found,))]
        finally:
            current.reset(token)
        names = list(dict.fromkeys(result.name for result in results))
        places = [names.index(result.name) for result in results]
        program, arrays = tape.program(names)

        def shape(values: Sequence[Any], keep: bool) -> Any:
            if keep:
                values = [v if isinstance(v, Handle) else handle_of(v) for v in values]
            ordered = tuple(values[place] for place in places)
            return ordered if several else ordered[0]

        return program, arrays, shape


def _argument(tape: Tape, given: Any, stem: str) -> Any:
    """Arrays are recorded; anything else is what it is, the same in every round."""
    if isinstance(given, np.ndarray | Handle) and given.ndim:
        if given.ndim < 2:
            raise ShapeError(
                f"an argument of a program has shape {given.shape}; arrays of programs have rows: write x[:, None] for a column, "
                f"x[None, :] for one row"
            )
        return tape.input(given, stem if stem.isidentifier() and len(stem) < 40 else "argument")
    return given


def _result(tape: Tape, given: Any) -> Recorded:
    if isinstance(given, np.ndarray | Handle):
        return tape.input(given).materialised()
    raise OperandError(
        f"a program gives arrays; its function returned {type(given).__name__}: return what was computed, one array or a "
        f"tuple of arrays"
    )


def _run(program: Program, arrays: dict[int, Any], options: Options) -> Result:
    return prepared(program).run(_reachable(arrays), options)


def _reachable(arrays: dict[int, Any]) -> Any:
    from farsum.compute import within_reach

    return within_reach(arrays)


def repeat(
    step: Callable[..., Any],
    *state: Any,
    times: int,
    until: float | None = None,
    history: bool = False,
) -> Any:
    """See `farsum.repeat`."""
    whole = isinstance(times, int | np.integer) and not isinstance(times, bool)
    if not whole or not 1 <= times <= MAX_ROUNDS:
        raise FormulaError(f"farsum.repeat runs a step 1 to {MAX_ROUNDS} times, not {times!r}")
    if not state:
        raise FormulaError(
            "farsum.repeat needs a state to begin with, such as farsum.repeat(step, x, times=10)"
        )
    if until is not None and not (isinstance(until, int | float) and isfinite(until) and until >= 0):
        raise FormulaError(f"until is a number from 0, which the measure falls below, not {until!r:.80}")
    if history and until is None:
        raise FormulaError("history is that of the measure, and there is one with until")
    tape = current.get()
    if tape is None:
        return _here(step, state, int(times), until, history)
    return _written(tape, step, state, int(times), until, history)


def _parts(found: Any, count: int, until: float | None) -> tuple[list[Any], Any]:
    """The next states, and the measure, of what a step returned."""
    values = list(found) if isinstance(found, tuple | list) else [found]
    wanted = count + (until is not None)
    if len(values) != wanted:
        measure = " and the measure that until is for" if until is not None else ""
        raise FormulaError(
            f"the step of farsum.repeat returns the next of each of the {count} states{measure}; it returned {len(values)} "
            f"values"
        )
    return values[:count], values[count] if until is not None else None


def _whole(states: Sequence[Any], more: Sequence[Any]) -> Any:
    values = (*states, *more)
    return values if len(values) > 1 else values[0]


def _here(
    step: Callable[..., Any], state: Sequence[Any], times: int, until: float | None, history: bool
) -> Any:
    """The loop as it stands, call by call."""
    measures = np.full((times, 1), np.nan)
    for number in range(times):
        state, measure = _parts(step(*state), len(state), until)
        if until is not None:
            if prod(np.shape(measure)) != 1:
                raise ShapeError(
                    f"the measure of farsum.repeat is one number, not of shape {np.shape(measure)}"
                )
            measures[number] = value = float(np.asarray(measure).reshape(()))
            if isnan(value):
                raise SolverDidNotConverge(
                    f"the measure of farsum.repeat is NaN in round {number + 1} of {times}",
                    _whole(state, ()),
                    measures[: number + 1, 0].tolist(),
                )
            if value < until:
                break
    return _whole(state, (measures,) if history else ())


def _written(
    tape: Tape, step: Callable[..., Any], state: Sequence[Any], times: int, until: float | None, history: bool
) -> Any:
    """The loop as a part of the program that is being recorded: its step runs once, to be written down."""
    firsts = [tape.input(_rows(s)).materialised() for s in state]
    body = tape.bodies[-1]
    tape.open()
    try:
        inside = [_state(tape, first) for first in firsts]
        nexts, measure = _parts(step(*inside), len(firsts), until)
        after = [tape.input(_rows(n)).materialised() for n in nexts]
        last = None if measure is None else tape.input(_rows(measure)).materialised()
        for number, (first, following) in enumerate(zip(firsts, after, strict=True)):
            _check_same(number, first, following)
        if last is not None and last.size != 1:
            raise ShapeError(
                f"the measure of farsum.repeat has shape {last.shape}; it is one number, such as abs(new - old).max()"
            )
        carried = tuple(
            Carried(s.name, f.name, n.name) for s, f, n in zip(inside, firsts, after, strict=True)
        )
        measured = None if last is None else last.name
    finally:
        steps = tape.close()
    if not steps:
        raise FormulaError("the step of farsum.repeat computes nothing from its state")
    told = tape.name("history") if history else None
    body.append(
        Loop(carried, tuple(s for s in steps if not isinstance(s, Loop)), times,
             measured, float(until or 0.0), told)
    )  # fmt: skip
    states = [Recorded(tape, s._value, body) for s in inside]
    return _whole(states, [tape.value(told, "float64", (times, 1))] if told else ())


def _rows(x: Any) -> Any:
    """A state or a measure as an array with rows; a number is one row."""
    return np.full((1, 1), x) if isinstance(x, int | float) else x


def _state(tape: Tape, first: Recorded) -> Recorded:
    assert first._value is not None
    return tape.value(tape.name("state"), first._value.dtype, first.shape)


def _check_same(number: int, first: Recorded, following: Recorded) -> None:
    if first.shape != following.shape:
        raise ShapeError(
            f"state {number} of farsum.repeat begins with shape {first.shape} and has {following.shape} after a step"
        )
    if first.dtype != following.dtype:
        raise FormulaError(
            f"state {number} of farsum.repeat begins as {first.dtype} and is {following.dtype} after a step: convert one of "
            f"them with .astype('{first.dtype}')"
        )
