"""A reduction that is written and not yet computed: call it, as often as wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

import numpy as np

from farsum.arrays import (
    Array,
    Input,
    Slot,
    as_numbers,
    as_reals,
    checked,
    complex_name,
    described,
    is_number,
    promoted,
)
from farsum.compute import Accuracy, check_fits, computation, counting, device_of
from farsum.frame import Frame, Ranges, renumbered
from farsum.futures import Submits, Submitted
from farsum.handle import put
from farsum.lazy import printed
from farsum.tensors import NUMPY, constant, home_of, is_array, one_home, recast
from farsum_kernels.errors import FormulaError, OperandError, ShapeError
from farsum_kernels.formula.expr import Expr, P, swap_axes, variable
from farsum_kernels.job import dtype_name

if TYPE_CHECKING:
    from farsum.explain import Explanation
    from farsum.lazytensor import LazyTensor
    from farsum.selection import Selection

KEEP: Any = object()  # the option was not given: what the tensor or the object carries holds


class Last(NamedTuple):
    """Arguments of a call that went well: what they look like, and the arrays beside them."""

    looks: list[tuple[tuple[int, ...], np.dtype[Any]]]
    places: list[int]
    held: dict[int, Array]
    dtype: str


class Reduced(Submits):
    """What a reduction with call=False, or of a formula with symbolic variables, gives.

    Calling it computes: its arguments are the arrays of the symbolic variables, in rising order of index.
    Arrays that the formula stands on are read at each call, so changes made in place are seen.

    >>> from farsum.numpy import Vi, Vj
    >>> x, y = np.random.rand(5, 3), np.random.rand(7, 3)
    >>> nearest = Vi(0, 3).sqdist(Vj(1, 3)).argmin(axis=1)
    >>> nearest(x, y).shape
    (5, 1)
    """

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]
    is_reduced: ClassVar[bool] = True

    def __init__(
        self,
        frame: Frame,
        root: Expr,
        weight: Expr | None,
        reduction: str,
        axis: int,
        k: int,
        accuracy: Accuracy,
        ranges: Ranges | None,
        is_complex: bool,
        selection: Selection | None = None,
    ) -> None:
        made = computation(root, weight, reduction, axis, k, accuracy)
        if len(made.spec("float32").inputs) < len(frame.inputs):
            # A product with 0 has forgotten an array, whose rows still count.
            every = [variable(n, held.dim, held.category) for n, held in enumerate(frame.inputs)]
            made = computation(counting(root, weight, every), weight, reduction, axis, k, accuracy)
        self.computation = made
        self.frame = frame
        self.slots: tuple[Slot, ...] = ()
        self.ranges = ranges
        self.is_complex = is_complex
        self._selection = selection
        self._bound: dict[int, Array] | None = None
        self._last: Last | None = None
        dtype = frame.dtype
        if dtype is None or any(isinstance(held, Slot) for held in frame.inputs):
            frame.check_slots()
            self.slots = frame.slots
            if not self.slots:
                raise FormulaError(f"{self.formula} has no array in it: there is nothing to reduce")
        elif all(
            held.loose or (held.dtype == dtype and (held.source is None or held.home is not NUMPY))
            for held in frame.inputs
        ):
            self._bound = self._held(dtype)  # the very arrays: a later call need not look again

    # ── what it is ────────────────────────────────────────────────────────────────────────────────

    @property
    def axis(self) -> int:
        """0 when it reduces over i, 1 over j."""
        return self.computation.axis

    @property
    def reduction_op(self) -> str:
        return self.computation.reduction

    @property
    def opt_arg(self) -> int | None:
        """The K of a reduction that keeps K."""
        return self.computation.k or None

    @property
    def formula(self) -> str:
        return str(renumbered(self.computation.root, self.frame.numbers()))

    @property
    def formula2(self) -> str | None:
        """The weight, as text."""
        weight = self.computation.weight
        return None if weight is None else str(renumbered(weight, self.frame.numbers()))

    @property
    def symbolic_variables(self) -> tuple[tuple[int, int, int], ...]:
        """(index, dimension, category) of each argument of a call, in the order of the formula."""
        return tuple((s.index, s.dim, s.category) for s in self.frame.inputs if isinstance(s, Slot))

    @property
    def variables(self) -> tuple[Array, ...]:
        """The arrays that the formula stands on, in order."""
        return tuple(held.array for held in self.frame.inputs if isinstance(held, Input))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is reduced, 1 where it is not known before the call."""
        frame, dim = self.frame, self.computation.root.dim
        dim = dim // 2 if self.is_complex and self.computation.weight is None else dim
        m, n = (1 if rows is None else rows for rows in (frame.ni, frame.nj))
        return (*frame.batch, m, n, dim) if dim != 1 else (*frame.batch, m, n)

    @property
    def dtype(self) -> str | None:
        return complex_name(self.frame.dtype) if self.is_complex else self.frame.dtype

    @property
    def T(self) -> Reduced:
        """The same numbers, written with i and j exchanged."""
        made, frame = self.computation, self.frame.swapped()
        weight = None if made.weight is None else swap_axes(made.weight)
        ranges = None if self.ranges is None else (*self.ranges[3:], *self.ranges[:3])
        selection = None if self._selection is None else self._selection.swapped()
        return Reduced(frame, swap_axes(made.root), weight, made.reduction, 1 - made.axis, made.k, made.accuracy,
                       ranges, self.is_complex, selection)  # fmt: skip

    def t(self) -> Reduced:
        """The same numbers, written with i and j exchanged."""
        return self.T

    def __str__(self) -> str:
        lines = [printed(self.computation.root, self.frame, self.shape)]
        lines.append(f"    reduction: {self.reduction_op} (axis={self.axis})")
        if self.formula2:
            lines.append(f"        formula2: {self.formula2}")
        if self.opt_arg:
            lines.append(f"        opt_arg: {self.opt_arg}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        words = ", ".join(map(str, self.slots)) or "nothing"
        return f"Reduced {self.reduction_op} over {'ij'[self.axis]} of {self.formula}\n  call it with {words} to compute"

    def __getattr__(self, name: str) -> Any:
        from farsum.lazytensor import LazyTensor

        if not name.startswith("_") and callable(getattr(LazyTensor, name, None)):
            self._refuse(name)
        raise AttributeError(f"a reduced LazyTensor has no attribute {name!r}")

    def _refuse(self, operation: str = "the operation", *_: object) -> NoReturn:
        raise OperandError(
            f"{operation} on a reduced LazyTensor: {self.reduction_op} was the last step; call the object to get its "
            f"array, or write {operation} before the reduction"
        )

    def __add__(self, other: object) -> NoReturn:
        self._refuse("arithmetic")

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __add__
    __or__ = __ror__ = __pow__ = __matmul__ = __lt__ = __le__ = __gt__ = __ge__ = __add__
    __eq__ = __ne__ = __add__

    def __neg__(self) -> NoReturn:
        self._refuse("arithmetic")

    __abs__ = __neg__

    def __getitem__(self, key: object) -> NoReturn:
        self._refuse("indexing")

    def __reduce__(self) -> tuple[Any, ...]:
        made = self.computation
        return Reduced, (self.frame, made.root, made.weight, made.reduction, made.axis, made.k, made.accuracy,
                         self.ranges, self.is_complex, self._selection)  # fmt: skip

    # ── computing ─────────────────────────────────────────────────────────────────────────────────

    def __call__(
        self,
        *args: Any,
        backend: str | None = None,
        device_id: int = -1,
        ranges: Any = KEEP,
        out: Array | None = None,
        deadline_s: float | None = None,
        keep: bool = False,
    ) -> Any:
        """The result on these arrays: rows (..., M, D) and (..., N, D), parameters (..., D).

        keep   leave the result where it is computed, and give a handle to it

        Raises ShapeError or DtypeError, naming the argument, before anything is sent.
        """
        device = device_of(self.frame.backend if backend is None else backend, device_id)
        arrays, dtype, names = self._bound, self.frame.dtype, None
        plain = device is None and ranges is KEEP and out is None and deadline_s is None and not keep
        if plain and (found := self._again(args)) is not None:
            return found
        if arrays is None or args:
            arrays, dtype, names = self._as_before(args) or self._arranged(args)
        assert dtype is not None
        if out is not None and (self.is_complex or self._selection):
            return self._into(out, arrays, dtype, ranges, deadline_s, device)
        # What is put in order again after the reduction has to be here for that.
        stays = keep and self._selection is None
        found = self.computation.run(
            arrays, dtype, names, self.ranges if ranges is KEEP else ranges, out, deadline_s, stays, device
        )
        if names is not None:
            self._remember(args, arrays, dtype)
        found = found if out is not None else self._finished(found)
        return put(found) if keep and not stays else found

    def submit(
        self, *args: Any, ranges: Any = KEEP, deadline_s: float | None = None, keep: bool = False
    ) -> Submitted:
        """The future of a call. The arrays must not change until it is done; those of handles never do.

        Raises ShapeError or DtypeError at once. `asubmit` is the same, awaited.
        """
        arrays, dtype, names = self._arranged(args)
        stays = keep and self._selection is None
        finish = self._finished if stays or not keep else lambda found: put(self._finished(found))
        held = self.ranges if ranges is KEEP else ranges
        device = device_of(self.frame.backend)
        return self.computation.submit(arrays, dtype, names, held, deadline_s, stays, finish, device)

    def _finished(self, found: Any) -> Any:
        if self.is_complex:
            found = as_numbers(found)
        return self._selection.restored(found, self.computation) if self._selection else found

    def _into(
        self,
        out: Array,
        arrays: dict[int, Array],
        dtype: str,
        ranges: Any,
        deadline_s: float | None,
        device: str | None,
    ) -> Array:
        held = self.ranges if ranges is KEEP else ranges
        found = self._finished(
            self.computation.run(arrays, dtype, None, held, None, deadline_s, device=device)
        )
        check_fits(out, found.shape, dtype_name(found.dtype))
        out[...] = found
        return out

    def _held(self, dtype: str, home: Any = None) -> dict[int, Array]:
        home = home or self.frame.home or NUMPY
        return {
            n: held.of(dtype, home) for n, held in enumerate(self.frame.inputs) if isinstance(held, Input)
        }

    def _arranged(self, args: tuple[Any, ...]) -> tuple[dict[int, Array], str, dict[int, str]]:
        """The arrays by variable, their dtype, and what users call them."""
        if len(args) != len(self.slots):
            words = f" ({', '.join(map(str, self.slots))})" if self.slots else ""
            raise ShapeError(
                f"expected {len(self.slots)} input{'s' * (len(self.slots) != 1)}{words}, received {len(args)}"
            )
        given: dict[int, Array] = {}
        names: dict[int, str] = {}
        dtype, home = self.frame.dtype, self.frame.home
        for count, (slot, arg) in enumerate(zip(self.slots, args, strict=True)):
            place = self.frame.inputs.index(slot)
            names[place] = f"argument {count} ({slot})"
            given[place] = _given(arg, slot, names[place])
            if is_array(arg):
                home = one_home(home, home_of(arg), names[place])
                dtype = promoted(dtype, dtype_name(given[place].dtype), home, names[place])
        if dtype is None:
            raise OperandError("at least one argument must be an array, not a number")
        if self.is_complex and dtype in ("float16", "bfloat16"):
            dtype = "float32"
        if home is not NUMPY:  # numbers beside tensors
            given = {
                n: constant(a, dtype, home) if isinstance(a, np.ndarray) else a for n, a in given.items()
            }
        arrays = {n: recast(a, dtype) for n, a in given.items()}
        return {**self._held(dtype, home), **arrays}, dtype, names

    def _remember(self, args: tuple[Any, ...], arrays: dict[int, Array], dtype: str) -> None:
        """Arguments that were right, and what they look like, if they are computed on as they are."""
        places = [self.frame.inputs.index(slot) for slot in self.slots]
        held = {n: a for n, a in arrays.items() if n not in places}
        as_they_are = all(arrays[place] is arg for place, arg in zip(places, args, strict=True)) and all(
            isinstance(i, Input) and held[n] is i.array for n, i in enumerate(self.frame.inputs) if n in held
        )
        if as_they_are and all(type(arg) is np.ndarray for arg in args):
            self._last = Last([(arg.shape, arg.dtype) for arg in args], places, held, dtype)

    def _again(self, args: tuple[Any, ...]) -> Any:
        """The result, if the engine remembers a small job on arrays like these; it looks at them itself."""
        if self.is_complex or self._selection or self.ranges is not None:
            return None
        last, arrays, dtype = self._last, self._bound, self.frame.dtype
        if last is not None and len(args) == len(last.places):
            arrays, dtype = {**last.held, **dict(zip(last.places, args, strict=True))}, last.dtype
        elif args:
            return None
        return self.computation.again(arrays, dtype) if arrays and dtype else None

    def _as_before(self, args: tuple[Any, ...]) -> tuple[dict[int, Array], str, None] | None:
        """What `_arranged` gives, sooner, of arguments that look like those of the last call."""
        last = self._last
        if last is None or len(args) != len(last.looks):
            return None
        for arg, (shape, dtype) in zip(args, last.looks, strict=True):
            if type(arg) is not np.ndarray or arg.shape != shape or arg.dtype != dtype:
                return None
        return {**last.held, **dict(zip(last.places, args, strict=True))}, last.dtype, None

    def grad(self, v: LazyTensor, e: Any) -> Array:
        """The cotangent of the array of v, a LazyTensor of one array, from the cotangent e of the result.

        e has the shape of the result; the gradient has the shape of v's array. Minima and maxima pass
        all of e to the chosen pair.

        >>> from farsum.numpy import Vi, Vj
        >>> x_i, y_j = Vi(np.random.rand(5, 3)), Vj(np.random.rand(7, 3))
        >>> x_i.sqdist(y_j).min(axis=1, call=False).grad(x_i, np.ones((5, 1))).shape
        (5, 3)
        """
        from farsum.gradient import pulled_back

        return pulled_back(self, v, e)

    def explain(self, *args: Any) -> Explanation:
        """What a call on these arrays computes, sends and costs, without computing anything."""
        from farsum.explain import explained

        arrays, dtype, _ = self._arranged(args)
        return explained(
            self.computation, arrays, dtype, self.formula, self.ranges, device_of(self.frame.backend)
        )


def _given(arg: Any, slot: Slot, name: str) -> Array:
    """An argument of a call as the array of its variable. A parameter may be a number, a list, or one row."""
    if slot.category == P and (is_number(arg) or isinstance(arg, list)):
        arg = np.atleast_1d(np.asarray(arg, np.float64))
    if not is_array(arg):
        raise OperandError(f"{name} must be a NumPy array or a tensor, not {described(arg)}")
    array = checked(as_reals(arg), name)
    if slot.category == P:
        array = array if array.ndim else array.reshape(1)
        if array.ndim >= 2 and array.shape[-2] == 1:
            return array.reshape(*array.shape[:-2], array.shape[-1])
    return array
