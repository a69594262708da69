"""A program: a short list of named reductions, with loops, that runs where its arrays are. Data, like a formula.

Imports nothing but the standard library, the formula language and the job. Every value of a program has rows,
(..., rows, dim), also a number, which has one row; where a formula takes a parameter, a value of one row is one.
An elementwise step is a reduction too: a Sum of a formula that no j occurs in has one term. Names are given once:
a loop says what each of its states is to begin with, and which value of its body is the next one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from farsum_kernels.errors import (
    DtypeError,
    ShapeError,
)
from farsum_kernels.job import (
    ITEMSIZE,
    RANGES,
    Extent,
    Spec,
    check_ranges,
    dtype_name,
)

# bfloat16 is missing: nothing is rounded to it between two steps.
VALUE_DTYPES = ("float16", "float32", "float64", "int64")
MAX_STEPS = 256
MAX_INPUTS = 256
MAX_ROUNDS = 1_000_000
MAX_NODES = 1 << 16
MAX_PROGRAM_BYTES = 1 << 40
# Dense matrices of these sizes are decomposed in one go.
MAX_RANK = 1024
MAX_EIGENVALUES = 512
RULES = ("cg", "minres")
ENDS = ("LA", "SA", "LM")
# What an iteration is taken to cost before it has run, in products.
EXPECTED_PRODUCTS = 50
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class Value:
    """What an array of a program is: its name, its dtype, its shape (..., rows, dim)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return ITEMSIZE[self.dtype] * prod(self.shape)


@dataclass(frozen=True, slots=True)
class Solve:
    """Instead of a sum: the a with ridge·a + sum(a) = b, b being the argument of the unknown.

    unknown     the variable that the formula is linear in
    rule        "cg", for a positive definite sum, or "minres", for a symmetric one
    ridge       is added to the diagonal
    tolerance   the norm of the residual that is small enough
    cap         products at most
    rank        above 0: so many points, drawn with `seed`, make a Nyström preconditioner
    """

    unknown: int
    rule: str
    ridge: float
    tolerance: float
    cap: int
    rank: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Eigen:
    """Instead of a sum: its eigenvalues at one end, (count, 1), and its eigenvectors, (rows, count).

    unknown     the variable that the formula is linear in; its argument is where the iteration starts
    which       "LA" the largest, "SA" the smallest, "LM" the largest in magnitude
    tolerance   the residual of each pair, relative to the largest eigenvalue
    cap         products at most
    """

    unknown: int
    count: int
    which: str
    tolerance: float
    cap: int


Method = Solve | Eigen


@dataclass(frozen=True)
class Step:
    """outputs = the reductions of the spec, on arguments: pairs of a variable's index and the name of a value.

    With ranges, their six places (`RANGES`) name inputs too. With a method, the sum is not taken but inverted.
    """

    outputs: tuple[str, ...]
    spec: Spec
    arguments: tuple[tuple[int, str], ...]
    method: Method | None = None


@dataclass(frozen=True, slots=True)
class Carried:
    """A state of a loop: its name, its value before the first round, and that after each round."""

    name: str
    first: str
    next: str


@dataclass(frozen=True)
class Loop:
    """The steps of `body`, so many times or until `measure`, a number, is below a bound; NaN is an error.

    state     what goes from round to round; all change together at the end of a round. Other names of the body
              end with it
    history   the name of the values of the measure, (times, 1) in float64, NaN after the last round
    """

    state: tuple[Carried, ...]
    body: tuple[Step, ...]
    times: int
    measure: str | None = None
    below: float = 0.0
    history: str | None = None


@dataclass(frozen=True)
class Program:
    """Inputs, steps and loops, and the names of the values that are the result. Checked when it is made.

    Raises FormulaError for a name that is unknown or given twice and for what no loop can mean, FormulaTooLarge
    past the limits, ShapeError, DtypeError or DimensionError, naming the step, for values that do not fit.
    """

    inputs: tuple[Value, ...]
    body: tuple[Step | Loop, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        from farsum_kernels.layout import Check  # which knows the classes of this module

        object.__setattr__(self, "layout", Check(self).layout())

    layout: Layout = field(init=False, compare=False, repr=False)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.digest == other.digest

    @cached_property
    def digest(self) -> bytes:
        """Content digest: equal for equal programs, on every machine."""

        def words(step: Step) -> tuple[Any, ...]:
            return step.outputs, step.spec.digest, step.arguments, step.method

        body = [
            (item.state, [words(s) for s in item.body], item.times, item.measure, item.below, item.history)
            if isinstance(item, Loop)
            else words(item)
            for item in self.body
        ]
        text = repr((self.inputs, body, self.outputs)).encode()
        return hashlib.blake2b(text, digest_size=16).digest()

    @property
    def steps(self) -> Iterator[Step]:
        """Every step, those of loops too."""
        for item in self.body:
            yield from item.body if isinstance(item, Loop) else (item,)

    @property
    def results(self) -> tuple[Value, ...]:
        """What the outputs are."""
        return tuple(self.layout.values[name] for name in self.outputs)

    def check(self, arrays: Mapping[int, Any]) -> None:
        """Raise unless the arrays, by the place of the input, are what the program declares.

        Raises ShapeError or DtypeError, naming the input; ranges are looked at by their values.
        """
        for place, value in enumerate(self.inputs):
            if place not in arrays:
                raise ShapeError(f"the input {value.name!r} is missing")
            array = arrays[place]
            if tuple(array.shape) != value.shape:
                raise ShapeError(
                    f"the input {value.name!r} has shape {tuple(array.shape)}; declared is {value.shape}"
                )
            if dtype_name(array.dtype) != value.dtype:
                raise DtypeError(
                    f"the input {value.name!r} has dtype {array.dtype}; declared is {value.dtype}"
                )
        places = {value.name: place for place, value in enumerate(self.inputs)}
        for number, step in enumerate(self.steps):
            ranges = {place: arrays[places[name]] for place, name in step.arguments if place in RANGES}
            if ranges:
                check_ranges(ranges, self.layout.extents[number])


@dataclass(frozen=True, slots=True)
class Layout:
    """What follows from the declarations of a program.

    values    every value by name
    extents   the sizes of each step, in the order of `Program.steps`
    costs     the work of each step in node evaluations, one round of its loop
    nbytes    what the values take that are not inputs
    """

    values: Mapping[str, Value]
    extents: tuple[Extent, ...]
    costs: tuple[float, ...]
    nbytes: int


def cost_of(program: Program) -> float:
    """A rough number of node evaluations of the whole program."""
    costs = iter(program.layout.costs)
    total = 0.0
    for item in program.body:
        if isinstance(item, Loop):
            total += item.times * sum(next(costs) for _ in item.body)
        else:
            total += next(costs)
    return total


def parameter_shape(value: Value) -> tuple[int, ...]:
    """The shape of a value of one row as a parameter. Raises ShapeError for more rows."""
    shape = value.shape
    if len(shape) < 2 or shape[-2] != 1:
        raise ShapeError(
            f"{value.name!r} has shape {shape} and is used as a parameter, which has one row: (..., 1, dim)"
        )
    return (*shape[:-2], shape[-1])
