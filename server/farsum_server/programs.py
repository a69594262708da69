"""A program on its way: its steps one after the other, slice by slice, on the kernels of a worker.

Everything is checked and compiled before the first slice. Values live in the memory of this process and end with
the program; it runs no code but kernels and the iterations of farsum_kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, log
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.errors import FormulaTooLarge, SolverDidNotConverge
from farsum_kernels.formula.expr import I, J, P
from farsum_kernels.iterations.conjugate import Preconditioner, conjugate_gradients
from farsum_kernels.iterations.lanczos import eigenpairs
from farsum_kernels.iterations.minimal import minimal_residual
from farsum_kernels.iterations.nystrom import drawn, nystrom
from farsum_kernels.iterations.request import Iteration, Product
from farsum_kernels.job import RANGES, Extent, Spec
from farsum_kernels.program import Eigen, Loop, Method, Program, Solve, Step, cost_of

if TYPE_CHECKING:
    from farsum_kernels.compile import Kernel

Array = NDArray[Any]
Values = dict[str, Array]
Slices = Generator[None, None, None]

# Small steps are run on until so much time has passed; one slice of a large one takes up to twice as long.
SLICE_S = 0.05


@dataclass(frozen=True, slots=True)
class _Bound:
    """A step with its kernel and its sizes; `cost` is its share of the whole, one round of its loop."""

    step: Step
    kernel: Kernel
    extent: Extent
    cost: float


class ProgramRun:
    """Implements farsum_server.worker.Run's protocol for a program.

    arrays    the inputs by place, checked here
    kernel    compiles a reduction, or finds it compiled
    outputs   arrays that receive the results
    digests   of inputs, by place: what a device may keep copies by
    """

    def __init__(
        self,
        program: Program,
        arrays: Mapping[int, Array],
        kernel: Callable[[Spec], Kernel],
        outputs: Sequence[Array] | None = None,
        digests: Mapping[int, bytes] | None = None,
    ) -> None:
        program.check(arrays)
        # By the arrays themselves: a value that was converted, or taken apart, is another one.
        self._digests = {id(arrays[n]): (arrays[n], digest) for n, digest in (digests or {}).items()}
        self._program = program
        self._into = outputs
        self._values: Values = {value.name: arrays[n] for n, value in enumerate(program.inputs)}
        layout, whole = program.layout, max(cost_of(program), 1.0)
        bound = [
            _Bound(step, kernel(step.spec), extent, cost / whole)
            for step, extent, cost in zip(program.steps, layout.extents, layout.costs, strict=True)
        ]
        for each in bound:
            each.kernel.check_indices(each.extent if each.step.spec.axis == 1 else _turned(each.extent))
        self._bound = iter(bound)
        self._count = len(bound)
        self._rounds = 0
        self._share = 0.0
        self.failure: SolverDidNotConverge | None = None
        self._work = self._perform()

    @property
    def plan(self) -> Mapping[str, str]:
        return {"steps": str(self._count), "rounds": str(self._rounds)}

    def step(self) -> float:
        """Run on for about 50 ms, 150 ms at most; gives the finished share, 1.0 when all is done.

        An iteration that fails ends the program: `failure` says why, and `finish` gives what there is.
        """
        end = time.monotonic() + SLICE_S
        try:
            while time.monotonic() < end:
                next(self._work)
        except StopIteration:
            return 1.0
        except SolverDidNotConverge as error:
            self.failure = error
            return 1.0
        return min(self._share, 0.999)

    def peek(self) -> tuple[Array, ...]:
        """The outputs as they stand between two slices; NaN, or -1, where they are not there yet."""
        results = []
        for value in self._program.results:
            array = self._values.get(value.name)
            if array is None:
                array = np.full(value.shape, -1 if value.dtype == "int64" else np.nan, value.dtype)
            results.append(array)
        return tuple(results)

    def finish(self) -> tuple[Array, ...]:
        """The results, in arrays of their own."""
        results = self.peek()
        if self._into is not None:
            for out, array in zip(self._into, results, strict=True):
                out[...] = array
            return tuple(self._into)
        inputs = {value.name for value in self._program.inputs}
        return tuple(
            a.copy() if name in inputs else a for name, a in zip(self._program.outputs, results, strict=True)
        )

    # ── steps ─────────────────────────────────────────────────────────────────────────────────────

    def _perform(self) -> Slices:
        for item in self._program.body:
            if isinstance(item, Loop):
                yield from self._loop(item, [next(self._bound) for _ in item.body])
            else:
                yield from self._step(next(self._bound), self._values)
        yield

    def _step(self, bound: _Bound, values: Values) -> Slices:
        arrays, method = self._arguments(bound.step, values), bound.step.method
        if method is not None:
            b = values[dict(bound.step.arguments)[method.unknown]]
            made = yield from self._iterated(bound, method, arrays, b, values)
        else:
            made = yield from self._reduced(bound, arrays, bound.extent, self._share, bound.cost)
        values.update(zip(bound.step.outputs, made, strict=True))

    def _reduced(
        self, bound: _Bound, arrays: Mapping[int, Array], extent: Extent, begun: float, cost: float
    ) -> Generator[None, None, tuple[Array, ...]]:
        known = {n: self._digests[id(a)][1] for n, a in arrays.items() if id(a) in self._digests}
        launch = bound.kernel.launch(arrays, extent, known)
        while (share := launch.step()) < 1.0:
            self._share = max(self._share, begun + share * cost)
            yield
        self._share = max(self._share, begun + cost)
        yield
        return launch.results()

    # ── iterations ────────────────────────────────────────────────────────────────────────────────

    def _iterated(
        self, bound: _Bound, method: Method, arrays: Mapping[int, Array], b: Array, values: Values
    ) -> Generator[None, None, tuple[Array, ...]]:
        """What an iteration finds. If it gives up, what it had reached stands as the outputs of the step."""
        begun = self._share
        iteration = _iteration(method, b)
        try:
            request = next(iteration)
            while True:
                product = yield from self._product(bound, arrays, request, method.unknown, b)
                self._share = max(self._share, begun + bound.cost * request.share)
                request = iteration.send(product)
        except StopIteration as found:
            made: tuple[Array, ...] = found.value
        except SolverDidNotConverge as error:
            if error.iterate is not None:
                reached = error.iterate if isinstance(error.iterate, tuple) else (error.iterate,)
                values.update(zip(bound.step.outputs, reached, strict=True))
            raise
        self._share = begun + bound.cost
        return made

    def _product(
        self, bound: _Bound, arrays: Mapping[int, Array], request: Product, unknown: int, b: Array
    ) -> Generator[None, None, Array]:
        """The sum with a vector in the place of the unknown, in the dtype of the right-hand side."""
        spec, extent = bound.step.spec, bound.extent
        own = {**arrays, unknown: converted(request.vector, spec.dtype, "the vector")}
        for places, axis in ((request.rows, spec.axis == 1), (request.columns, spec.axis != 1)):
            if places is not None:
                extent = Extent(len(places), extent.n, ()) if axis else Extent(extent.m, len(places), ())
                for n, variable in spec.inputs.items():
                    if variable.params[2] == (I if axis else J) and n != unknown:
                        own[n] = arrays[n][places]
        (value,) = yield from self._reduced(bound, own, extent, self._share, 0.0)
        return converted(value, b.dtype.name, "the product")

    def _arguments(self, step: Step, values: Values) -> dict[int, Array]:
        """The values in the dtype of the step, parameters without their row axis."""
        arrays = {}
        for place, name in step.arguments:
            array = values[name]
            if place not in RANGES:
                array = converted(array, step.spec.dtype, name)
                if step.spec.inputs[place].params[2] == P:
                    array = array[..., 0, :]
            arrays[place] = array
        return arrays

    # ── loops ─────────────────────────────────────────────────────────────────────────────────────

    def _loop(self, loop: Loop, body: Sequence[_Bound]) -> Slices:
        values, begun = self._values, self._share
        cost = sum(bound.cost for bound in body)
        history = np.full((loop.times, 1), np.nan)
        if loop.history is not None:
            values[loop.history] = history
        values.update({carried.name: values[carried.first] for carried in loop.state})
        for number in range(loop.times):
            scope = dict(values)
            for bound in body:
                yield from self._step(bound, scope)
            self._rounds += 1
            # All change together: one may become what another one was.
            values.update({carried.name: scope[carried.next] for carried in loop.state})
            if loop.measure is not None:
                history[number] = measure = float(scope[loop.measure].reshape(()))
                if isnan(measure):
                    raise _not_a_number(loop, number, history)
                if measure < loop.below:
                    break
                self._hasten(begun, loop, cost, number, float(history[0, 0]), measure)
        self._share = begun + loop.times * cost

    def _hasten(
        self, begun: float, loop: Loop, cost: float, number: int, first: float, measure: float
    ) -> None:
        """Progress of a loop that ends by its measure: how far that has fallen, on a scale of logarithms."""
        if 0 < loop.below < measure < first:
            fallen = log(first / measure) / log(first / loop.below)
            self._share = max(self._share, begun + loop.times * cost * fallen)


def _not_a_number(loop: Loop, number: int, history: Array) -> SolverDidNotConverge:
    return SolverDidNotConverge(
        f"the measure {loop.measure!r} of a loop is NaN in round {number + 1} of {loop.times}; iterate holds the "
        f"results as they stood, residuals the measure of each round",
        None,
        history[: number + 1, 0].tolist(),
    )


def _iteration(method: Method, b: Array) -> Iteration[tuple[Array, ...]]:
    if isinstance(method, Eigen):
        return (yield from eigenpairs(b, method.count, method.which, method.tolerance, method.cap))
    return ((yield from _solution(method, b)),)


def _solution(method: Solve, b: Array) -> Iteration[Array]:
    target = method.tolerance**2
    if method.rule == "minres":
        return (yield from minimal_residual(b, target, method.cap, method.ridge))
    inverse: Preconditioner | None = None
    if method.rank and b.any():
        inverse = yield from nystrom(b, method.ridge, drawn(len(b), method.rank, method.seed))
    return (yield from conjugate_gradients(b, target, method.cap, method.ridge, precondition=inverse))


def _turned(extent: Extent) -> Extent:
    return Extent(extent.n, extent.m, extent.batch)


def converted(array: Array, dtype: str, name: str) -> Array:
    """An argument in the dtype of its step. Raises FormulaTooLarge for an index that is not exact in it."""
    if array.dtype == dtype:
        return array
    if array.dtype.kind == "i":
        largest = 1 << (np.finfo(dtype).nmant + 1)
        if array.size and (array.max() > largest or array.min() < -largest):
            raise FormulaTooLarge(
                f"{name!r} holds whole numbers up to {np.abs(array).max()}; {dtype} is exact to {largest}"
            )
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype)
