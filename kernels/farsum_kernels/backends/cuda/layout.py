"""How a job is laid over a GPU: the shape of a block of threads and what each thread holds, a value.

A pure function of the formula, the shapes and the device, so that equal jobs give equal bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log, prod

from farsum_kernels.backends.culling import never_positive
from farsum_kernels.backends.fusion import fused_products
from farsum_kernels.formula.lower import Program, Terms
from farsum_kernels.formula.reductions import Kind, Reduction
from farsum_kernels.job import Extent, Part
from farsum_kernels.plan import LONG, SLICE_S, Plan
from farsum_kernels.scalar.indices import Loop
from farsum_kernels.scalar.ir import LEAVES, I, J, Prim

# Vector dimensions up to this are written out and held in registers; longer ones become loops over panels.
UNROLL = 16
# Columns of a partial sum in the data dtype. Blocks of 192 are what users of such libraries are used to.
TILE = 128
PANEL = 8  # components of a long vector that are staged at once: 32 bytes of a row, one sector of a load
CHUNK = 8  # components of a long F that one block of threads computes
IN_REGISTERS = 16  # places of an ordered list up to which it lives in registers
MAX_LIST_SPLITS = 32
SHARED_BYTES = 48 * 1024  # static shared memory that every device has
STAGED_BYTES, LONG_BYTES = SHARED_BYTES // 2, SHARED_BYTES // 4  # for columns, and for them along a long F
HELD_BYTES = 4096  # for numbers of the rows of a block, where vectors are long
BLOCKS_PER_PROCESSOR = 16
# How pairs are computed: each as it is written; only what a filter lets through; with distances from scalar products;
# with such products from tensor cores.
DIRECT, FILTER, PRODUCTS, TENSOR = "direct", "filter", "products", "tensor"
FILTER_S = 2e-4  # shorter jobs are done before their points are packed
POWERS = 2048
SPECIAL = {Prim.EXP, Prim.EXP2, Prim.LOG, Prim.SQRT, Prim.SIN, Prim.COS, Prim.DIV}
POLYNOMIAL = 11  # instructions of a power of two as a polynomial, beside the one that it stands for
MIN_TILES = 4  # tiles of columns below which another split costs more than it gives


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a plan must know of a device.

    rate     multiply-adds per second of the whole device, for slicing only
    memory   bytes that a job's states may take
    """

    processors: int
    rate: float
    memory: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Layout:
    """The part of a plan that is compiled into a kernel. A block of threads is a rectangle.

    threads_i, threads_j   its sides: along the rows and along the columns
    rows, columns          rows that a thread holds, columns that it takes at once
    row_run, column_run    how many of those are neighbours
    tile                   columns staged in shared memory, and of a partial sum in the data dtype
    panel                  components of long vectors staged at once; 0 if there are none
    chunk                  components of a long F that one block computes
    resident               blocks that a processor is to hold at once, which bounds registers; 0 leaves it to the compiler
    path                   DIRECT, FILTER or TENSOR
    powers                 entries of a table of powers of two in shared memory, for float64; 0 without
    polynomials            rows of a thread whose powers of two are polynomials, so that the others' special functions
                           do not keep the units for those waiting alone
    """

    threads_i: int
    threads_j: int
    rows: int
    columns: int
    row_run: int
    column_run: int
    tile: int
    panel: int = 0
    chunk: int = 1
    resident: int = 0
    path: str = DIRECT
    powers: int = 0
    polynomials: int = 0

    @property
    def threads(self) -> int:
        return self.threads_i * self.threads_j

    @property
    def task_rows(self) -> int:
        return self.threads_i * self.rows

    @property
    def block_columns(self) -> int:
        """Columns that a block of threads takes at once."""
        return self.threads_j * self.columns


# Four warps of 32 rows, each lane with the state of one; 64 columns at a time.
FILTER_LAYOUT = Layout(128, 1, 1, 1, 1, 1, 64, 0, 1, 2, FILTER)


def filter_pays(dim: int, k: int, m: int, n: int, gpu: Gpu) -> bool:
    """Is it worth looking at all pairs in float16 before the few that may count are computed?

    By lanes of a warp instruction, of which a processor issues 128 in a cycle; from the instructions of compiled
    kernels, with tensor cores at the rate that is published for them.
    """
    # Short vectors are held in registers, long ones come through panels.
    direct = 2.0 * dim + 2 if dim <= UNROLL else 2.1 * dim + 25
    steps = ceil(dim / 16)
    keep = max(1, k)
    # The pairs of a row that are better than all before them, and a few within the bound; each is read from memory.
    verified = keep * (1 + log(max(1.0, n / keep))) + 4
    filtered = 1.7 * steps + 3 + verified * 256 * dim / max(1, n) + 20.0 * dim * (m + n) / max(1, m * n)
    return 2 * filtered < direct and m * n * dim / gpu.rate > FILTER_S


def layouts_for(program: Program, parts: Sequence[Part], itemsize: int) -> tuple[Layout, ...]:
    """The layouts that a job may be run with: the widest first, then those for fewer rows."""
    listed = any(p.rule.listed for p in parts)
    chunk = CHUNK if any(t.long for t in program.terms) and not listed else 1
    if paneled(program):
        rows, columns = _panel_side(parts, itemsize, chunk)
        run = 16 // itemsize
        run_i, run_j = min(run, rows), min(run, columns)
        return (
            Layout(
                16, 16, rows, columns, run_i, run_j, 16 * max(columns, 4), PANEL, chunk, 1 if chunk > 1 else 2
            ),
        )
    rows = _rows(program, parts, itemsize)
    powers = POWERS if itemsize == 8 and chunk == 1 and _takes_powers(program, parts) else 0
    columns = 1 if len(program.code) > LONG else 2 if listed or chunk > 1 else 4
    sides = ((128, 1, rows), (32, 4, rows), (32, 4, max(1, rows // 4)))
    return tuple(
        dict.fromkeys(
            Layout(
                i,
                j,
                r,
                columns,
                1,
                columns,
                TILE,
                0,
                chunk,
                int(chunk > 1),
                powers=powers,
                polynomials=_polynomials(program, parts, r) if itemsize == 4 and chunk == 1 else 0,
            )
            for i, j, r in sides
        )
    )


def _takes_powers(program: Program, parts: Sequence[Part]) -> bool:
    """Are there powers of two for each pair, in the formula or in a reduction?"""
    pairs = zip(program.code, program.scopes, strict=True)
    return any(part.rule.share for part in parts) or any(
        instr.prim is Prim.EXP2 and {I, J} <= scope for instr, scope in pairs
    )


def _polynomials(program: Program, parts: Sequence[Part], rows: int) -> int:
    """The rows of a thread for which powers of two are better computed as polynomials, by the units of multiplication.

    A processor issues 128 lanes in a cycle and takes 16 special functions: with two of those for each pair they are
    what a kernel waits for. Only for sums of powers that cannot overflow: of equal values an index would see the
    difference.
    """
    if not all(part.rule.additive for part in parts):
        return 0
    pairwise = [n for n, scope in enumerate(program.scopes) if {I, J} <= scope]
    prims = [program.code[n].prim for n in pairwise]
    special = sum(prim in SPECIAL for prim in prims)
    chosen = [n for n in pairwise if program.code[n].prim is Prim.EXP2]
    if len(chosen) != 1 or not never_positive(program, program.code[chosen[0]].args[0]):
        return 0
    lanes = (
        sum(prim not in LEAVES for prim in prims)
        - len(fused_products(program))
        + sum(t.dim for t in program.terms)
    )
    if any(prim is Prim.SQRT for prim in prims):
        lanes += 1

    def rate(share: float) -> float:
        return min(16 / (special - share), 128 / (lanes + POLYNOMIAL * share))

    best = max(range(rows), key=lambda r: rate(r / rows))
    return best if rate(best / rows) > 1.05 * rate(0) else 0


def _panel_side(parts: Sequence[Part], itemsize: int, chunk: int) -> tuple[int, int]:
    """Rows and columns of a thread that keeps an accumulator for each pair; with 64 of them too few threads fit."""
    if any(part.rule.listed for part in parts):
        return (2, 4) if all(part.k <= IN_REGISTERS for part in parts) else (4, 4)
    return (4, 4) if itemsize == 8 or chunk > 1 else (8, 4)


def paneled(program: Program) -> bool:
    """Does a pair need a fold over the components of a column?"""
    code, scopes = program.code, program.scopes

    def reads_column(n: int, loop: Loop) -> bool:
        if loop not in scopes[n]:
            return False
        if code[n].prim is Prim.LOAD:
            return J in scopes[n]
        return any(reads_column(a, loop) for a in code[n].args)

    return any(
        instr.prim is Prim.FOLD and {I, J} <= scopes[n] and reads_column(instr.args[0], instr.imm.loop)
        for n, instr in enumerate(code)
    )


def _rows(program: Program, parts: Sequence[Part], itemsize: int) -> int:
    """Rows per thread: as many as registers allow, since each takes a column that was loaded once."""
    inputs = sum(v.params[1] for v in program.slots if v.params[1] <= UNROLL and v.params[2] == 0)
    held = max(registers(part.rule, part.k, terms) for part, terms in zip(parts, program.terms, strict=True))
    words = itemsize // 4 * (inputs + held)
    if len(program.code) > LONG:
        return 1
    for rows in (8, 4, 2):
        if rows * words <= 72:
            return rows
    return 1


def registers(rule: Reduction, k: int, terms: Terms) -> int:
    """Numbers that a state keeps for each row."""
    kinds = rule.state(1 if terms.loop else terms.dim, len(terms.weight))
    each = sum(3 if kind is Kind.WIDE else 1 for kind in kinds)
    if rule.listed:
        return each * (k if k <= IN_REGISTERS else 1)
    return each * (CHUNK if terms.long else 1)


def choose(layouts: Sequence[Layout], rows: int) -> int:
    """The layout for so many rows: the widest one whose last tile is nearly full."""
    padded = [ceil(rows / layout.task_rows) * layout.task_rows for layout in layouts]
    least = min(padded)
    return next(n for n, size in enumerate(padded) if size <= 1.15 * least)


def plan_for(
    layout: Layout,
    extent: Extent,
    work_per_pair: float,
    gpu: Gpu,
    *,
    listed: bool,
    state_bytes: int,
    chunks: int,
) -> Plan[Layout]:
    """Cut a job into tasks, splits of the columns and slices of time; a task is one block of threads."""
    batches, row_tiles = prod(extent.batch), ceil(extent.m / layout.task_rows)
    blocks = max(1, row_tiles * batches * chunks)
    column_tiles = max(1, extent.n // (MIN_TILES * layout.tile))
    splits = min(column_tiles, ceil(BLOCKS_PER_PROCESSOR * gpu.processors / blocks))
    # What the splits leave behind must fit beside the data.
    room = gpu.memory // max(1, row_tiles * batches * layout.task_rows * layout.threads_j * state_bytes)
    splits = max(1, min(splits, room))
    work = extent.pairs * work_per_pair * chunks
    task_s = work / gpu.rate / max(1, row_tiles * batches * splits) * gpu.processors
    if task_s > SLICE_S:
        # One task alone is longer than a slice.
        splits = max(1, min(column_tiles, room, splits * ceil(task_s / SLICE_S)))
    if listed:
        splits = min(splits, max(1, MAX_LIST_SPLITS // layout.threads_j))
    tasks = row_tiles * batches * splits
    slices = max(1, min(tasks // max(1, gpu.processors), ceil(work / gpu.rate / SLICE_S)))
    return Plan(layout, splits, layout.threads, slices, tasks, extent.pairs, work)
