"""The whole text of a kernel's module: prelude, the pair loop of a layout, the kernel that combines states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from farsum_kernels.backends.cuda.bilinear import Bilinear, Product
from farsum_kernels.backends.cuda.combine import combine_text
from farsum_kernels.backends.cuda.filter import Filter
from farsum_kernels.backends.cuda.layout import FILTER, TENSOR, Layout
from farsum_kernels.backends.cuda.skeleton import Skeleton
from farsum_kernels.backends.cuda.tensor import TensorSums
from farsum_kernels.formula.lower import Program
from farsum_kernels.job import Part

SCALARS = {"float32": "float", "float64": "double"}
# How the elements of a job's arrays lie in memory.
ELEMENTS = {"float16": "fs_half", "bfloat16": "fs_bfloat16", "float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Stored:
    """One state component as a kernel leaves it: dtype, how often per row, value where nothing was reduced."""

    dtype: str
    repeat: int
    identity: float


@dataclass(frozen=True)
class Text:
    """Two kernels as CUDA C++, "reduce" and "combine", and what a launch must know of them.

    states   the components of the states of all reductions, one after the other
    chunks   blocks along the components of a long F
    repeats  rows of blocks that `combine` needs along the components of a long F
    numbers  of a row, and of a column, that are made beforehand where tensor cores compute products
    """

    source: str
    states: tuple[Stored, ...]
    chunks: int
    repeats: int
    numbers: tuple[int, int] = (0, 0)


def kernel_text(
    program: Program,
    parts: Sequence[Part],
    dtype: str,
    computed: str,
    layout: Layout,
    found: Bilinear | Product | None = None,
) -> Text:
    """The text of the kernels for the reductions of one program, arrays of `dtype` and one layout.

    found   what the layout of the filter, or that of the tensor cores, is about
    """
    about = program, parts, SCALARS[computed], ELEMENTS[dtype], layout
    kernel: Skeleton
    match found:
        case Bilinear() if layout.path == FILTER:
            kernel = Filter(*about, found)
        case Product() if layout.path == TENSOR:
            kernel = TensorSums(*about, found)
        case _:
            kernel = Skeleton(*about)
    kernel.build()
    extents = [s.extent for s in kernel.states if s.loop]
    combine = combine_text(kernel.states, ELEMENTS[dtype], layout)
    prelude = [files(__package__).joinpath(name).read_text() for name in ("prelude.cuh", "numbers.cuh")]
    dtypes = {"float": "float32", "double": "float64", "long long": "int64"}
    states = tuple(
        Stored(dtypes[t], s.repeat, x)
        for s in kernel.states
        for t, x in zip(s.stored, s.identity, strict=True)
    )
    return Text(
        "\n".join([*prelude, kernel.src.text(), combine]),
        states,
        max((-(-e // layout.chunk) for e in extents), default=1),
        max(extents, default=1),
        (len(kernel.row_numbers), len(kernel.staged)) if isinstance(kernel, TensorSums) else (0, 0),
    )
