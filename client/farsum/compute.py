"""One reduction from its formula to its numbers: what `Genred` and a reduced LazyTensor have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from farsum import progress
from farsum.arrays import Array, as_ranges
from farsum.futures import Submitted, mapped
from farsum.handle import Content, Handle, handle_of
from farsum.recorded import Tape, record_step, tape_of
from farsum.target import embedded, own_device, prepared, remote
from farsum.tensors import among, is_array, is_jax, is_tensor, recast
from farsum_kernels.errors import (
    CompilerMissing,
    DeviceMissing,
    DtypeError,
    EngineMissing,
    FormulaError,
    OperandError,
    ShapeError,
)
from farsum_kernels.formula.expr import Expr, node, variables
from farsum_kernels.formula.reductions import Kind, reduction_named
from farsum_kernels.job import (
    Extent,
    Options,
    Spec,
    check_arrays,
    dtype_name,
    output_dtypes,
    output_shapes,
)

_BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
_SCHEMES = ("auto", "direct_sum", "block_sum", "kahan_scheme")
_GPU = ("GPU", *(f"GPU_{d}D{where}" for d in (1, 2) for where in ("", "_device", "_host")))
_BACKENDS = ("auto", "CPU", *_GPU)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The options of pykeops that say how exactly to add up.

    dtype_acc    "auto", "float16", "float32" or "float64"
    sum_scheme   "auto", "direct_sum", "block_sum" or "kahan_scheme"

    "float64" and "kahan_scheme" compute in float64 and round once. Sums are by blocks otherwise.
    """

    dtype_acc: str = "auto"
    sum_scheme: str = "auto"

    @property
    def wide(self) -> bool:
        return self.dtype_acc == "float64" or self.sum_scheme == "kahan_scheme"

    def check_dtype(self, dtype: str) -> None:
        """Raise FormulaError for an accumulator that is narrower than the arrays."""
        if self.dtype_acc != "auto" and _BITS[self.dtype_acc] < _BITS[dtype]:
            raise FormulaError(f"dtype_acc={self.dtype_acc!r} is narrower than the arrays, which are {dtype}")


AUTO = Accuracy()


def accuracy_of(reduction: str, dtype_acc: str, use_double_acc: bool, sum_scheme: str) -> Accuracy:
    """The accuracy that these options ask for.

    Raises FormulaError for options that contradict each other or the reduction.
    """
    if dtype_acc == "auto" and sum_scheme == "auto" and not use_double_acc:
        return AUTO
    if dtype_acc not in ("auto", "float16", "float32", "float64"):
        raise FormulaError(f"dtype_acc must be 'auto', 'float16', 'float32' or 'float64', not {dtype_acc!r}")
    if sum_scheme not in _SCHEMES:
        raise FormulaError(f"sum_scheme must be one of {', '.join(_SCHEMES)}, not {sum_scheme!r}")
    if use_double_acc and dtype_acc != "auto":
        raise FormulaError("give dtype_acc or use_double_acc, not both")
    if Kind.WIDE not in reduction_named(reduction).state(1, 1):
        if use_double_acc or dtype_acc != "auto":
            raise FormulaError(f"{reduction} adds nothing up: it takes neither dtype_acc nor use_double_acc")
        if sum_scheme not in ("auto", "direct_sum"):
            raise FormulaError(f"{reduction} adds nothing up: sum_scheme={sum_scheme!r} does not fit it")
    return Accuracy("float64" if use_double_acc else dtype_acc, sum_scheme)


def check_backend(backend: Any) -> None:
    """Raise FormulaError for a word that names no backend."""
    if backend not in _BACKENDS:
        raise FormulaError(f"backend {backend!r} is not one of {', '.join(_BACKENDS)}")


def device_of(backend: Any, device_id: int = -1) -> str | None:
    """The device of this process that a call asks for: "cpu", "cuda:0", …; None where the engine at hand is to choose.

    backend     a word of pykeops; None is "auto". Where the arrays lie, and in how many passes, is not the user's choice
    device_id   which GPU of this process, -1 for the first. A server chooses among its own

    Raises FormulaError for a word that names no backend, DeviceMissing or EngineMissing for a GPU that is not there.
    """
    if backend is not None:
        check_backend(backend)
    server = remote() if backend in _GPU or backend == "CPU" or device_id >= 0 else None
    if backend in _GPU and server is not None:
        if server.kinds != {"cuda"}:
            raise DeviceMissing(
                f"backend={backend!r} needs a CUDA engine, and {server.target} computes on {' and '.join(sorted(server.kinds))}: "
                "use 'auto' or 'CPU', or start it with farsum serve --device cuda:0"
            )
        return None
    if server is not None:
        return None
    if backend == "CPU":
        return "cpu"
    if backend in _GPU:
        device = f"cuda:{max(device_id, 0)}"
        try:
            embedded(device)
        except (DeviceMissing, EngineMissing, CompilerMissing) as error:
            raise type(error)(f"backend={backend!r} needs a CUDA engine: {error}") from error
        return device
    return f"cuda:{device_id}" if device_id >= 0 and own_device().startswith("cuda") else None


@dataclass(frozen=True, slots=True)
class Call:
    """What goes with the arrays of a job and is no part of its formula.

    deadline_s   give up after so many seconds
    keep         leave the results where they are computed
    ranges       the six arrays of a block-sparse reduction, at their places
    guarded      by variable index, tensors that do not change while it is held, as what an engine hashes once; None
                 where nothing was sent yet
    device       of this process that is to compute; None leaves it to the engine at hand
    """

    deadline_s: float | None = None
    keep: bool = False
    ranges: Mapping[int, Array] = field(default_factory=dict)
    guarded: dict[int, Content | None] = field(default_factory=dict)
    device: str | None = None


PLAIN = Call()


def evaluate(spec: Spec, arrays: Mapping[int, Any], call: Call = PLAIN) -> tuple[Any, ...]:
    """The results of a job: arrays of arrays, or tensors of tensors, which their library can differentiate.

    Ranges stand beside the arrays, at their places, or in the call.
    """
    if library := among(arrays.values()):
        if library == "jax":
            from farsum.primitives import reduced
        else:
            from farsum.autograd import reduced
        return reduced(spec, arrays, call)
    return computed(spec, arrays, call)


def computed(spec: Spec, arrays: Mapping[int, Any], call: Call) -> tuple[Any, ...]:
    """The results of a job of arrays and handles."""
    if call.ranges:
        arrays = {**arrays, **call.ranges}
    options = progress.options(call.deadline_s, call.keep)
    try:
        return prepared(spec, call.device).run(within_reach(arrays, call.device), options).values
    finally:
        progress.done(options)


class Computation:
    """A reduction of a formula over the inputs 0, 1, …, lacking only their arrays.

    Raises FormulaError, UnknownOperation or DimensionError for a reduction that means nothing.
    """

    def __init__(
        self,
        root: Expr,
        weight: Expr | None,
        reduction: str,
        axis: int,
        k: int = 0,
        accuracy: Accuracy = AUTO,
    ) -> None:
        self.root = root
        self.weight = weight
        self.reduction = reduction
        self.axis = axis
        self.k = k
        self.accuracy = accuracy
        self._specs: dict[str, Spec] = {}
        self.spec("float32")  # what cannot be reduced is refused here, not at the first call

    def spec(self, dtype: str) -> Spec:
        known = self._specs.get(dtype)
        if known is None:
            known = Spec(self.root, self.reduction, self.axis, dtype, self.weight, self.k)
            self._specs[dtype] = known
        return known

    def run(
        self,
        arrays: Mapping[int, Array],
        dtype: str,
        names: Mapping[int, str] | None = None,
        ranges: Sequence[Array] | None = None,
        out: Array | None = None,
        deadline_s: float | None = None,
        keep: bool = False,
        device: str | None = None,
    ) -> Any:
        """The result, or the tuple of results, of these arrays, all of one dtype.

        names    what users call the inputs, for messages; with it the arrays are checked here
        out      receives the result and is returned
        keep     leave the results where they are computed: they come as handles
        device   of this process that is to compute; None leaves it to the engine at hand

        Raises ShapeError or DtypeError, naming the argument, before anything is sent.
        """
        are_tensors = among(arrays.values()) != ""
        given = arrays
        spec, arrays = self._asked(arrays, dtype, ranges)
        if names is not None or out is not None:
            # As they were given: JAX cannot hold what is asked to be computed in float64.
            extent = check_arrays(self.spec(dtype), {**arrays, **given}, names)
            if out is not None:
                if is_tensor(out) is not are_tensors:
                    raise OperandError(f"out is an array like those of the formula, not {type(out).__name__}")
                _check_out(out, self.spec(dtype), extent)
        if keep and out is not None:
            raise OperandError(
                "out receives a result, and keep leaves it where it is computed: give one of them"
            )
        if tape := tape_of(arrays.values()):
            values = _recorded(tape, spec, arrays, names, out is not None or keep or deadline_s is not None)
            values = tuple(recast(v, dtype) if self.is_wide(dtype) else v for v in values)
            return values[0] if len(values) == 1 else values
        if are_tensors and keep:
            raise OperandError("keep leaves a handle, which is no tensor: of tensors come tensors")
        plain = deadline_s is None and not keep and device is None
        values = evaluate(spec, arrays, PLAIN if plain else Call(deadline_s, keep, device=device))
        found = self._answered(values, dtype, keep)
        if out is not None:
            out[...] = found
            return out
        return found

    def again(self, arrays: Mapping[int, Array], dtype: str) -> Any:
        """What `run` gives without an option, where the engine remembers how it did arrays like these; else None."""
        if self.is_wide(dtype):
            return None
        found = prepared(self.spec(dtype)).again(arrays)
        if found is None:
            return None
        return found.values[0] if len(found.values) == 1 else found.values

    def submit(
        self,
        arrays: Mapping[int, Array],
        dtype: str,
        names: Mapping[int, str] | None,
        ranges: Sequence[Array] | None,
        deadline_s: float | None,
        keep: bool,
        finish: Callable[[Any], Any] = lambda found: found,
        device: str | None = None,
    ) -> Submitted:
        """The future of finish(what `run` gives). Raises for arrays that do not fit at once, and for tensors."""
        if among(arrays.values()):
            raise OperandError(
                "submit takes arrays and handles; nothing can wait for a tensor: call the reduction instead"
            )
        spec, arrays = self._asked(arrays, dtype, ranges)
        check_arrays(spec, arrays, names)
        job = prepared(spec, device).submit(within_reach(arrays, device), Options(deadline_s, keep=keep))
        return mapped(job, lambda result: finish(self._answered(result.values, dtype, keep)))

    def _asked(
        self, arrays: Mapping[int, Array], dtype: str, ranges: Sequence[Array] | None
    ) -> tuple[Spec, Mapping[int, Array]]:
        """The job, and the arrays that it takes."""
        wide = self.is_wide(dtype)
        if wide:
            arrays = {n: recast(a, "float64") for n, a in arrays.items()}
        if ranges is not None:
            arrays = {**arrays, **as_ranges(ranges)}
        return self.spec("float64" if wide else dtype), arrays

    def _answered(self, values: tuple[Any, ...], dtype: str, keep: bool) -> Any:
        """What the user gets of the results of a job."""
        if keep:
            values = tuple(v if isinstance(v, Handle) else handle_of(v) for v in values)
        if self.is_wide(dtype):
            values = tuple(recast(v, dtype) for v in values)
        return values[0] if len(values) == 1 else values

    def is_wide(self, dtype: str) -> bool:
        """Is it computed in float64 and rounded once? Raises FormulaError for an accumulator that is too narrow."""
        if self.accuracy is AUTO:
            return False
        self.accuracy.check_dtype(dtype)
        return self.accuracy.wide and dtype != "float64"


# A lazy tensor that is written anew for each call finds what it wrote before.
computation = lru_cache(maxsize=1024, typed=True)(Computation)


def counting(root: Expr, weight: Expr | None, inputs: Iterable[Expr]) -> Expr:
    """The formula, with the variables that it does not use added as nothing.

    They count for the number of rows and the batch shape. A structural zero times them is never computed.
    """
    used = variables(root) if weight is None else variables(root, weight)
    for variable in inputs:
        if variable.params[0] not in used:
            nothing = node("Mult", node("Zero", params=(1,)), node("Sum", variable))
            root = node("Add", root, nothing)
    return root


def within_reach(arrays: Mapping[int, Any], device: str | None = None) -> Mapping[int, Any]:
    """The arrays as the engine takes them: a server takes handles, the engine in this process the numbers."""
    if any([type(a) is Handle for a in arrays.values()]) and (device or remote() is None):
        return {n: a.here() if isinstance(a, Handle) else a for n, a in arrays.items()}
    return arrays


def _recorded(
    tape: Tape, spec: Spec, arrays: Mapping[int, Any], names: Mapping[int, str] | None, run: bool
) -> tuple[Any, ...]:
    """The results as arrays of the program that is being recorded."""
    if run:
        raise FormulaError("out, keep and deadline_s belong to the call of a program, not to its steps")
    extent = check_arrays(spec, arrays, names)
    made = zip(output_dtypes(spec), output_shapes(spec, extent), strict=True)
    return record_step(tape, spec, arrays, list(made))


def _check_out(out: Any, spec: Spec, extent: Extent) -> None:
    """Raise unless `out` can receive the result."""
    shapes, dtypes = output_shapes(spec, extent), output_dtypes(spec)
    if len(shapes) > 1:
        raise FormulaError(f"{spec.reduction} gives {len(shapes)} arrays; out takes one")
    check_fits(out, shapes[0], dtypes[0])


def check_fits(out: Any, shape: tuple[int, ...], dtype: str) -> None:
    """Raise unless `out` is an array, or a tensor, of this shape and dtype that can be written to."""
    if not is_array(out) or isinstance(out, Handle):
        raise OperandError(
            f"out is an array of dtype {dtype} and shape {shape}, like the result, not {type(out).__name__}"
        )
    if is_jax(out):
        raise OperandError(
            "out is written to, and an array of JAX never changes: take the result as it comes"
        )
    if dtype_name(out.dtype) != dtype:
        raise DtypeError(f"out has dtype {out.dtype}; the result has dtype {dtype}")
    if tuple(out.shape) != tuple(shape):
        raise ShapeError(f"out has shape {tuple(out.shape)}; the result has shape {tuple(shape)}")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ShapeError("out is read-only")
