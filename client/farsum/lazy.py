"""What every lazy tensor is: a formula over the inputs of a frame, with a shape and without values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NoReturn, Self

import numpy as np

from farsum.arrays import (
    Array,
    Held,
    Input,
    Slot,
    as_ranges,
    complex_name,
    described,
    is_complex,
    loose,
    read,
    read_array,
)
from farsum.compute import check_backend
from farsum.frame import EMPTY, Frame, Ranges, frame_of, join, renumbered
from farsum.tensors import is_tensor
from farsum_kernels.errors import (
    AxisError,
    DimensionError,
    DtypeError,
    FormulaError,
    OperandError,
    ShapeError,
)
from farsum_kernels.formula.expr import CONST, VAR, Expr, P, constant, node, swap_axes, variable

_SHOWN = 200  # characters of a formula in a repr


class Lazy:
    """A symbolic tensor of shape (*batch, M, N, D). Never made itself: see LazyTensor and ComplexLazyTensor."""

    __array_ufunc__ = None  # numpy then leaves `array + lazytensor` to us
    __slots__ = ("expr", "frame")
    __hash__ = None  # type: ignore[assignment]

    is_complex: ClassVar[bool]
    kinds: ClassVar[dict[bool, type[Lazy]]] = {}

    expr: Expr
    frame: Frame

    def __init_subclass__(cls) -> None:
        if "is_complex" in cls.__dict__:
            Lazy.kinds[cls.is_complex] = cls

    # ── shape ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def _shape(self) -> tuple[int, ...]:
        frame = self.frame
        m, n = (1 if rows is None else rows for rows in (frame.ni, frame.nj))
        return (*frame.batch, m, n, self.expr.dim)

    @property
    def shape(self) -> tuple[int, ...]:
        """(*batch, M, N, D), without the last axis when D is 1. D counts complex numbers where they are complex."""
        *rows, dim = self._shape
        dim = self._numbers(dim)
        return (*rows, dim) if dim != 1 else tuple(rows)

    def _numbers(self, reals: int) -> int:
        """How many entries so many reals are."""
        return reals // 2 if self.is_complex else reals

    @property
    def ndim(self) -> int:
        """The number of axes of `shape`."""
        return len(self.shape)

    def dim(self) -> int:
        """The number of axes, the vector axis always counted."""
        return len(self.frame.batch) + 3

    @property
    def batchdims(self) -> tuple[int, ...] | None:
        """The batch shape, None without one."""
        return self.frame.batch or None

    @property
    def nbatchdims(self) -> int:
        return len(self.frame.batch)

    @property
    def ni(self) -> int | None:
        """M, the rows of x_i; None when no array says so."""
        return self.frame.ni

    @property
    def nj(self) -> int | None:
        """N, the rows of y_j; None when no array says so."""
        return self.frame.nj

    @property
    def dtype(self) -> str | None:
        """The name of the dtype; None while numbers and symbols alone are in it."""
        return complex_name(self.frame.dtype) if self.is_complex else self.frame.dtype

    # ── what it stands on ─────────────────────────────────────────────────────────────────────────

    @property
    def axis(self) -> int | None:
        """0 for a variable x_i, 1 for y_j, 2 for a parameter or a constant, None for a formula."""
        if self.expr.op is VAR:
            return int(self.expr.params[2])
        return P if self.expr.op is CONST else None

    @property
    def inputs(self) -> tuple[Held, ...]:
        return self.frame.inputs

    @property
    def variables(self) -> tuple[Array, ...]:
        """The arrays that the formula stands on, in order."""
        return tuple(held.array for held in self.frame.inputs if isinstance(held, Input))

    @property
    def symbolic_variables(self) -> tuple[tuple[int, int, int], ...]:
        """(index, dimension, category) of each variable that is given at a call, in the order of the formula."""
        return tuple((s.index, s.dim, s.category) for s in self.frame.inputs if isinstance(s, Slot))

    @property
    def ind(self) -> int:
        """The index of a symbolic variable."""
        held = self.frame.inputs[0] if self.expr.op is VAR else None
        if not isinstance(held, Slot):
            raise AttributeError(f"{self.expr} is no symbolic variable: it has no index")
        return held.index

    @property
    def formula(self) -> str:
        """The formula as text, its variables numbered as in a call."""
        return str(renumbered(self.expr, self.frame.numbers()))

    @property
    def formula2(self) -> None:
        """The weight: only what is reduced has one."""

    @property
    def ranges(self) -> Ranges | None:
        """Six arrays of ints for block-sparse reductions; kept by what is made from this."""
        return self.frame.ranges

    @ranges.setter
    def ranges(self, ranges: Sequence[Array] | None) -> None:
        self.frame = self.frame.but(ranges=tuple(as_ranges(ranges).values()) or None)

    @property
    def backend(self) -> str | None:
        """The backend that reductions are to use; kept by what is made from this."""
        return self.frame.backend

    @backend.setter
    def backend(self, backend: str | None) -> None:
        if backend is not None:
            check_backend(backend)
        self.frame = self.frame.but(backend=backend)

    def __len__(self) -> int:
        raise TypeError(f"a LazyTensor has no length; its shape is {self.shape}")

    def __bool__(self) -> bool:
        raise TypeError(
            "the truth value of a LazyTensor is not defined; chained comparisons, `and` and `or` do not work on it"
        )

    def __iter__(self) -> Iterator[Self]:
        """The components of the vector axis."""
        return (self[k] for k in range(self._numbers(self.expr.dim)))  # type: ignore[index]

    def __call__(self, *args: Any, **options: Any) -> NoReturn:
        raise FormulaError(
            f"this {type(self).__name__} of shape {self.shape} is not reduced: reduce it first, "
            f"e.g. .sum(axis={self.nbatchdims + 1}, call=False), and call what that gives"
        )

    def __repr__(self) -> str:
        text = self.formula
        text = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
        i, j = self.nbatchdims, self.nbatchdims + 1
        return (
            f"{type(self).__name__} of shape {self.shape}, dtype {self.dtype}: {text}\n"
            f"  nothing is computed yet; .sum(axis={j}) reduces over j, .sum(axis={i}) over i, "
            f".dense() gives all of it, .explain() what that costs"
        )

    def __str__(self) -> str:
        return printed(self.expr, self.frame, self.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.is_complex, self.expr, self.frame)

    # ── building formulas ─────────────────────────────────────────────────────────────────────────

    def _apply(
        self,
        op: str,
        *others: Any,
        params: tuple[Any, ...] = (),
        flipped: bool = False,
        result: bool | None = None,
    ) -> Any:
        """The lazy tensor op(self, *others).

        flipped   op(other, self): the inputs of self come first in the frame all the same
        result    whether it is complex; None for as self and all others are
        """
        frame, exprs = (
            self._joined(op, *others, mixed=result is not None) if others else (self.frame, [self.expr])
        )
        if flipped:
            exprs.reverse()
        try:
            expr = node(op, *exprs, params=params) if params else _written(op, *exprs)
        except DimensionError as error:
            raise type(error)(f"{error} ({self._shapes(others)})") from None
        return make(expr, frame, self.is_complex if result is None else result)

    def _joined(self, op: str, *others: Any, mixed: bool = False) -> tuple[Frame, list[Expr]]:
        """The formulas of self and others over one frame."""
        frame, exprs = self.frame, [self.expr]
        lifted = []
        for other in others:
            other = lift(other, op)
            lifted.append(other)
            if other.is_complex is not self.is_complex and not mixed:
                raise FormulaError(
                    f"{op} is not written for a complex operand; take its .real, .imag, .abs() or .angle() "
                    f"({self._shapes(lifted)})"
                )
            try:
                frame, places = join(frame, other.frame, op)
            except (ShapeError, FormulaError) as error:
                raise type(error)(f"{error} ({self._shapes(lifted)})") from None
            exprs.append(other.expr if places is None else renumbered(other.expr, places))
        return frame, exprs

    def _shapes(self, others: Sequence[Any]) -> str:
        shapes = (str(tuple(o.shape) if hasattr(o, "shape") else np.shape(o)) for o in (self, *others))
        return f"operands of shape {' and '.join(shapes)}"

    def _swapped(self) -> Self:
        """The same tensor with i and j exchanged."""
        return make(_flipped(self.expr), self.frame.swapped(), self.is_complex)

    def _axis_of(self, axis: Any, dim: Any = None) -> int:
        """0 for the i axis, 1 for the j axis, 2 for the vector axis."""
        if axis is not None and dim is not None and axis != dim:
            raise AxisError(f"axis={axis} and dim={dim} name two axes; give one of them")
        chosen, nb = axis if axis is not None else dim, len(self.frame.batch)
        if type(chosen) is not int and (isinstance(chosen, bool) or not isinstance(chosen, int | np.integer)):
            raise OperandError(f"an axis is an int, not {chosen!r}: {self._legal_axes()}")
        which = int(chosen) + 3 if chosen < 0 else int(chosen) - nb
        if which not in (0, 1, 2):
            raise AxisError(
                f"axis {chosen} of a LazyTensor of shape {self.shape} cannot be reduced; legal: {self._legal_axes()}"
            )
        return which

    def _legal_axes(self) -> str:
        nb = len(self.frame.batch)
        return f"axis={nb} (over i), axis={nb + 1} (over j)"


def printed(expr: Expr, frame: Frame, shape: tuple[int, ...]) -> str:
    """A lazy tensor as `print` shows it."""
    lines = ["KeOps LazyTensor", f"    formula: {renumbered(expr, frame.numbers())}"]
    if symbols := [str(held) for held in frame.inputs if isinstance(held, Slot)]:
        lines.append(f"    symbolic variables: {', '.join(symbols)}")
    return "\n".join([*lines, f"    shape: {shape}"])


def make(expr: Expr, frame: Frame, is_complex: bool = False) -> Any:
    """The lazy tensor of a formula over a frame."""
    if is_complex and frame.dtype in ("float16", "bfloat16"):
        frame = frame.but(dtype="float32")  # there are no complex numbers of halves
    made = object.__new__(Lazy.kinds[is_complex])
    made.expr = expr
    made.frame = frame
    return made


def _rebuilt(is_complex: bool, expr: Expr, frame: Frame) -> Any:
    import farsum.lazytensor  # noqa: F401 - in a process of its own, nobody has asked for the classes yet

    return make(expr, frame, is_complex)


# A formula is written again and again, in a loop for instance: its nodes are found faster here than among all nodes.
_written = lru_cache(maxsize=4096)(node)
_flipped = lru_cache(maxsize=4096)(swap_axes)


@lru_cache(maxsize=1024)
def _variable(dim: int, category: int) -> Expr:
    return variable(0, dim, category)


def of_input(held: Held, is_complex: bool = False) -> Any:
    """The lazy tensor of one input."""
    return make(_variable(held.dim, held.category), frame_of(held), is_complex)


def made_from(x: Any, axis: int | None = None, complex_symbol: bool = False) -> Any:
    """The lazy tensor of an array, a number, a list of numbers or a symbolic variable."""
    if type(x) is np.ndarray and not complex_symbol:
        return of_input(read_array(x, axis), x.dtype.kind == "c")
    if is_tensor(x) and not complex_symbol:
        return of_input(read_array(x, axis), is_complex(x))
    if type(x) is int or isinstance(x, np.integer):
        if axis is not None and axis not in (0, 1, 2):
            raise AxisError(f"axis={axis!r} is none of 0 (i), 1 (j)")
        return make(constant(int(x)), EMPTY)
    held = read(x, axis)
    complex_ = is_complex(x) or (complex_symbol and isinstance(held, Slot))
    if complex_symbol and not complex_:
        raise DtypeError(
            "is_complex=True goes with a symbolic variable; an array says itself that it is complex"
        )
    if complex_ and held.dim % 2:
        raise DimensionError(
            f"a complex symbolic variable counts reals: its dimension {held.dim} must be even"
        )
    return of_input(held, complex_)


def lift(x: Any, op: str) -> Any:
    """An operand as a lazy tensor.

    Raises OperandError, ShapeError or DtypeError, naming the operation, for what cannot become one.
    """
    if isinstance(x, Lazy):
        return x
    if type(x) is float:
        return of_input(loose(x))
    if getattr(type(x), "is_reduced", False):
        raise FormulaError(
            f"an operand of {op} is reduced already: call it to get its array, or reduce after {op}"
        )
    try:
        if type(x) is tuple:
            raise OperandError("a tuple of numbers; write a list for a parameter vector")
        return made_from(x)
    except (ShapeError, DtypeError, OperandError) as error:
        raise type(error)(f"an operand of {op} is no LazyTensor and cannot become one: {error}") from None


def need(x: Any, method: str) -> Any:
    """x, if it is a lazy tensor."""
    if not isinstance(x, Lazy):
        if getattr(type(x), "is_reduced", False):
            return lift(x, method)
        raise OperandError(
            f"{method} takes a LazyTensor, not {described(x)}; make one with LazyTensor(…), Vi or Vj"
        )
    return x
