"""What is asked and what is answered, and the one seam that every engine has.

Imports nothing but the standard library and the formula language: an array here is anything with
`shape` and `dtype`. The checks of this module run twice, on the client with the user's own words
before anything is sent, and on the server, which trusts nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from farsum_kernels.errors import (
    AxisError,
    DimensionError,
    DtypeError,
    FormulaError,
    FormulaTooLarge,
    ShapeError,
)
from farsum_kernels.formula.expr import Expr, I, J, P, check_size, swap_axes, variables
from farsum_kernels.formula.reductions import Kind, Reduction, reduction_named

if TYPE_CHECKING:
    from farsum_kernels.program import Program

# The dtypes of a job, and what its arithmetic is done in. bfloat16 travels and is held as uint16.
COMPUTED_IN = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}
DTYPES = tuple(COMPUTED_IN)
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "int64": 8}

# The six arrays of a block-sparse job stand beside its inputs, at the places after the last variable:
# ranges_i, slices_i, redranges_j for a reduction over j, ranges_j, slices_j, redranges_i for one over i.
RANGES = tuple(range(1024, 1030))
RANGE_NAMES = ("ranges_i", "slices_i", "redranges_j", "ranges_j", "slices_j", "redranges_i")
MAX_K = 4096
MAX_PARTS = 16
MAX_CHECKED = 256
AXIS_NAMES = ("i", "j")


@dataclass(frozen=True, slots=True)
class Options:
    """How to run a job; nothing here changes its value.

    deadline_s   give up after so many seconds, None for never
    progress     called with the finished share, 0 to 1, from the thread that waits
    keep         leave the results where they are computed. A server gives handles then; what is computed in
                 this process is here anyway
    watch        called with the results of a program as they stand, NaN where they are not there yet, from the
                 thread that waits, every watch_s seconds at most
    """

    deadline_s: float | None = None
    progress: Callable[[float], None] | None = None
    keep: bool = False
    watch: Callable[[tuple[Any, ...]], object] | None = None
    watch_s: float = 1.0


@dataclass(frozen=True)
class Part:
    """One reduction of one formula.

    reduction   a name of formula/reductions.py
    weight      a second formula, for the reductions that take one
    k           how many to keep, for the reductions that keep K
    """

    formula: Expr
    reduction: str
    weight: Expr | None = None
    k: int = 0

    def __post_init__(self) -> None:
        rule, name = reduction_named(self.reduction), self.reduction
        if rule.scalar and self.formula.dim != 1:
            raise DimensionError(
                f"{name} reduces scalars; the formula {self.formula} has dimension {self.formula.dim}"
            )
        if self.weight is None and rule.weight == "required":
            raise FormulaError(f"{name} needs a weight formula (formula2)")
        if self.weight is not None and rule.weight == "none":
            raise FormulaError(f"{name} takes no weight formula (formula2)")
        if rule.listed and not (type(self.k) is int and 1 <= self.k <= MAX_K):
            raise FormulaError(f"{name} needs K, an int from 1 to {MAX_K}, not {self.k!r}")
        if not rule.listed and self.k:
            raise FormulaError(f"{name} takes no K; K={self.k} was given")
        if rule.listed and self.formula.dim * self.k > 1 << 16:
            raise FormulaTooLarge(f"{name} would keep {self.formula.dim} × {self.k} values per row")

    @property
    def roots(self) -> tuple[Expr, ...]:
        return (self.formula,) if self.weight is None else (self.formula, self.weight)

    @property
    def rule(self) -> Reduction:
        return reduction_named(self.reduction)

    @cached_property
    def digest(self) -> bytes:
        text = f"{self.reduction}|{self.k}|".encode()
        return hashlib.blake2b(text + b"|".join(r.digest for r in self.roots), digest_size=16).digest()

    def swapped(self) -> Part:
        """The same reduction with the roles of i and j exchanged."""
        weight = None if self.weight is None else swap_axes(self.weight)
        return Part(swap_axes(self.formula), self.reduction, weight, self.k)

    def output_tail(self) -> tuple[int, ...]:
        """The trailing shape of each result, after batch and row axes."""
        dim = self.rule.width(self.formula.dim, self.weight.dim if self.weight else 0)
        if not self.rule.listed:
            return (dim,)
        return (self.k,) if dim == 1 else (self.k, dim)


@dataclass(frozen=True)
class Spec:
    """A job but for its arrays: one reduction, or several over the same pairs, which take one pass.

    formula, reduction, weight, k   the first reduction, see `Part`
    axis    1 reduces over j and gives a row per i; 0 reduces over i and gives a row per j
    dtype   the dtype that arrays have and values come back in; halves are computed in float32
    also    further reductions over the same axis; their results follow those of the first
    """

    formula: Expr
    reduction: str
    axis: int
    dtype: str
    weight: Expr | None = None
    k: int = 0
    also: tuple[Part, ...] = ()

    def __hash__(self) -> int:
        return hash(self.digest)  # every call looks its spec up: the digest is made once

    def __post_init__(self) -> None:
        reduction_named(self.reduction)
        if self.axis not in (0, 1):
            raise AxisError(f"axis must be 0 (reduce over i) or 1 (reduce over j), not {self.axis!r}")
        if self.dtype not in DTYPES:
            raise DtypeError(f"dtype {self.dtype} is not one of {', '.join(DTYPES)}")
        if len(self.also) >= MAX_PARTS:
            raise FormulaTooLarge(
                f"a job has at most {MAX_PARTS} reductions; this one has {len(self.also) + 1}"
            )
        check_size(*self.roots)
        variables(*self.roots)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every reduction of the job."""
        return (Part(self.formula, self.reduction, self.weight, self.k), *self.also)

    @cached_property
    def roots(self) -> tuple[Expr, ...]:
        return tuple(root for part in self.parts for root in part.roots)

    @cached_property
    def inputs(self) -> dict[int, Expr]:
        """The variables by index: which argument each is, its dimension and category."""
        return variables(*self.roots)

    @cached_property
    def checked(self) -> dict[Any, Extent]:
        """The sizes of jobs whose arrays were checked before, by the shapes and dtypes of the arrays."""
        return {}

    @cached_property
    def digest(self) -> bytes:
        """Content digest: equal for equal jobs, on every machine."""
        text = f"{self.axis}|{self.dtype}|".encode()
        return hashlib.blake2b(text + b"|".join(p.digest for p in self.parts), digest_size=16).digest()

    def over_j(self) -> tuple[Part, ...]:
        """The reductions, written so that they run over j: i and j trade places if needed."""
        return self.parts if self.axis == 1 else tuple(part.swapped() for part in self.parts)


@dataclass(frozen=True, slots=True)
class Extent:
    """The sizes of one job: M rows of x, N rows of y, the broadcast batch shape."""

    m: int
    n: int
    batch: tuple[int, ...]

    @property
    def pairs(self) -> int:
        count = self.m * self.n
        for b in self.batch:
            count *= b
        return count


def extent_of(
    spec: Spec, shapes: Mapping[int, tuple[int, ...]], names: Mapping[int, str] | None = None
) -> Extent:
    """The sizes of a job from the shapes of its arrays, each checked against the formula.

    Rows of category i have shape (*batch, M, D), of category j (*batch, N, D), parameters (*batch, D).
    A kind that the formula does not use counts as one row. `names` are the user's words for the inputs.

    Raises ShapeError, naming the argument, what was expected, what was received.
    """
    rows: dict[int, tuple[int, str]] = {}
    batch: tuple[int, ...] = ()
    for index, variable in spec.inputs.items():
        _, dim, category = variable.params
        name = (names or {}).get(index) or f"argument {index}"
        if index not in shapes:
            raise ShapeError(f"{name} is missing: the formula {spec.formula} uses {variable}")
        shape = shapes[index]
        expected = {I: f"(..., M, {dim})", J: f"(..., N, {dim})", P: f"(..., {dim})"}[category]
        own = 1 if category == P else 2
        if len(shape) < own or shape[-1] != dim:
            raise ShapeError(f"{name} has shape {tuple(shape)}; {variable} needs shape {expected}")
        if category != P:
            count, first = rows.setdefault(category, (shape[-2], name))
            if count != shape[-2]:
                raise ShapeError(
                    f"{name} has {shape[-2]} rows along {AXIS_NAMES[category]} where {first} has {count}; "
                    f"all inputs of one axis need the same number of rows"
                )
        batch = _broadcast(batch, tuple(shape[: len(shape) - own]), name)
    return Extent(rows.get(I, (1, ""))[0], rows.get(J, (1, ""))[0], batch)


_NAMES: dict[Any, str] = {}


def dtype_name(dtype: Any) -> str:
    """The name of the dtype of an array or a tensor. NumPy takes 5 µs to spell one, so each is spelled once."""
    name = _NAMES.get(dtype)
    if name is None:
        name = _NAMES[dtype] = str(dtype).removeprefix("torch.")
    return name


def check_arrays(spec: Spec, arrays: Mapping[int, Any], names: Mapping[int, str] | None = None) -> Extent:
    """The sizes of a job from its arrays, each checked against the formula and the dtype of the job.

    Raises ShapeError or DtypeError, naming the argument.
    """
    faces = tuple((index, array.shape, array.dtype) for index, array in arrays.items())
    if known := spec.checked.get(faces):
        return known
    held = ("bfloat16", "uint16") if spec.dtype == "bfloat16" else (spec.dtype,)
    own = {index: array for index, array in arrays.items() if index not in RANGES}
    for index, array in own.items():
        if dtype_name(array.dtype) not in held:
            name = (names or {}).get(index) or f"argument {index}"
            raise DtypeError(
                f"{name} has dtype {array.dtype} where the job computes in {spec.dtype}; "
                f"convert it with .astype({spec.dtype!r})"
            )
    extent = extent_of(spec, {index: tuple(array.shape) for index, array in own.items()}, names)
    if len(own) < len(arrays):
        check_ranges(arrays, extent)  # by their values: never known from before
    elif len(spec.checked) < MAX_CHECKED:
        spec.checked[faces] = extent
    return extent


def check_ranges(arrays: Mapping[int, Any], extent: Extent) -> None:
    """Raise ShapeError or DtypeError, naming the array, unless the six arrays of a block-sparse job fit.

    ranges_i     (Mc, 2)  blocks of rows, start and end
    slices_i     (Mc,)    where the intervals of each block end in redranges_j; they start where the last end
    redranges_j  (Q, 2)   intervals of columns
    and the same with i and j exchanged.
    """
    missing = [name for place, name in zip(RANGES, RANGE_NAMES, strict=True) if place not in arrays]
    if missing:
        raise ShapeError(f"ranges needs six arrays ({', '.join(RANGE_NAMES)}); missing: {', '.join(missing)}")
    if extent.batch:
        raise ShapeError(f"ranges cannot be combined with batch dimensions {extent.batch}")
    held = [arrays[place] for place in RANGES]
    for (blocks, slices, intervals), sizes, names in (
        (held[:3], (extent.m, extent.n), RANGE_NAMES[:3]),
        (held[3:], (extent.n, extent.m), RANGE_NAMES[3:]),
    ):
        for array, name in zip((blocks, slices, intervals), names, strict=True):
            if dtype_name(array.dtype) != "int64":
                raise DtypeError(f"{name} has dtype {array.dtype}; ranges are int64")
        _check_intervals(blocks, sizes[0], names[0])
        _check_intervals(intervals, sizes[1], names[2])
        if slices.ndim != 1 or len(slices) != len(blocks):
            raise ShapeError(
                f"{names[1]} has shape {tuple(slices.shape)}; {names[0]} has {len(blocks)} blocks"
            )
        if len(slices) and (slices[0] < 0 or (slices[1:] < slices[:-1]).any() or slices[-1] > len(intervals)):
            raise ShapeError(
                f"{names[1]} must rise from 0 to at most {len(intervals)}, the length of {names[2]}"
            )


def _check_intervals(array: Any, size: int, name: str) -> None:
    if array.ndim != 2 or array.shape[1] != 2:
        raise ShapeError(f"{name} has shape {tuple(array.shape)}; it needs (number of intervals, 2)")
    starts, ends = array[:, 0], array[:, 1]
    if len(array) and (starts.min() < 0 or ends.max() > size or (starts > ends).any()):
        raise ShapeError(f"{name} holds an interval that is not within 0 to {size}, start before end")


def _broadcast(a: tuple[int, ...], b: tuple[int, ...], name: str) -> tuple[int, ...]:
    width = max(len(a), len(b))
    a, b = (1,) * (width - len(a)) + a, (1,) * (width - len(b)) + b
    if any(p != q and 1 not in (p, q) for p, q in zip(a, b, strict=True)):
        raise ShapeError(f"{name} has batch dimensions {b}, which do not broadcast with {a}")
    return tuple(q if p == 1 else p for p, q in zip(a, b, strict=True))


def output_shapes(spec: Spec, extent: Extent) -> tuple[tuple[int, ...], ...]:
    """The shape of each result array: (*batch, M or N, *tail)."""
    kept = extent.m if spec.axis == 1 else extent.n
    return tuple((*extent.batch, kept, *part.output_tail()) for part in spec.parts for _ in part.rule.outputs)


@lru_cache(maxsize=1024)
def output_dtypes(spec: Spec) -> tuple[str, ...]:
    """The dtype of each result array: the data dtype, or int64 for indices."""
    kinds = [kind for part in spec.parts for kind in part.rule.outputs]
    return tuple("int64" if kind is Kind.INDEX else spec.dtype for kind in kinds)


@dataclass(frozen=True, slots=True)
class ArrayRef:
    """An array by content: the digest of its C-ordered bytes, and how to read them."""

    digest: bytes
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        size = ITEMSIZE[self.dtype]
        for d in self.shape:
            size *= d  # Python integers do not overflow
        return size


@dataclass(frozen=True, slots=True)
class Result:
    """What a job gives: one array per output of the reduction, and how it was computed."""

    values: tuple[Any, ...]
    plan: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What running a job would take: the engine, the bytes that would travel to it, its plan in words.

    The plan is that of all pairs, whatever the ranges of the job.
    """

    where: str
    bytes_to_send: int
    plan: Mapping[str, str]


class Prepared(Protocol):
    """A reduction or a program that is ready to run. Cheap to call, safe to share between threads."""

    spec: Spec | Program

    def run(self, arrays: Mapping[int, Any], options: Options = Options()) -> Result:
        """Evaluate on the arrays, by variable index or by the place of an input, and wait."""
        ...

    def again(self, arrays: Mapping[int, Any]) -> Result | None:
        """The same, sooner, of a small job on arrays of NumPy that look like those of one that went well.

        None where it is to be run: nothing was done then.
        """
        ...

    def submit(self, arrays: Mapping[int, Any], options: Options = Options()) -> Future[Result]:
        """Evaluate without waiting."""
        ...

    def outlook(self, arrays: Mapping[int, Any]) -> Outlook:
        """What running on these arrays would take; nothing is computed and no array is sent."""
        ...


class Engine(Protocol):
    """The seam: in process, over gRPC, over Ray. Callers cannot tell which but by its speed."""

    def prepare(self, spec: Spec | Program) -> Prepared:
        """Make a reduction or a program ready. Equal specs give equally ready answers, compiled once."""
        ...

    def close(self) -> None: ...
