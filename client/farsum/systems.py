"""Systems and eigenvalue problems of a sum as programs of one step: solved where the arrays are, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from farsum import progress
from farsum.arrays import Array, as_ranges, is_number
from farsum.compute import Computation, within_reach
from farsum.handle import Handle, handle_of
from farsum.recorded import Tape, record_step, tape_of
from farsum.target import prepared
from farsum.tensors import among, is_tensor
from farsum_kernels.errors import FormulaError, OperandError
from farsum_kernels.formula.expr import P
from farsum_kernels.iterations.conjugate import LEAST_CAP
from farsum_kernels.job import RANGE_NAMES, RANGES, Spec, dtype_name
from farsum_kernels.program import RULES, Eigen, Method, Program, Solve, Step, Value


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """(alpha·Id + A)·a = b, where A·p is a sum that is linear in one of its arrays, p.

    computation  the sum
    unknown      the number of that array: it takes b, and a is what stands there in the solution
    dtype        of all arrays
    options      of `solve_by`, without alpha
    ranges       of the sum
    deadline_s   for all products together
    keep         leave the solution where it is computed
    device       of this process that is to compute; None leaves it to the engine at hand
    """

    computation: Computation
    unknown: int
    dtype: str
    options: Mapping[str, Any]
    ranges: Sequence[Array] | None = None
    deadline_s: float | None = None
    keep: bool = False
    device: str | None = None

    def solved(self, arrays: Mapping[int, Any], alpha: Any) -> Any:
        """a, of the shape and dtype of b, which has every batch axis. Tensors are differentiated through.

        Raises SolverDidNotConverge, with the iterate and the residuals, and DeadlineExceeded.
        """
        if among(arrays.values()):
            from farsum.implicit import solved

            return solved(self, arrays, alpha)
        rule = solve_by(arrays[self.unknown], self.unknown, alpha, **self.options)
        call = self.ranges, self.deadline_s, self.keep, self.device
        (a,) = found(self.computation, arrays, self.dtype, rule, *call)
        return a


def solve_by(
    b: Array,
    unknown: int,
    alpha: Any = 1e-10,
    eps: Any = 1e-6,
    max_iterations: Any = None,
    method: str = "cg",
    precond: int = 0,
    seed: int = 0,
) -> Solve:
    """How to solve a system with the right-hand side b; the options are those of `KernelSolve`.

    Raises FormulaError or OperandError for an option that means nothing.
    """
    if method not in RULES:
        raise FormulaError(f"method is 'cg' or 'minres', not {method!r:.40}")
    tolerance = float(np.sqrt(b.size)) * positive(eps)
    ridge, cap = ridge_of(alpha), cap_of(b, max_iterations)
    return Solve(unknown, method, ridge, tolerance, cap, rank_of(precond, ridge, b), seed)


def ridge_of(alpha: Any) -> float:
    """What is added to the diagonal; 0 for None and False. Raises OperandError for no real number."""
    if isinstance(alpha, np.ndarray) and alpha.ndim == 0:
        alpha = alpha[()]
    if alpha is None or alpha is False:
        return 0.0
    if not is_number(alpha):
        raise OperandError(f"alpha is a real number, or None for no ridge term, not {alpha!r:.80}")
    return float(alpha)


def rank_of(precond: Any, ridge: float, b: Array) -> int:
    """How many points a Nyström preconditioner uses; True is for the root of the number of points."""
    if precond is True:
        precond = min(1024, int(np.sqrt(b.shape[-2])))
    if isinstance(precond, bool) or precond is None:
        return 0
    if not isinstance(precond, int | np.integer) or precond < 0:
        raise FormulaError(f"precond is a number of points, True or False, not {precond!r:.80}")
    if precond and not ridge > 0:
        raise FormulaError(f"precond needs alpha > 0, not {ridge!r}: it divides by alpha")
    return int(precond)


def positive(eps: Any) -> float:
    if not is_number(eps) or not 0 < eps < np.inf:
        raise FormulaError(f"eps is a number above 0, not {eps!r}: a residual of exactly 0 is never reached")
    return float(eps)


def cap_of(b: Array, max_iterations: Any) -> int:
    """Products at most: what was asked for, or what a system that can be solved at all may take."""
    if max_iterations is None:
        return max(LEAST_CAP, 10 * b.size)
    whole = isinstance(max_iterations, int | np.integer) and not isinstance(max_iterations, bool)
    if not whole or max_iterations < 0:
        raise FormulaError(f"max_iterations is a count from 0, or None, not {max_iterations!r}")
    return int(max_iterations)


def found(
    computation: Computation,
    arrays: Mapping[int, Array],
    dtype: str,
    method: Method,
    ranges: Sequence[Array] | None = None,
    deadline_s: float | None = None,
    keep: bool = False,
    device: str | None = None,
) -> tuple[Any, ...]:
    """What a method finds for the sum of these arrays; that of the unknown is the right-hand side, or the start.

    keep   leave it where it is computed: it comes as handles

    Raises SolverDidNotConverge, with the iterate and the residuals, and DeadlineExceeded.
    """
    spec = computation.spec("float64" if computation.is_wide(dtype) else dtype)
    held = {n: arrays[n] for n in spec.inputs}
    for n, variable in spec.inputs.items():
        if variable.params[2] == P:
            shape = arrays[n].shape
            held[n] = arrays[n].reshape(*shape[:-1], 1, shape[-1])
    if tape := tape_of(arrays.values()):
        return _recorded(tape, spec, held | as_ranges(ranges), method)
    names: dict[int, str] = {}  # by identity: an array that is given twice is one input
    inputs: list[Value] = []
    given: dict[int, Array] = {}
    arguments = []
    for n, array in [*held.items(), *as_ranges(ranges).items()]:
        key = id(arrays.get(n, array))
        if key not in names:
            names[key] = RANGE_NAMES[RANGES.index(n)] if n in RANGES else f"v{n}"
            given[len(inputs)] = array
            inputs.append(Value(names[key], dtype_name(array.dtype), array.shape))
        arguments.append((n, names[key]))
    outputs = ("solution",) if isinstance(method, Solve) else ("values", "vectors")
    step = Step(outputs, spec, tuple(arguments), method)
    options = progress.options(deadline_s, keep)
    try:
        job = prepared(Program(tuple(inputs), (step,), outputs), device)
        values = job.run(within_reach(given, device), options).values
    finally:
        progress.done(options)
    return tuple(v if isinstance(v, Handle) else handle_of(v) for v in values) if keep else values


def _recorded(tape: Tape, spec: Spec, arrays: Mapping[int, Any], method: Method) -> tuple[Any, ...]:
    """The same as a step of the program that is being recorded."""
    b = arrays[method.unknown]
    made = [(dtype_name(b.dtype), tuple(b.shape))]
    if isinstance(method, Eigen):
        made = [(made[0][0], (method.count, 1)), (made[0][0], (b.shape[-2], method.count))]
    return record_step(tape, spec, arrays, made, method)


def widened(b: Any, batch: tuple[int, ...]) -> Any:
    """A right-hand side with these batch axes, C-ordered."""
    shape = (*batch, *b.shape[-2:])
    if is_tensor(b):
        return b.expand(shape)
    return b if b.shape == shape and not isinstance(b, np.ndarray) else _spread(b, shape)


def _spread(b: Any, shape: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(b), shape))
