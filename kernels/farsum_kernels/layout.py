"""What follows from the declarations of a program, or why they cannot be: names, shapes, dtypes, sizes.

Runs when a program is made, on the client with the user's words and on the server again.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, prod
from typing import Any

from farsum_kernels.errors import (
    DimensionError,
    DtypeError,
    FormulaError,
    FormulaTooLarge,
    MessageTooLarge,
    ShapeError,
)
from farsum_kernels.formula.expr import I, J, P, walk
from farsum_kernels.job import RANGE_NAMES, RANGES, Extent, extent_of, output_dtypes, output_shapes
from farsum_kernels.program import (
    ENDS,
    EXPECTED_PRODUCTS,
    MAX_EIGENVALUES,
    MAX_INPUTS,
    MAX_NODES,
    MAX_PROGRAM_BYTES,
    MAX_RANK,
    MAX_ROUNDS,
    MAX_STEPS,
    NAME,
    RULES,
    VALUE_DTYPES,
    Eigen,
    Layout,
    Loop,
    Method,
    Program,
    Solve,
    Step,
    Value,
    parameter_shape,
)


class Check:
    """Walks a program once, in order, with the names that are known at each point."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._scope: dict[str, Value] = {}
        self._given: set[str] = set()  # a name is given once, wherever it can be seen
        self._values: dict[str, Value] = {}
        self._extents: list[Extent] = []
        self._costs: list[float] = []
        self._nodes = 0
        self._nbytes = 0  # of iterations, beside the values

    def layout(self) -> Layout:
        program = self._program
        if len(program.inputs) > MAX_INPUTS:
            raise FormulaTooLarge(
                f"a program has at most {MAX_INPUTS} inputs; this one has {len(program.inputs)}"
            )
        if not program.body and not program.inputs:
            raise FormulaError("a program without steps and inputs computes nothing")
        count = sum(len(item.body) if isinstance(item, Loop) else 1 for item in program.body)
        if count > MAX_STEPS or len(program.body) > MAX_STEPS:
            raise FormulaTooLarge(f"a program has at most {MAX_STEPS} steps; this one has {count}")
        for value in program.inputs:
            self._check_input(value)
            self._give(value)
        for item in program.body:
            if isinstance(item, Loop):
                self._loop(item)
            else:
                for value in self._step(item):
                    self._give(value)
        if not program.outputs or len(set(program.outputs)) != len(program.outputs):
            raise FormulaError("a program has outputs, each named once")
        for name in program.outputs:
            self._known(name, "an output")
        own = {value.name for value in program.inputs}
        nbytes = self._nbytes + sum(value.nbytes for name, value in self._values.items() if name not in own)
        if nbytes > MAX_PROGRAM_BYTES:
            raise MessageTooLarge(
                f"the values of the program take {nbytes} bytes; at most {MAX_PROGRAM_BYTES} are allowed"
            )
        return Layout(dict(self._values), tuple(self._extents), tuple(self._costs), nbytes)

    def _check_input(self, value: Value) -> None:
        if value.dtype not in VALUE_DTYPES:
            raise DtypeError(
                f"the input {value.name!r} has dtype {value.dtype}; a program takes {', '.join(VALUE_DTYPES)}"
            )
        if any(type(d) is not int or d < 0 for d in value.shape):
            raise ShapeError(f"the input {value.name!r} is declared with shape {value.shape}")

    def _give(self, value: Value) -> None:
        if not NAME.fullmatch(value.name):
            raise FormulaError(f"{value.name!r:.80} is no name: letters, digits and underscores, at most 64")
        if value.name in self._given:
            raise FormulaError(f"the name {value.name!r} is given twice")
        self._given.add(value.name)
        self._scope[value.name] = self._values[value.name] = value

    def _known(self, name: str, what: str) -> Value:
        if name not in self._scope:
            gone = name in self._given
            hint = "it is a name of a loop that has ended" if gone else f"known are {_some(self._scope)}"
            raise FormulaError(f"{what} names {name!r:.80}, which is no value here; {hint}")
        return self._scope[name]

    def _loop(self, loop: Loop) -> None:
        if type(loop.times) is not int or not 1 <= loop.times <= MAX_ROUNDS:
            raise FormulaError(f"a loop runs 1 to {MAX_ROUNDS} times, not {loop.times!r}")
        if not loop.body or not loop.state:
            raise FormulaError("a loop has steps, and states that go from round to round")
        outside = dict(self._scope)
        states = []
        for carried in loop.state:
            first = self._known(carried.first, f"the state {carried.name!r} of a loop")
            state = Value(carried.name, first.dtype, first.shape)
            states.append(state)
        for state in states:
            self._give(state)
        for step in loop.body:
            for value in self._step(step):
                self._give(value)
        for carried, state in zip(loop.state, states, strict=True):
            after = self._known(carried.next, f"the state {carried.name!r} of a loop")
            _check_same(state, after)
        self._check_measure(loop)
        self._scope = outside | {state.name: state for state in states}
        if loop.history is not None:
            if loop.measure is None:
                raise FormulaError("a loop without a measure has no history of it")
            self._give(Value(loop.history, "float64", (loop.times, 1)))

    def _check_measure(self, loop: Loop) -> None:
        if loop.measure is None:
            return
        value = self._known(loop.measure, "the measure of a loop")
        if prod(value.shape) != 1:
            raise ShapeError(
                f"the measure {value.name!r} of a loop has shape {value.shape}; it is one number, such as a norm or a maximum"
            )
        if not isinstance(loop.below, int | float) or not loop.below >= 0 or not isfinite(loop.below):
            raise FormulaError(f"the measure of a loop falls below a number from 0, not {loop.below!r}")

    def _step(self, step: Step) -> tuple[Value, ...]:
        try:
            return self._checked_step(step)
        except (FormulaError, ShapeError, DtypeError) as error:
            raise type(error)(
                f"step {len(self._extents)} ({', '.join(step.outputs)[:100]}): {error}"
            ) from None

    def _checked_step(self, step: Step) -> tuple[Value, ...]:
        spec = step.spec
        if spec.dtype == "bfloat16":
            raise DtypeError("a program does not compute in bfloat16; use float32")
        if any(part.rule.listed and part.formula.dim > 1 for part in spec.parts):
            raise FormulaError("a reduction that keeps K takes scalars in a program")
        arguments = dict(step.arguments)
        ranges = [place for place in arguments if place in RANGES]
        if len(arguments) != len(step.arguments) or arguments.keys() - set(ranges) != spec.inputs.keys():
            raise FormulaError(
                f"the formula {spec.formula} takes the arguments {sorted(spec.inputs)}; "
                f"given are {[place for place, _ in step.arguments]}"
            )
        if ranges and len(ranges) != len(RANGES):
            raise ShapeError(f"ranges needs six arrays ({', '.join(RANGE_NAMES)})")
        inputs = {value.name for value in self._program.inputs}
        shapes: dict[int, tuple[int, ...]] = {}
        for place, name in step.arguments:
            value = self._known(name, f"argument {place}")
            if place in RANGES:
                if name not in inputs or value.dtype != "int64":
                    raise DtypeError(f"ranges are int64 inputs of the program; {name!r} is not one")
            else:
                category = spec.inputs[place].params[2]
                shapes[place] = parameter_shape(value) if category == P else value.shape
        extent = extent_of(spec, shapes, {place: repr(name) for place, name in step.arguments})
        nodes = sum(1 for _ in walk(*spec.roots))
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise FormulaTooLarge(f"the formulas of the program have more than {MAX_NODES} nodes")
        cost = float(extent.pairs) * (nodes + sum(v.dim for v in spec.inputs.values()))
        self._extents.append(extent)
        made = list(zip(output_dtypes(spec), output_shapes(spec, extent), strict=True))
        if step.method is not None:
            cost *= EXPECTED_PRODUCTS
            made = self._of_method(step, step.method, arguments, made)
        self._costs.append(cost)
        if len(made) != len(step.outputs):
            raise FormulaError(
                f"{spec.reduction} gives {len(made)} results; {len(step.outputs)} names are given"
            )
        return tuple(
            Value(name, dtype, shape) for name, (dtype, shape) in zip(step.outputs, made, strict=True)
        )

    def _of_method(
        self,
        step: Step,
        method: Method,
        arguments: Mapping[int, str],
        made: list[tuple[str, tuple[int, ...]]],
    ) -> list[tuple[str, tuple[int, ...]]]:
        """What an inverse or eigenvalues are, given what the sum is."""
        spec = step.spec
        if len(spec.parts) != 1 or spec.reduction != "Sum" or spec.dtype not in VALUE_DTYPES:
            raise FormulaError("what is inverted is one sum")
        if method.unknown not in spec.inputs or spec.inputs[method.unknown].params[2] == P:
            raise FormulaError(f"the unknown, variable {method.unknown}, has no rows in {spec.formula}")
        vector = self._known(arguments[method.unknown], "the unknown")
        ((_, shape),) = made
        if vector.shape != shape or vector.dtype == "int64":
            raise ShapeError(
                f"the sum of {spec.formula} has shape {shape} and the unknown {vector.name!r} has {vector.shape}: a system has as "
                f"many rows as columns, and as many equations as unknowns"
            )
        if type(method.cap) is not int or method.cap < 0:
            raise FormulaError(f"the cap of an iteration is a count from 0, not {method.cap!r}")
        if not isfinite(method.tolerance) or method.tolerance < 0:
            raise FormulaError(f"the tolerance of an iteration is a number from 0, not {method.tolerance!r}")
        if isinstance(method, Solve):
            _check_solve(method, shape)
            if method.rank and spec.inputs[method.unknown].params[2] != (J if spec.axis == 1 else I):
                raise FormulaError("a preconditioner needs an unknown along the axis that is summed over")
            # The square matrices of the preconditioner; the vectors of an iteration are a few.
            self._nbytes += 8 * (4 * method.rank**2 + 6 * prod(shape))
            return [(vector.dtype, shape)]
        _check_eigen(method, shape)
        self._nbytes += 8 * shape[0] * (3 * method.count + 12)
        return [(vector.dtype, (method.count, 1)), (vector.dtype, (shape[-2], method.count))]


def _check_solve(method: Solve, shape: tuple[int, ...]) -> None:
    if method.rule not in RULES:
        raise FormulaError(f"the rule of a solver is one of {', '.join(RULES)}, not {method.rule!r:.40}")
    if not isfinite(method.ridge):
        raise FormulaError(f"alpha is a finite number, not {method.ridge!r}")
    if method.rank:
        most = min(MAX_RANK, shape[-2])
        if type(method.rank) is not int or not 0 < method.rank <= most:
            raise FormulaError(f"the rank of a preconditioner is 1 to {most}, not {method.rank!r}")
        if method.rule != "cg" or not method.ridge > 0 or len(shape) != 2:
            raise FormulaError("a preconditioner needs cg, alpha > 0 and no batch: it divides by alpha")


def _check_eigen(method: Eigen, shape: tuple[int, ...]) -> None:
    if method.which not in ENDS:
        raise FormulaError(f"which is one of {', '.join(ENDS)}, not {method.which!r:.40}")
    if len(shape) != 2 or shape[1] != 1:
        raise DimensionError(f"eigenvectors are of a scalar sum without a batch; this one has shape {shape}")
    most = min(MAX_EIGENVALUES, shape[0])
    if type(method.count) is not int or not 0 < method.count <= most:
        raise FormulaError(f"the number of eigenvalues is 1 to {most}, not {method.count!r}")


def _check_same(state: Value, after: Value) -> None:
    if state.shape != after.shape:
        raise ShapeError(
            f"the state {state.name!r} of a loop begins with shape {state.shape} and has {after.shape} after a round"
        )
    if state.dtype != after.dtype:
        raise DtypeError(
            f"the state {state.name!r} of a loop begins as {state.dtype} and is {after.dtype} after a round; convert one "
            f"with .astype({state.dtype!r})"
        )


def _some(names: Mapping[str, Any]) -> str:
    shown = sorted(names)[:8]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")
