"""The inverse of a lazy matrix: the object behind `LazyTensor.solve`."""

from __future__ import annotations

from typing import Any

import numpy as np

from farsum.arrays import Array, Slot, as_numbers, described
from farsum.compute import device_of
from farsum.lazy import Lazy, made_from, of_input
from farsum.reduced import Reduced
from farsum.systems import System, widened
from farsum.tensors import is_array
from farsum_kernels.errors import (
    AxisError,
    DimensionError,
    FormulaError,
    InputMissing,
    OperandError,
    ShapeError,
    SolverDidNotConverge,
)
from farsum_kernels.formula.expr import VAR, I, J, P, variable
from farsum_kernels.formula.grad import check_linear

_SOLVING = ("alpha", "eps", "max_iterations", "method", "precond")


class Inverse:
    """a = (alpha·Id + K)⁻¹ b, to be called: with the arrays of the symbolic variables, in rising order of index.

    The variable with the index of `solve`'s right-hand side takes b. Without symbolic variables the call
    takes nothing. The options of solving may be given at the call too.
    """

    def __init__(self, product: Reduced, unknown: int, b: Array | None, options: dict[str, Any]) -> None:
        self._product = product
        self._unknown = unknown
        self._b = b
        self._options = options

    def __repr__(self) -> str:
        words = "nothing" if self._b is not None else ", ".join(map(str, self._product.slots))
        return f"Inverse of {self._product.formula}\n  call it with {words} to solve"

    def __call__(
        self, *args: Any, deadline_s: float | None = None, keep: bool = False, **options: Any
    ) -> Any:
        """The solution, an array shaped like b; with `keep` a handle to it, where it was computed.

        Raises SolverDidNotConverge, with the iterate and the residuals; ShapeError for arguments that do not fit.
        """
        solving = self._options | {key: options.pop(key) for key in _SOLVING if key in options}
        if self._b is not None:
            if args:
                raise ShapeError(f"this solve has all its arrays: no input required, received {len(args)}")
            args = (self._b,)
        slots = self._product.slots
        if len(args) != len(slots):
            raise ShapeError(
                f"expected {len(slots)} inputs ({', '.join(map(str, slots))}), received {len(args)}"
            )
        place = next(n for n, slot in enumerate(slots) if slot.index == self._unknown)
        given = list(args)
        if not is_array(given[place]):
            raise OperandError(f"the right-hand side must be an array, not {described(given[place])}")
        arrays, dtype, _ = self._product._arranged(tuple(given))
        place = self._product.frame.inputs.index(slots[place])
        b = arrays[place]
        self._check_rows(arrays, b)
        batch = np.broadcast_shapes(
            *(tuple(a.shape[: -1 if h.category == P else -2]) for h, a in self._held(arrays))
        )
        arrays[place] = widened(b, batch)
        backend = options.pop("backend", None) or self._product.frame.backend
        device = device_of(backend, options.pop("device_id", -1))
        ranges = options.pop("ranges", self._product.ranges)
        if options:
            raise TypeError(f"solve takes no option {next(iter(options))!r}")
        alpha = solving.pop("alpha")
        system = System(self._product.computation, place, dtype, solving, ranges, deadline_s, keep, device)
        try:
            a = system.solved(arrays, alpha)
        except SolverDidNotConverge as error:
            if error.iterate is not None:
                error.iterate = self._numbers(error.iterate)
            raise
        return self._numbers(a)

    def _numbers(self, a: Any) -> Any:
        return as_numbers(a) if self._product.is_complex else a

    def _held(self, arrays: dict[int, Array]) -> list[tuple[Any, Array]]:
        return [(held, arrays[n]) for n, held in enumerate(self._product.frame.inputs)]

    def _check_rows(self, arrays: dict[int, Array], b: Array) -> None:
        counts = {h.category: a.shape[-2] for h, a in self._held(arrays) if h.category != P and a.ndim >= 2}
        rows, columns = (counts.get(c, b.shape[-2]) for c in (I, J))
        if b.ndim >= 2 and rows != columns:
            raise ShapeError(
                f"solve needs as many rows as columns, the same points twice: there are {rows} rows along i and "
                f"{columns} along j"
            )


def solve(lazy: Any, other: Any, var: Any, call: bool, options: dict[str, Any]) -> Any:
    """The solution, or the Inverse to call. See `LazyTensor.solve`."""
    if "out" in options:
        raise TypeError("solve takes no out: it gives a new array")
    solving = {"alpha": 1e-10, "eps": 1e-6, "max_iterations": None}
    solving |= {key: options.pop(key) for key in _SOLVING if key in options}
    deadline_s, keep = options.pop("deadline_s", None), options.pop("keep", False)
    b = _right_hand_side(other)
    category, slot = b.axis, b.frame.inputs[0]
    symbolic = isinstance(slot, Slot)
    if lazy.frame.slots and not symbolic:
        raise FormulaError(
            f"solve: {lazy.formula} has symbolic variables, so the right-hand side must be one too: write "
            f"{'Vi' if category == I else 'Vj'}(index, {b.expr.dim})"
        )
    index = slot.index if symbolic else 0
    if var is None:
        unknown = Slot(index, slot.dim, J if category == I else I)
        summed = lazy * of_input(unknown, b.is_complex)
    else:
        summed = _linear(lazy, var, index, symbolic)
    if summed.expr.dim != b.expr.dim:
        raise DimensionError(
            f"solve: the matrix times the unknown has dimension {summed.expr.dim} and the right-hand side {b.expr.dim}"
        )
    reduced = summed._reduce("Sum", 1 if category == I else 0, call=False, **options)
    made = Inverse(reduced, index, None if symbolic else b.variables[0], solving)
    return made(deadline_s=deadline_s, keep=keep) if call and not symbolic else made


def _right_hand_side(other: Any) -> Any:
    """The right-hand side as a lazy tensor of one array or symbol, along i or j."""
    if is_array(other):
        if other.ndim != 2:
            raise ShapeError(
                f"the right-hand side is an array (N, E), Vi(b), Vj(b) or a LazyTensor of one array; received an array "
                f"of shape {tuple(other.shape)}: write b[:, None] for one column"
            )
        return made_from(other, axis=I)
    if not isinstance(other, Lazy):
        raise OperandError(f"the right-hand side is an array (N, E) or a LazyTensor, not {described(other)}")
    if other.expr.op is not VAR or other.axis == P:
        raise AxisError(
            "the right-hand side has rows along i or j: Vi(b), Vj(b) or a symbolic variable of these"
        )
    return other


def _linear(lazy: Any, var: Any, index: int, symbolic: bool) -> Any:
    """The formula, if it is linear in the symbolic variable that is solved for."""
    if not isinstance(var, Lazy) or var.expr.op is not VAR or not isinstance(var.frame.inputs[0], Slot):
        raise OperandError("var is the symbolic variable to solve for, such as Vj(0, E)")
    held = var.frame.inputs[0]
    if not symbolic or held.index != index:
        raise FormulaError(
            f"with var={held} the right-hand side is the symbolic variable of the same index, such as "
            f"{'Vi' if held.category == J else 'Vj'}({held.index}, {held.dim})"
        )
    place = next((n for n, h in enumerate(lazy.frame.inputs) if h.key == held.key), None)
    if place is None:
        raise InputMissing(f"solve: {held} does not occur in {lazy.formula}")
    check_linear(lazy.expr, variable(place, held.dim, held.category))
    return lazy
