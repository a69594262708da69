"""A job on tensor cores, bound: its points are looked at, moved if need be, and packed on the device. No arithmetic of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, frexp, log2
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends.certified import Certified
from farsum_kernels.backends.cuda.graphs import Call
from farsum_kernels.backends.cuda.tensor_layout import STEP, TRIPLES
from farsum_kernels.backends.tables import reduced_over_j
from farsum_kernels.job import Extent

if TYPE_CHECKING:
    from farsum_kernels.backends.cuda.kernel import Kernel
    from farsum_kernels.backends.cuda.launch import Launch

Array = NDArray[Any]

THREADS, MAX_BLOCKS = 256, 2048  # of the kernels that walk over all numbers in steps of their grid
TINY = 1e-30  # instead of no length at all
WIDEST = 14  # a scaled vector is no longer than 2 to this, so that no component overflows a float16


def packed_launch(
    asked: Certified[Kernel],
    arrays: Mapping[int, Array],
    extent: Extent,
    digests: Mapping[int, bytes],
) -> Launch | None:
    """The job on tensor cores; what packs its points is launched before its first slice. None where the certificate does not hold.

    Waits for the device once, to see how large the points are. Raises DeviceFull.
    """
    kernel = asked.kernel
    variant, driver, found = kernel.variant(0), kernel.driver, kernel.product
    assert found
    run = kernel.bind_whole(arrays, extent, variant, digests)
    over_j = reduced_over_j(kernel.spec, extent)
    sides = (found.rows, over_j.m), (found.columns, over_j.n)

    def call(name: str, size: int, *args: Any) -> Call:
        blocks = max(1, min(MAX_BLOCKS, ceil(size / THREADS)))
        return Call(variant.module, name, (blocks, 1), (THREADS, 1), 0, args)

    centre, marks = driver.empty(found.dim, "float32"), driver.empty(4, "int32")
    look = [call("tensor_centre", found.dim, run.inputs[found.columns], centre, marks, np.int32(over_j.n))]
    for side, (slot, size) in enumerate(sides):
        about = np.int32(size), np.int32(side)
        look.append(call("tensor_largest", 32 * size, run.inputs[slot], centre, marks, *about))
    driver.run(look)
    bits = np.zeros(4, np.int32)
    driver.download(marks, bits)
    sizes = bits.view(np.float32).astype(np.float64).tolist()
    scale = asked.scale(arrays)
    moved = not asked.holds(scale, *sizes[:2])
    if moved:
        sizes = sizes[2:]
        if not asked.holds(scale, *sizes):
            return None
        for slot, size in sides:
            points = driver.empty(size * found.dim, "float32")
            count = size * found.dim
            about_all = run.inputs[slot], centre, points, np.int64(count)
            run.before.append(call("tensor_move", count, *about_all))
            run.inputs[slot] = points
    powers = balanced(2.9 * scale if found.factor is not None else None, *sizes[:2])
    if powers is None:
        return None
    fragments = ceil(found.dim / STEP) * (1 if found.dim <= TRIPLES else 2)
    wholes = variant.layout.task_rows, variant.layout.tile
    for side, (_, size) in enumerate(sides):
        words = ceil(size / wholes[side]) * wholes[side] * fragments * STEP // 2
        packed = driver.empty(words, "uint32")
        numbers = driver.empty(size * variant.text.numbers[side], "float32")
        name = f"tensor_{('rows', 'columns')[side]}_packed"
        how = np.int32(size), np.int64(words), np.float64(powers[side])
        run.before.append(call(name, words, *run.inputs, packed, numbers, *how))
        run.more += [packed, numbers]
    run.more.append(np.float32(powers[2]))
    return run


def balanced(factor: float | None, rows: float, columns: float) -> tuple[float, float, float] | None:
    """Powers of two that rows and columns are multiplied by before they are packed, and the unit of their products.

    None where there are none.

    factor          what rows are multiplied by besides, so that their products are exponents, of a unit of 1; or None
    rows, columns   the largest squared norms
    """
    x, y = rows**0.5, columns**0.5
    if factor is not None:
        # The certificate bounds the product by about 6: both sides are made as long as the root of that, or shorter.
        power = 2.0 ** round(log2(max(y, TINY) / max(factor * x, TINY)) / 2)
        return power, 1 / power, 1.0
    up = [2.0 ** (WIDEST - frexp(size or 1.0)[1]) for size in (x, y)]
    unit = 1 / (up[0] * up[1])
    return (up[0], up[1], unit) if 2.0**-120 < unit < 2.0**120 else None
