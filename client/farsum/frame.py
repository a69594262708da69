"""The inputs that formulas stand on, and how two formulas come to stand on the same ones."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from farsum.arrays import Array, Held, Slot, promoted
from farsum.tensors import one_home
from farsum_kernels.errors import FormulaError, InputMissing, ShapeError
from farsum_kernels.formula.expr import Expr, I, J, substitute, variable

Ranges = tuple[Array, ...]


class Frame:
    """An ordered list of inputs with the sizes they have in common. Variable n of a formula is input n.

    ni, nj     rows of x_i and of y_j; None while no array says so
    batch      the broadcast batch shape
    dtype      the promoted dtype of the arrays; None without arrays
    home       NUMPY, or the device of the tensors; None without arrays
    ranges     the six arrays of a block-sparse reduction that every reduction is to use
    backend    the backend that every reduction is to use

    A value: it is shared between formulas and never changed.
    """

    __slots__ = ("backend", "batch", "dtype", "home", "inputs", "ni", "nj", "ranges")

    def __init__(
        self,
        inputs: tuple[Held, ...] = (),
        ni: int | None = None,
        nj: int | None = None,
        batch: tuple[int, ...] = (),
        dtype: str | None = None,
        ranges: Ranges | None = None,
        backend: str | None = None,
        home: Any = None,
    ) -> None:
        self.home = home
        self.inputs = inputs
        self.ni = ni
        self.nj = nj
        self.batch = batch
        self.dtype = dtype
        self.ranges = ranges
        self.backend = backend

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The places that are filled at a call, in rising order of index."""
        return tuple(sorted((h for h in self.inputs if isinstance(h, Slot)), key=lambda slot: slot.index))

    def numbers(self) -> tuple[int, ...]:
        """The number that users see for each input: slots have their own, arrays follow after the largest."""
        free = 1 + max((slot.index for slot in self.slots), default=-1)
        numbers = []
        for held in self.inputs:
            numbers.append(held.index if isinstance(held, Slot) else free)
            free += not isinstance(held, Slot)
        return tuple(numbers)

    def check_slots(self) -> None:
        """Raise InputMissing unless the symbolic variables are numbered from 0 without a gap."""
        indices = [slot.index for slot in self.slots]
        if indices != list(range(len(indices))):
            absent = sorted(set(range(max(indices))) - set(indices))
            raise InputMissing(
                f"the symbolic variables are numbered {indices}: number {', '.join(map(str, absent))} is missing; "
                f"count them from 0 without gaps"
            )

    def swapped(self) -> Frame:
        """The same inputs with the roles of i and j exchanged."""
        ranges = None if self.ranges is None else (*self.ranges[3:], *self.ranges[:3])
        inputs = tuple(held.swapped() for held in self.inputs)
        return Frame(inputs, self.nj, self.ni, self.batch, self.dtype, ranges, self.backend, self.home)

    def but(self, **changes: Any) -> Frame:
        """The same with some fields changed."""
        return Frame(**({name: getattr(self, name) for name in self.__slots__} | changes))


EMPTY = Frame()


def frame_of(held: Held) -> Frame:
    """The frame of one input."""
    rows, category = held.rows, held.category
    return Frame(
        (held,),
        rows if category == I else None,
        rows if category == J else None,
        held.batch,
        held.dtype,
        home=held.home,
    )


def join(a: Frame, b: Frame, op: str) -> tuple[Frame, tuple[int, ...] | None]:
    """A frame with the inputs of both, and the places of the second's in it; None if they kept theirs.

    Raises ShapeError or FormulaError, naming the operation.
    """
    if a is b or (not b.inputs and b.ranges is None and b.backend is None):
        return a, None
    if not a.inputs and a.ranges is None and a.backend is None:
        return b, None
    inputs, places = _merged(a.inputs, b.inputs)
    home = a.home if a.home is b.home else one_home(a.home, b.home, op)
    return (
        Frame(
            inputs,
            _same_rows(a.ni, b.ni, "i", op),
            _same_rows(a.nj, b.nj, "j", op),
            a.batch if a.batch == b.batch else _broadcast(a.batch, b.batch, op),
            promoted(a.dtype, b.dtype, home, op),
            _same_ranges(a.ranges, b.ranges, op),
            _same_backend(a.backend, b.backend, op),
            home,
        ),
        places,
    )


def _merged(ours: tuple[Held, ...], theirs: tuple[Held, ...]) -> tuple[tuple[Held, ...], tuple[int, ...]]:
    """The union of two input lists, and the places of the second in it."""
    if ours is theirs:
        return ours, tuple(range(len(ours)))
    known = {held.key: n for n, held in enumerate(ours)}
    union, places = list(ours), []
    for held in theirs:
        place = known.setdefault(held.key, len(union))
        if place == len(union):
            union.append(held)
        elif isinstance(held, Slot) and held != union[place]:
            raise FormulaError(
                f"the symbolic variable {held.index} is used as {held} and as {union[place]}: give each its own index"
            )
        places.append(place)
    return tuple(union), tuple(places)


def _same_rows(a: int | None, b: int | None, axis: str, op: str) -> int | None:
    if a is not None and b is not None and a != b:
        raise ShapeError(f"{op} combines {a} rows with {b} rows along {axis}")
    return a if b is None else b


def _broadcast(a: tuple[int, ...], b: tuple[int, ...], op: str) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise ShapeError(f"{op} combines batch dimensions {a} with {b}, which do not broadcast") from None


def _same_ranges(a: Ranges | None, b: Ranges | None, op: str) -> Ranges | None:
    if a is None or b is None or a is b:
        return a if b is None else b
    if not all(np.array_equal(p, q) for p, q in zip(a, b, strict=True)):
        raise FormulaError(f"the operands of {op} have two different ranges; set them on the result instead")
    return a


def _same_backend(a: str | None, b: str | None, op: str) -> str | None:
    if a is not None and b is not None and a != b:
        raise FormulaError(f"the operands of {op} have the backends {a!r} and {b!r}; they need the same")
    return a if b is None else b


@lru_cache(maxsize=4096)
def renumbered(expr: Expr, places: tuple[int, ...]) -> Expr:
    """The formula with variable n renamed to places[n]."""
    if places == tuple(range(len(places))):
        return expr
    return substitute(expr, lambda v: variable(places[v.params[0]], *v.params[1:]))
