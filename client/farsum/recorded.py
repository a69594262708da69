"""Arrays of a program that is being recorded: what is written with them becomes steps, and nothing is computed.

A recorded array is used as a NumPy array of two axes is, or in a LazyTensor. Arithmetic is gathered into one formula
until its value is needed; a reduction is a step of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn

import numpy as np

from farsum.handle import Content, Handle
from farsum_kernels.errors import AxisError, DtypeError, FormulaError, OperandError, ShapeError
from farsum_kernels.job import RANGES, Spec, dtype_name
from farsum_kernels.program import VALUE_DTYPES, Loop, Method, Program, Step, Value, parameter_shape

Body = list["Step | Loop"]

# The tape of the program that is being recorded here, if one is.
current: ContextVar[Tape | None] = ContextVar("current", default=None)


class Tape:
    """The steps of a program as they are written."""

    def __init__(self) -> None:
        self.bodies: list[Body] = [[]]
        self._closed: list[Body] = []
        self._inputs: list[Value] = []
        self._arrays: list[Any] = []
        self._known: dict[object, Recorded] = {}
        self._count = 0

    def name(self, stem: str) -> str:
        """A name that is not given yet."""
        self._count += 1
        return f"{stem}{self._count}"

    def input(self, array: Any, stem: str = "input", rows: bool = True) -> Recorded:
        """An array that is here, as an input. The same array is one input.

        rows   an array of one axis is one row
        """
        if isinstance(array, Recorded):
            return array
        given = array if isinstance(array, Handle) else np.asarray(array)
        if given.dtype.kind in "iub" and not isinstance(given, Handle):
            given = given.astype(np.int64)
        if dtype_name(given.dtype) not in VALUE_DTYPES:
            raise DtypeError(
                f"an array of shape {given.shape} has dtype {given.dtype}; a program records {', '.join(VALUE_DTYPES)}"
            )
        if given.ndim < 2 and rows:
            given = given.reshape(1, -1)
        key = _key(given)
        if key not in self._known:
            value = Value(self.name(stem), dtype_name(given.dtype), tuple(given.shape))
            self._inputs.append(value)
            self._arrays.append(given)
            self._known[key] = Recorded(self, value, self.bodies[0])
        return self._known[key]

    def value(self, name: str, dtype: str, shape: tuple[int, ...]) -> Recorded:
        """A value that a loop gives: a state of it, or its history."""
        return Recorded(self, Value(name, dtype, shape), self.bodies[-1])

    def step(
        self, spec: Spec, arguments: Iterable[tuple[int, str]], method: Method | None, made: Sequence[Any]
    ) -> tuple[Recorded, ...]:
        """A step with these results, given as pairs of dtype and shape."""
        values = [Value(self.name("value"), dtype, tuple(shape)) for dtype, shape in made]
        body = self.bodies[-1]
        body.append(Step(tuple(v.name for v in values), spec, tuple(arguments), method))
        return tuple(Recorded(self, value, body) for value in values)

    def open(self) -> None:
        if len(self.bodies) > 1:
            raise FormulaError(
                "a loop within a loop is not recorded: let the outer one run by itself, or unroll the inner one"
            )
        self.bodies.append([])

    def close(self) -> Body:
        self._closed.append(self.bodies.pop())
        return self._closed[-1]

    def check_open(self, body: Body) -> None:
        """Raise FormulaError for what was written in a loop that has ended."""
        if any(body is closed for closed in self._closed):
            raise FormulaError(
                "an array of the body of farsum.repeat is used after the loop: return it from the step as a state"
            )

    def program(self, outputs: Sequence[str]) -> tuple[Program, dict[int, Any]]:
        """The program that gives these values, and its arrays."""
        used = set(outputs)
        for item in self.bodies[0]:
            for step in item.body if isinstance(item, Loop) else (item,):
                used.update(name for _, name in step.arguments)
            if isinstance(item, Loop):
                used.update(name for carried in item.state for name in (carried.first, carried.next))
        kept = [n for n, value in enumerate(self._inputs) if value.name in used]
        program = Program(tuple(self._inputs[n] for n in kept), tuple(self.bodies[0]), tuple(outputs))
        return program, {place: self._arrays[n] for place, n in enumerate(kept)}


def _key(array: Any) -> object:
    """Equal for arrays that are one input: the same memory, or the same few numbers."""
    if isinstance(array, Handle):
        return "handle", id(array.content), array.shape, array.dtype
    if array.size <= 16:
        return array.tobytes(), array.shape, array.dtype
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype


def tape_of(arrays: Iterable[Any]) -> Tape | None:
    """The tape that some of the arrays are written on; None if all of them are here."""
    for array in arrays:
        if isinstance(array, Recorded):
            return array._tape
    return None


def record_step(
    tape: Tape, spec: Spec, arrays: Any, made: Sequence[Any], method: Method | None = None
) -> tuple[Recorded, ...]:
    """The results of a reduction of recorded arrays and others, by variable index."""
    arguments = []
    for place, array in arrays.items():
        if place in RANGES and isinstance(array, Recorded):
            raise FormulaError("ranges are arrays that are here when a program is recorded")
        held = tape.input(array, rows=place not in RANGES)
        arguments.append((place, held.materialised().name))
    return tape.step(spec, arguments, method, made)


def _operator(name: str) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    def straight(a: Any, b: Any) -> Any:
        if hasattr(type(b), "_apply"):
            return NotImplemented  # a LazyTensor says better what it is multiplied with
        return a._with(f"__{name}__", b)

    return straight, lambda a, b: _as_recorded(b, a)._with(f"__{name}__", a)


class Recorded(Handle):
    """An array of a program: its shape and its dtype are known, its numbers when the program runs.

    Always of two axes (rows, dim); what NumPy makes a number of, such as x.max(), has the shape (1, 1).
    """

    __slots__ = ("_body", "_lazy", "_tape", "_value")

    _tape: Tape
    _body: Body
    _value: Value | None
    _lazy: Any

    def __init__(
        self,
        tape: Tape,
        value: Value | None,
        body: Body,
        shape: tuple[int, ...] | None = None,
        lazy: Any = None,
        content: Content | None = None,
    ) -> None:
        dtype = value.dtype if value else lazy.dtype
        shape = shape if shape is not None else value.shape if value else ()
        super().__init__(content or Content(None, 0), dtype, shape)
        for name, held in (("_tape", tape), ("_value", value), ("_body", body), ("_lazy", lazy)):
            object.__setattr__(self, name, held)

    def __repr__(self) -> str:
        return f"recorded array of shape {self.shape}, dtype {self.dtype}: known when the program runs"

    @property
    def where(self) -> str:
        return "in a program that is being recorded"

    @property
    def name(self) -> str:
        """The name of its value, which there is once it is materialised."""
        value = self.materialised()._value
        assert value is not None
        return value.name

    def materialised(self) -> Recorded:
        """Itself, as the value of a step: of its formula, if it had none."""
        self._tape.check_open(self._body)
        if self._value is None:
            reduced = self._lazy._reduce("Sum", 1, call=False)
            arrays, _, _ = reduced._arranged(())
            spec = reduced.computation.spec(dtype_name(self.dtype))
            # The step belongs where the formula was written: before a loop that is being written now.
            bodies, self._tape.bodies = self._tape.bodies, [self._body]
            try:
                (made,) = record_step(self._tape, spec, arrays, [(dtype_name(self.dtype), self.shape)])
            finally:
                self._tape.bodies = bodies
            object.__setattr__(self, "_value", made._value)
        return self

    # ── what is not there ─────────────────────────────────────────────────────────────────────────

    def _refuse(self, *_: Any) -> NoReturn:
        raise FormulaError(
            f"the numbers of an array of shape {self.shape} are asked for while the program is recorded; they are known when "
            f"it runs. Write it with arithmetic, LazyTensors and farsum.repeat, or after the program"
        )

    here = here_or_fetched = get = __array__ = __float__ = __int__ = __iter__ = _refuse  # type: ignore[assignment]
    __bool__ = __getitem__ = __reduce__ = view = _refuse  # type: ignore[assignment]

    def check(self) -> None:
        """Raise FormulaError for what was written in a loop that has ended."""
        self._tape.check_open(self._body)

    # ── the same numbers ──────────────────────────────────────────────────────────────────────────

    def reshape(self, *shape: Any) -> Recorded:
        """One row as a parameter, and back."""
        wanted = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        if wanted in ((-1,), (self.size,)) and self.size == self.shape[-1]:
            value = self.materialised()._value
            return Recorded(self._tape, value, self._body, (self.size,), content=self.content)
        if wanted == self.shape:
            return self
        raise ShapeError(
            f"a recorded array of shape {self.shape} cannot have the shape {wanted}: rows stay rows"
        )

    def astype(self, dtype: Any, copy: bool = True) -> Recorded:
        """The same numbers in another dtype."""
        name = np.dtype(dtype).name
        if name == dtype_name(self.dtype):
            return self
        if name not in ("float16", "float32", "float64"):
            raise DtypeError(f"a recorded array becomes float16, float32 or float64, not {name}")
        from farsum_kernels.formula.expr import I, variable

        spec = Spec(variable(0, self.shape[-1], I), "Sum", 1, name)
        (made,) = record_step(self._tape, spec, {0: self}, [(name, self.shape)])
        return made

    # ── arithmetic ────────────────────────────────────────────────────────────────────────────────

    def lazy(self) -> Any:
        """The array as a formula of its own row."""
        if self._value is None:
            return self._lazy
        from farsum.arrays import Input
        from farsum.lazy import of_input
        from farsum_kernels.formula.expr import I, P

        one_row = self.shape[-2] == 1
        parameter_shape(self._value) if one_row else None
        numbers = self if dtype_name(self.dtype) != "int64" else self.astype("float64")
        made: Any = numbers.reshape(-1) if one_row else numbers
        return of_input(Input(made, P if one_row else I))

    def _with(self, method: str, *others: Any) -> Any:
        """A formula of this array and of others, numbers among them."""
        lifted = []
        for other in others:
            if isinstance(other, np.ndarray | Handle) and not isinstance(other, Recorded):
                other = self._tape.input(other)
            if isinstance(other, Recorded):
                other.check()
                other = other.lazy()
            elif isinstance(other, np.generic):
                other = other.item()
            lifted.append(other)
        return self._of(getattr(self.lazy(), method)(*lifted))

    def _of(self, lazy: Any) -> Any:
        if lazy is NotImplemented:
            return lazy
        rows = 1 if lazy.ni is None else lazy.ni
        return Recorded(
            self._tape, None, self._tape.bodies[-1], (*lazy.frame.batch, rows, lazy.expr.dim), lazy
        )

    __add__, __radd__ = _operator("add")
    __sub__, __rsub__ = _operator("sub")
    __mul__, __rmul__ = _operator("mul")
    __truediv__, __rtruediv__ = _operator("truediv")
    __pow__, __rpow__ = _operator("pow")

    def __neg__(self) -> Any:
        return self._with("__neg__")

    def __abs__(self) -> Any:
        return self._with("abs")

    def __array_ufunc__(self, ufunc: Any, how: str, *inputs: Any, **options: Any) -> Any:  # type: ignore[override]
        write = _UFUNCS.get(ufunc.__name__)
        if how != "__call__" or write is None or options:
            raise OperandError(
                f"numpy.{ufunc.__name__} is not recorded{' with these options' if write else ''}; recorded are "
                f"{', '.join(sorted(_UFUNCS))}"
            )
        tape = next(x._tape for x in inputs if isinstance(x, Recorded))
        held = [tape.input(x) if isinstance(x, np.ndarray | Handle) else x for x in inputs]
        return write(*held)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function is np.linalg.norm and len(args) == 1 and not options:
            return np.sqrt(np.square(args[0]).sum())
        if function.__name__ in ("sum", "max", "min", "mean", "amax", "amin"):
            return getattr(args[0], function.__name__.removeprefix("a"))(*args[1:], **options)
        raise OperandError(f"numpy.{function.__name__} is not recorded in a program")

    # ── reductions ────────────────────────────────────────────────────────────────────────────────

    def sum(self, axis: int | None = None, **options: Any) -> Recorded:
        """The sum of all numbers, of each column (0) or of each row (1); axes stay."""
        return self._reduced("Sum", axis, options)

    def max(self, axis: int | None = None, **options: Any) -> Recorded:
        """The largest of all numbers, of each column (0) or of each row (1); axes stay."""
        return self._reduced("Max", axis, options)

    def min(self, axis: int | None = None, **options: Any) -> Recorded:
        """The smallest of all numbers, of each column (0) or of each row (1); axes stay."""
        return self._reduced("Min", axis, options)

    def mean(self, axis: int | None = None, **options: Any) -> Recorded:
        """The mean of all numbers, of each column (0) or of each row (1); axes stay."""
        total = self.sum(axis, **options)
        mean: Recorded = total / (self.size // max(1, total.size))
        return mean

    def _reduced(self, reduction: str, axis: int | None, options: dict[str, Any]) -> Recorded:
        options.pop("keepdims", None)
        if any(value is not None and value is not False for value in options.values()):
            raise OperandError(f"{reduction.lower()} takes an axis in a program, not {sorted(options)}")
        if axis not in (None, 0, 1, -1, -2):
            raise AxisError(f"axis {axis!r} of a recorded array is none of 0, 1 and None")
        self.check()
        lazy = self.lazy()
        if axis not in (0, -2):
            if lazy.expr.dim > 1:
                lazy = _with_nan(lazy._apply(reduction), (lazy != lazy).sum(-1), reduction)
            if axis is not None:
                return self._of(lazy)  # type: ignore[no-any-return]
        if lazy.ni is None:  # one row
            return self._of(lazy)  # type: ignore[no-any-return]
        found = lazy._reduce(reduction, 0)
        if reduction == "Sum":
            return found  # type: ignore[no-any-return]
        missing = (lazy != lazy)._reduce("Sum", 0)
        return self._of(_with_nan(found.lazy(), missing.lazy(), reduction))  # type: ignore[no-any-return]


def _with_nan(extremum: Any, missing: Any, reduction: str) -> Any:
    """An extremum that is NaN where some number was, as in NumPy: the reductions of formulas skip them."""
    return extremum if reduction == "Sum" else (0.5 - missing).ifelse(extremum, float("nan"))


def _maximum(a: Any, b: Any) -> Any:
    return _or_nan(a, _as_recorded(a, b)._with("__sub__", b)._with("ifelse", a, b))


def _as_recorded(a: Any, b: Any) -> Recorded:
    """a as a recorded array, which b may be alone."""
    tape = a._tape if isinstance(a, Recorded) else b._tape
    return a if isinstance(a, Recorded) else tape.input(np.full((1, 1), a, b.dtype))


def _minimum(a: Any, b: Any) -> Any:
    return _or_nan(a, _as_recorded(a, b)._with("__sub__", b)._with("ifelse", b, a))


def _or_nan(a: Any, chosen: Recorded) -> Any:
    """What was chosen, NaN where a is; where b is, it was chosen."""
    if not isinstance(a, Recorded):
        return chosen
    return (0.5 - a._with("__ne__", a))._with("ifelse", chosen, a)


def _binary(method: str) -> Callable[[Any, Any], Any]:
    return lambda a, b: _as_recorded(a, b)._with(f"__{method}__", b)


def _unary(method: str) -> Callable[[Any], Any]:
    return lambda a: a._with(method)


_UFUNCS: dict[str, Callable[..., Any]] = {
    "absolute": _unary("abs"), "arccos": _unary("acos"), "arcsin": _unary("asin"), "arctan": _unary("atan"),
    "cos": _unary("cos"), "exp": _unary("exp"), "fabs": _unary("abs"), "log": _unary("log"),
    "negative": _unary("__neg__"), "sign": _unary("sign"), "sin": _unary("sin"), "sqrt": _unary("sqrt"),
    "square": _unary("square"), "add": _binary("add"), "divide": _binary("truediv"), "multiply": _binary("mul"),
    "power": _binary("pow"), "subtract": _binary("sub"), "maximum": _maximum, "minimum": _minimum,
}  # fmt: skip
