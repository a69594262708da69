"""How sums with scalar products from tensor cores are laid over a GPU, and when that pays. A pure function of sizes."""

from __future__ import annotations

from math import ceil

from farsum_kernels.backends.cuda.layout import TENSOR, Gpu, Layout

TRIPLES = 5  # up to so many components the three products of each fit into one step of a tensor core
STEP = 16  # components of a step
FEWEST, MOST = 3, 1024  # components; the error is measured up to MOST, benchmarks/tensor_products.py
HELD_STEPS = 7  # of which a warp keeps its rows in registers
CHUNK_STEPS = 4  # of longer vectors that are staged at once
MOST_HELD = 30  # numbers of the states of a row that registers are left for
WORTH_S = 2e-4  # of a card: about what six launches and a look at a number on the card take


def tensor_layout(dim: int, held: int, polynomials: int) -> Layout | None:
    """A warp takes 32 rows, four for each thread, whose vectors stay in its registers if they are not too long.

    None where registers do not suffice.

    held   numbers that the states keep for each row, and two more where pairs are more than a power and a product
    """
    steps = ceil(dim / STEP)
    if steps > HELD_STEPS:
        return Layout(64, 4, 4, 16, 1, 2, 64, 0, 1, 1, TENSOR) if held <= 6 else None
    # 16 KiB of packed columns at a time.
    tile = 128 if steps <= 2 else 64 if steps <= 4 else 32
    if steps <= 2:
        if held > MOST_HELD:
            return None
        columns, resident = (8, 4) if held <= 3 else (4, 3) if held <= 12 else (4, 2)
        return Layout(32, 4, 4, columns, 1, 2, tile, 0, 1, resident, TENSOR, polynomials=polynomials)
    return Layout(64, 4, 4, 4, 1, 2, tile, 0, 1, 1, TENSOR) if 4 * steps + held <= 31 else None


def lanes(dim: int) -> float:
    """About what a pair costs, in lanes of a warp instruction, of which a processor issues 128 in a cycle.

    From the instructions of compiled kernels and the published rates of the units: of tensor cores at 1270 products in
    a cycle, of special functions at 16.
    """
    steps = ceil(dim / STEP)
    products = 1 if dim <= TRIPLES else 3 * steps
    return max(8.0, 6.0 + steps, 1.6 * products)


def tensor_pays(dim: int, m: int, n: int, gpu: Gpu) -> bool:
    """Do products from tensor cores gain more time than it takes to look at the points and to pack them?"""
    gained = 2.1 * dim + 6 - lanes(dim)
    packing = 40.0 * dim * (m + n)
    return gained > 0 and m * n * gained > packing + WORTH_S * gpu.rate
