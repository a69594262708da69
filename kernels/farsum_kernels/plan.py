"""The plan: how a job is laid over a machine. A value, chosen from shapes and the machine alone.

Same shapes, same machine, same version: same plan, and therefore the same bits. A plan never changes
what is computed beyond the order of summation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, prod
from typing import Generic, Protocol, TypeVar

from farsum_kernels.formula.lower import Program, Terms
from farsum_kernels.formula.reductions import Kind, Reduction
from farsum_kernels.job import Extent
from farsum_kernels.scalar.indices import Loop
from farsum_kernels.scalar.ir import LEAVES, Prim

# Columns between two flushes of a partial sum into its float64 total. A sum of 16 terms in float32 is as
# exact as its terms; past that the error of the sum shows (docs/accuracy.md). The states of the shifted
# sums are already held close by their maximum, and long states cost a pass through memory per flush.
TILE, TILE_SHIFTED, TILE_LONG = 16, 256, 256
STRIP_VECTORS = 192  # of one number of the pairs of a strip: three of them still leave half of a 48 KB cache
STRIP = 64, 8  # columns of a strip, at most and at least
STRIP_LAZY = 16  # columns that each row looks through at the end for the place of its best value
LAZY = 40  # instructions of a pair past which the index costs little beside the term
SLAB = 64  # columns whose tiles are added up in the data dtype: at 256 that showed beside pykeops, at N = 256
UNROLL = 6  # vector dimensions up to this are written out; longer ones become loops
LONG = 400  # instructions of a pair past which blocking only makes the compiler slow
SLICE_S = 0.1  # a slice, between two looks at cancel and deadline, takes about this long at most
START = 100_000.0  # multiply-adds that are done while one more thread is started, which is 20 to 60 µs


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan must know of a machine: vector width, registers, threads, speed.

    rate   multiply-adds per second of one thread in one lane-wide vector unit, for slicing only
    """

    vector_bytes: int
    registers: int
    threads: int
    rate: float = 3e9


@dataclass(frozen=True, slots=True)
class Layout:
    """The part of a plan that is compiled into the kernel.

    lanes     rows of one vector
    rows      vectors of rows that a task holds in registers
    columns   columns that are taken at once
    tile      columns of a partial sum in the data dtype
    slab      columns between two flushes into the float64 totals
    unroll    vector dimensions up to this are written out
    strip     columns whose pairs are computed before the components of a long term are; 0 without such terms
    chunk     components of a long term whose sums are held in registers at once
    """

    lanes: int
    rows: int
    columns: int
    tile: int
    slab: int
    unroll: int
    strip: int = 0
    chunk: int = 1

    @property
    def task_rows(self) -> int:
        return self.lanes * self.rows


class Rows(Protocol):
    """Of any layout: the rows of one task."""

    @property
    def task_rows(self) -> int: ...


L = TypeVar("L", bound=Rows)


@dataclass(frozen=True, slots=True)
class Plan(Generic[L]):
    """One job on one machine.

    layout    what the kernel was compiled for, in the terms of its backend
    splits    parts that the reduced axis is cut into, merged in order
    threads   threads that pull tasks
    slices    cancel and deadline are looked at this often, and other jobs may run in between
    tasks     units of work that threads pull
    pairs     M × N × batch, of a block-sparse job those in its blocks
    flops     additions, multiplications and their like, in all pairs
    """

    layout: L
    splits: int
    threads: int
    slices: int
    tasks: int
    pairs: int
    flops: float

    def describe(self) -> Mapping[str, str]:
        """The plan in words, for `explain` and for the reply."""
        flat = asdict(self)
        flat |= flat.pop("layout")
        return {key: str(value) for key, value in flat.items()}


def layout_for(program: Program, rules: Sequence[Reduction], itemsize: int, machine: Machine) -> Layout:
    """Register blocking by the kind of work: measured with AVX-512, by the count of registers for the others."""
    lanes, wide = machine.vector_bytes // itemsize, machine.registers >= 32
    looped = any(instr.prim is Prim.FOLD and _pairwise(program, n) for n, instr in enumerate(program.code))
    lazy = [is_lazy(program, t, rule) for t, rule in zip(program.terms, rules, strict=True)]
    blockings = [
        _blocking(t, rule, wide, looped, index_last)
        for t, rule, index_last in zip(program.terms, rules, lazy, strict=True)
    ]
    rows = min(r for r, _ in blockings)
    columns = min((c for _, c in blockings if c > 1), default=1)
    strip, chunk = _strip(program, rules, rows, wide)
    if not strip and any(lazy):
        strip = STRIP_LAZY
    if not strip and any(map(rises_late, program.terms, rules)):
        strip = TILE
    if len(program.code) > LONG:
        rows = columns = chunk = 1
    tile = min(_tile(t, rule) for t, rule in zip(program.terms, rules, strict=True))
    return Layout(lanes, rows, columns, tile, SLAB if tile == TILE else tile, UNROLL, min(strip, tile), chunk)


def is_lazy(program: Program, terms: Terms, rule: Reduction) -> bool:
    """Is the place of an extremum looked for when its value is known? Not when terms cost much more than indices."""
    return bool(
        rule.pick
        and rule.better
        and not rule.listed
        and terms.dim == 1
        and len(program.code) <= LAZY
        and not any(instr.prim is Prim.FOLD for instr in program.code)
    )


def rises_late(terms: Terms, rule: Reduction) -> bool:
    """Do sums beside a maximum go on beside an old one until it is far too low?"""
    return rule.calm is not None and not rule.peaked and not terms.long


def _tile(terms: Terms, rule: Reduction) -> int:
    if not rule.additive and not rises_late(terms, rule):
        return TILE_SHIFTED
    return TILE_LONG if terms.loop else TILE


def _blocking(terms: Terms, rule: Reduction, wide: bool, looped: bool, lazy: bool) -> tuple[int, int]:
    """Vectors of rows and columns for one reduction, on a machine with 32 registers (`wide`) or 16."""
    kinds = rule.state(1, 1)
    if terms.long:
        return (3, 8 if looped else 2) if wide else (2, 6 if looped else 2)
    if looped:
        return (4, 4) if wide else (2, 4)
    if rule.listed:
        return 1, 2
    if Kind.WIDE in kinds and Kind.VALUE in kinds:
        if rises_late(terms, rule):
            return (4, 1) if wide else (2, 1)
        return 1, 16 if wide else 8  # one rescale per block of columns
    if lazy:
        return (3, 8) if wide else (3, 4)
    if rule.gate:
        return (4, 4) if wide else (1, 8)
    # Sums of several components fill the registers with fewer rows.
    return (3, 1) if wide and terms.dim <= 2 else (2, 1)


def _strip(program: Program, rules: Sequence[Reduction], rows: int, wide: bool) -> tuple[int, int]:
    """The width of a strip of columns and how many components of long terms are summed at once."""
    staged, chunk = 0, 8 if wide else 6
    for terms, rule in zip(program.terms, rules, strict=True):
        if not terms.long:
            continue
        staged += len(program.shared(terms)) + (1 if terms.along else 0)
        each = program.each_component(terms)
        if Prim.FOLD in each or rule.listed:
            chunk = 1
        # A product with a number of the column is one multiply-add; the registers are for the sums then.
        work = sum(prim not in LEAVES for prim in each) * len(rule.state(1, 0))
        chunk = max(1, chunk // max(1, work))
    if not any(terms.long for terms in program.terms):
        return 0, 1
    most, least = STRIP
    return max(least, min(most, STRIP_VECTORS // (rows * max(1, staged)) // least * least)), chunk


def _pairwise(program: Program, n: int) -> bool:
    return sum(not isinstance(s, Loop) for s in program.scopes[n]) == 2


def threads_for(work: float, lanes: int, machine: Machine) -> int:
    """How many threads finish soonest: t take work / t, and t times START, for they are started in turn."""
    return max(1, min(machine.threads, int((work / (START * lanes)) ** 0.5)))


def plan_for(layout: Layout, extent: Extent, work_per_pair: float, machine: Machine) -> Plan[Layout]:
    """Cut a job into tasks, splits and slices."""
    batches = prod(extent.batch)
    row_tiles = ceil(extent.m / layout.task_rows)
    work = extent.pairs * work_per_pair
    threads = threads_for(work, layout.lanes, machine)
    splits = 1
    column_tiles = max(1, extent.n // layout.tile)
    if threads > 1 and row_tiles * batches < 4 * threads:
        # Too few rows to share: cut the columns too.
        splits = min(column_tiles, ceil(4 * threads / max(1, row_tiles * batches)))
    seconds = work / (machine.rate * layout.lanes * threads)
    task_s = seconds * threads / max(1, row_tiles * batches * splits)
    if task_s > SLICE_S:
        # One task alone is longer than a slice.
        splits = min(column_tiles, splits * ceil(task_s / SLICE_S))
    tasks = row_tiles * batches * splits
    slices = max(1, min(tasks // max(1, threads), ceil(seconds / SLICE_S)))
    return Plan(layout, splits, threads, slices, tasks, extent.pairs, work)


def plan_for_ranges(
    dense: Plan[Layout], tasks: int, pairs: int, work_per_pair: float, machine: Machine
) -> Plan[Layout]:
    """The plan of a block-sparse job: its tasks are given, only threads and slices are chosen."""
    work = pairs * work_per_pair
    threads = threads_for(work, dense.layout.lanes, machine)
    seconds = work / (machine.rate * dense.layout.lanes * threads)
    slices = max(1, min(tasks // max(1, threads), ceil(seconds / SLICE_S)))
    return Plan(dense.layout, 1, threads, slices, tasks, pairs, work)
