"""Exact tile culling: tiles of pairs that provably contribute nothing are never computed.

Points are put in Morton order, so that the rows of a tile lie close together, and every tile gets a box. The
formula is then evaluated on boxes, in interval arithmetic, coarse tiles first and the tiles inside those that are
left after. A tile of a sum is dropped when all its terms are exactly 0 in the dtype of the job (an exponential
that underflows), a tile of an extremum when another one holds enough better values. What is left is a block-sparse
job like any other.

Of equal values an index names the first: in Morton order that is another one. So jobs with indices run twice, the
second time from the last column to the first, and rows for which the two do not agree are computed without culling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.formula.lower import Program
from farsum_kernels.job import Extent, Part, Spec
from farsum_kernels.scalar.indices import Loop
from farsum_kernels.scalar.ir import LEAVES, MASKS, I, J, Prim, number

Array = NDArray[Any]
Bounds = tuple[Array, Array]

MIN_PAIRS = 400_000_000  # smaller sums are done before culling has begun
EXTREMA = 4  # times as many pairs of an extremum, which are computed faster and may have to be computed twice
# Seconds that finding out takes for each row and column: a job that takes less than that is done sooner in full.
POINT_S = 1e-6
MAX_ROWS = 4_000_000  # on either side: sorting more takes longer than a first slice may
MAX_TILES = 20_000_000  # pairs of tiles that are remembered
MAX_DIM = 4  # in more dimensions boxes are mostly empty
TILE = 128  # columns of a tile
AT_ONCE = 500_000  # pairs of tiles that are looked at together; more are grouped into coarse tiles first
SAMPLE = 64
SEEDS = 128  # columns around a tile of rows that give it a value to beat
MORTON_BITS = 10  # cells along an axis: finer than tiles are
_PLACE_BITS = MAX_ROWS.bit_length()
WORTH = 0.4  # more than this share of the pairs left, and culling is not worth its reordering

# Below this 2^x is 0, by a wide margin; e^x below the same times ln 2.
_VANISHES = {"float32": -152.0, "float64": -1080.0}
# Extrema that near points decide; the largest values are far away, and boxes say little about them.
SMALLEST = ("Min", "ArgMin", "Min_ArgMin", "MinArgMin", "KMin", "ArgKMin", "KMin_ArgKMin", "KMinArgKMin")
_ROUNDING = {"float32": 2.0**-23, "float64": 2.0**-52}


def cullable(program: Program, parts: Sequence[Part]) -> tuple[int, int] | None:
    """The slots of the points, of rows and of columns, if bounds of this reduction can be had; else None."""
    if (
        len(parts) != 1
        or program.terms[0].long
        or len(program.terms[0].value) != 1
        or program.terms[0].weight
    ):
        return None
    rule = parts[0].rule
    if not (rule.additive or rule.name in SMALLEST):
        return None
    if any(instr.prim is Prim.FOLD for instr in program.code) or any(
        isinstance(s, Loop) for scope in program.scopes for s in scope
    ):
        return None
    pairs = [
        (a, b)
        for a, v in enumerate(program.slots)
        for b, w in enumerate(program.slots)
        if (v.params[2], w.params[2]) == (0, 1) and v.params[1] == w.params[1] <= MAX_DIM
    ]
    return max(pairs, key=lambda p: program.slots[p[0]].params[1], default=None)


class Subject(Protocol):
    """What is asked of a kernel.

    dtype         of the arithmetic
    culled_rows   the rows of one task of a culled job
    """

    spec: Spec
    program: Program
    dtype: np.dtype[Any]

    @property
    def culled_rows(self) -> int: ...

    def seconds(self, over_j: Extent) -> float:
        """About how long every pair of a dense job takes."""
        ...


def large_enough(kernel: Subject, over_j: Extent) -> bool:
    """Is a job so large that finding out what can be left out takes less than the job?"""
    least = MIN_PAIRS * (1 if kernel.spec.parts[0].rule.additive else EXTREMA)
    if over_j.pairs < least or max(over_j.m, over_j.n) > MAX_ROWS:
        return False
    return kernel.seconds(over_j) >= POINT_S * (over_j.m + over_j.n)


@dataclass(frozen=True, slots=True)
class Culling:
    """What is left of a job: its rows and columns in an order, and the ranges of that order.

    share   of all pairs, those that are left
    """

    order_i: Array
    order_j: Array
    blocks: Array
    slices: Array
    intervals: Array
    share: float


def find(
    kernel: Subject, points: tuple[int, int], held: Sequence[Array], over_j: Extent, seed: Seed
) -> Culling | None:
    """What can be left out of a job; None when it is too little to be worth it.

    held   the inputs by slot, in the dtype of the arithmetic
    seed   computes the states of a block-sparse job on ordered arrays: for extrema, some values to beat
    """
    program = kernel.program
    if not _promising(kernel, held, over_j):
        return None
    (code_i, order_i), (code_j, order_j) = _morton(held[points[0]], held[points[1]])
    orders = {0: order_i, 1: order_j}
    ordered = [
        a[orders[v.params[2]]] if v.params[2] in orders else a
        for v, a in zip(program.slots, held, strict=True)
    ]
    rows, columns = _Tiles(over_j.m, kernel.culled_rows), _Tiles(over_j.n, TILE)
    limits = None
    if not kernel.spec.parts[0].rule.additive:
        limits = _limits(kernel, rows, over_j.n, code_i, code_j, order_i, order_j, seed)
    pairs = _near(_Bound(kernel, ordered, rows, columns, limits))
    if pairs is None:
        return None
    blocks, slices, intervals = _as_ranges(*pairs, rows, columns)
    share = float((rows.lengths[pairs[0]] * columns.lengths[pairs[1]]).sum()) / over_j.pairs
    return None if share > WORTH else Culling(order_i, order_j, blocks, slices, intervals, share)


Seed = Callable[[Array, Array, Array, Array, Array], Array]


def _limits(
    kernel: Subject,
    rows: _Tiles,
    n: int,
    code_i: Array,
    code_j: Array,
    order_i: Array,
    order_j: Array,
    seed: Seed,
) -> Array:
    """For each tile of rows, a value that the extremum of each of its rows reaches: on the columns around it."""
    starts = np.arange(rows.count) * rows.width
    ends = starts + rows.lengths
    middle = np.searchsorted(code_j, code_i[(starts + ends) // 2])
    # Several threads may share the columns of a task, each with a list of its own.
    width = max(SEEDS, 8 * kernel.spec.parts[0].k)
    first = np.clip(middle - width // 2, 0, max(0, n - width))
    intervals = np.stack([first, np.minimum(first + width, n)], axis=1)
    blocks = np.stack([starts, ends], axis=1)
    values = seed(order_i, order_j, blocks, np.arange(1, rows.count + 1), intervals)
    limits: Array = values.reshape(rows.count, -1).astype(np.float64).max(axis=1)
    return limits


def _near(bound: _Bound) -> tuple[Array, Array] | None:
    """The tiles that may contribute, as pairs of a tile of rows and a tile of columns, sorted; None if too many."""
    coarse, found = bound.coarse, []
    left = min(MAX_TILES, WORTH * bound.rows.count * bound.columns.count)
    keep = bound.keep(np.arange(bound.coarse_shape[0])[None], np.arange(bound.coarse_shape[1])[None], True)[0]
    above, beside = np.nonzero(keep)
    if coarse == 1:
        return above, beside
    step = max(1, AT_ONCE // coarse**2)
    inside = np.arange(coarse)
    for at in range(0, len(above), step):
        r = np.minimum(above[at : at + step, None] * coarse + inside, bound.rows.count - 1)
        c = np.minimum(beside[at : at + step, None] * coarse + inside, bound.columns.count - 1)
        where, a, b = np.nonzero(bound.keep(r, c, False))
        found.append(r[where, a] * bound.columns.count + c[where, b])
        left -= len(where)
        if left < 0:
            return None
    # At the edges the last tile stood for several.
    flat = np.sort(np.concatenate([np.zeros(0, np.int64), *found]))
    flat = flat[np.append(True, flat[1:] != flat[:-1])[: len(flat)]]
    return flat // bound.columns.count, flat % bound.columns.count


def _as_ranges(above: Array, beside: Array, rows: _Tiles, columns: _Tiles) -> tuple[Array, Array, Array]:
    """A block per tile of rows, with the intervals of its columns; neighbouring tiles are one interval."""
    new = np.ones(len(above), bool)
    new[1:] = (above[1:] != above[:-1]) | (beside[1:] != beside[:-1] + 1)
    last = np.append(new[1:], True)[: len(new)]
    intervals = np.stack([beside[new] * TILE, np.minimum((beside[last] + 1) * TILE, columns.size)], axis=1)
    slices = np.cumsum(np.bincount(above[new], minlength=rows.count))
    starts = np.arange(rows.count) * rows.width
    return np.stack([starts, starts + rows.lengths], axis=1), slices, intervals


def reversed_ranges(blocks: Array, slices: Array, intervals: Array, n: int) -> tuple[Array, Array, Array]:
    """The same pairs on columns in reverse order, each block meeting them from the last to the first."""
    counts = np.diff(slices, prepend=0)
    return blocks[::-1], np.cumsum(counts[::-1]), n - intervals[::-1, ::-1]


def _morton(x: Array, y: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """For both point sets, the order by codes whose neighbours are neighbours in space, and the codes in that order.

    Equal points keep their order.
    """
    both = [np.where(np.isfinite(p), p, 0).astype(np.float64) for p in (x, y)]
    low = np.minimum(*(p.min(axis=0) for p in both))
    high = np.maximum(*(p.max(axis=0) for p in both))
    dims = x.shape[1]
    # One scale for all axes: boxes are to be cubes.
    scale = (2**MORTON_BITS - 1) / max(float((high - low).max()), 1e-300)
    spread = np.zeros(
        1 << MORTON_BITS, np.int64
    )  # the bits of a number, so far apart that those of the others fit
    for bit in range(MORTON_BITS):
        spread |= (np.arange(1 << MORTON_BITS) >> bit & 1) << bit * dims

    def coded(points: Array) -> tuple[Array, Array]:
        cells = ((points - low) * scale).astype(np.int64)
        code = np.zeros(len(points), np.int64)
        for axis in range(dims):
            code |= spread[cells[:, axis]] << axis
        # The place below the code: sorting whole numbers is many times as fast as sorting places by them.
        packed = np.sort(code << _PLACE_BITS | np.arange(len(points)))
        return packed >> _PLACE_BITS, packed & (1 << _PLACE_BITS) - 1

    return coded(both[0]), coded(both[1])


class _Tiles:
    """Rows, or columns, in tiles of a width."""

    def __init__(self, size: int, width: int) -> None:
        self.size, self.width = size, width
        self.count = -(-size // width)
        self.lengths = np.minimum(width, size - np.arange(self.count) * width)

    def boxes(self, values: Array, tiles: int) -> Bounds:
        """The smallest and the largest value of each component in every so many tiles; NaN stays."""
        starts = np.arange(0, self.size, self.width * tiles)
        return np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)


class _Bound:
    """Bounds of the term of a reduction over tiles of pairs.

    limits   of an extremum, what each tile of rows has to beat; None for a sum
    """

    def __init__(
        self, kernel: Subject, arrays: Sequence[Array], rows: _Tiles, columns: _Tiles, limits: Array | None
    ) -> None:
        self.program, self.dtype = kernel.program, kernel.dtype.name
        self.rows, self.columns = rows, columns
        self.coarse = max(1, int(np.ceil(np.sqrt(rows.count * columns.count / AT_ONCE))))
        self.coarse_shape = -(-rows.count // self.coarse), -(-columns.count // self.coarse)
        wide = [a.astype(np.float64) for a in arrays]
        self._boxes = {whole: self._made(wide, self.coarse if whole else 1) for whole in (True, False)}
        self._limits = None
        if limits is not None:
            groups = np.arange(0, rows.count, self.coarse)
            self._limits = {True: np.maximum.reduceat(limits, groups), False: limits}

    def _made(self, arrays: Sequence[Array], tiles: int) -> list[Bounds]:
        """The boxes of all inputs by slot. A parameter is its own box."""
        sides = {0: self.rows, 1: self.columns}
        return [
            sides[v.params[2]].boxes(a, tiles) if v.params[2] in sides else (a[None], a[None])
            for v, a in zip(self.program.slots, arrays, strict=True)
        ]

    def keep(self, r: Array, c: Array, whole: bool) -> Array:
        """Which pairs of tiles may contribute: (batch, R) rows with (batch, C) columns give (batch, R, C)."""
        chosen = {0: r, 1: c}
        boxes = [
            (low[chosen[v.params[2]]], high[chosen[v.params[2]]]) if v.params[2] in chosen else (low, high)
            for v, (low, high) in zip(self.program.slots, self._boxes[whole], strict=True)
        ]
        low, high, slack = term_bounds(self.program, boxes, self.dtype)
        shape = (*r.shape, c.shape[-1])
        if self._limits is None:
            return np.broadcast_to(~((low == 0) & (high == 0)), shape)
        # What is not better by more than rounding is kept, and so is what nothing is known of.
        return np.broadcast_to(~(low - 2 * slack > self._limits[whole][r][..., None]), shape)


def _promising(kernel: Subject, arrays: Sequence[Array], over_j: Extent) -> bool:
    """Does a sample of pairs have enough terms that vanish? Of extrema nothing can be said so soon."""
    if not kernel.spec.parts[0].rule.additive:
        return True
    picked = [np.linspace(0, size - 1, SAMPLE).astype(np.int64) for size in (over_j.m, over_j.n)]
    boxes = []
    for v, a in zip(kernel.program.slots, arrays, strict=True):
        point = a[picked[v.params[2]]] if v.params[2] < 2 else a[None]
        boxes.append((point.astype(np.float64), point.astype(np.float64)))
    low, high, _ = term_bounds(kernel.program, boxes, kernel.dtype.name)
    return bool(((low == 0) & (high == 0)).mean() > 1 - WORTH)


# ── interval arithmetic ───────────────────────────────────────────────────────────────────────────


def term_bounds(program: Program, boxes: Sequence[Bounds], dtype: str) -> tuple[Array, Array, Array]:
    """The least and the largest value of the term on each pair of boxes, and what rounding may add to them.

    Boxes are given by slot, as (..., tiles, dim); bounds come as (..., tiles of rows, tiles of columns). NaN bounds
    say nothing.
    """
    values: list[Bounds] = []
    largest = np.zeros((1, 1))
    with np.errstate(all="ignore"):
        for instr, scope in zip(program.code, program.scopes, strict=True):
            if instr.prim is Prim.LOAD:
                slot, k = instr.imm
                low, high = (b[..., k.base] for b in boxes[slot])
                axis = -2 if program.slots[slot].params[2] == 1 else -1
                values.append((np.expand_dims(low, axis), np.expand_dims(high, axis)))
            elif instr.prim is Prim.CONST:
                value = np.full((1, 1), number(instr.imm, float(np.finfo(dtype).max)))
                values.append((value, value))
            elif instr.prim in LEAVES:
                values.append(_anything())
            else:
                values.append(_bounded(instr.prim, instr.args, values, dtype))
            if {I, J} <= scope and instr.prim not in MASKS:
                size = np.fmax(np.abs(values[-1][0]), np.abs(values[-1][1]))
                largest = np.maximum(largest, np.where(np.isfinite(size), size, 0.0))
        low, high = values[program.terms[0].value[0]]
        # Every operation rounds once, by an ulp of the largest number on the way.
        return low, high, largest * (_ROUNDING[dtype] * 2 * len(program.code))


def never_positive(program: Program, n: int) -> bool:
    """Is value n of a program at most 0, or NaN, whatever the inputs are?"""
    if any(
        instr.prim is Prim.FOLD or any(isinstance(s, Loop) for s in scope)
        for instr, scope in zip(program.code, program.scopes, strict=True)
    ):
        return False
    whole = Program(program.slots, program.code, program.scopes, (replace(program.terms[0], value=(n,)),))
    boxes = [(np.full((1, v.params[1]), -np.inf), np.full((1, v.params[1]), np.inf)) for v in program.slots]
    _, high, _ = term_bounds(whole, boxes, "float32")
    return bool((high <= 0).all())


def _anything() -> Bounds:
    return np.full((1, 1), -np.inf), np.full((1, 1), np.inf)


def _bounded(prim: Prim, args: tuple[int, ...], values: list[Bounds], dtype: str) -> Bounds:
    (a, b), *rest = (values[n] for n in args)
    c, d = rest[0] if rest else (a, b)
    match prim:
        case Prim.ADD:
            return a + c, b + d
        case Prim.SUB:
            return a - d, b - c
        case Prim.MUL if args[0] == args[1]:
            top = np.maximum(a * a, b * b)
            return np.where((a <= 0) & (b >= 0), 0.0, np.minimum(a * a, b * b)), top
        case Prim.MUL:
            products = a * c, a * d, b * c, b * d
            low, high = products[0], products[0]
            for p in products[1:]:
                low, high = np.minimum(low, p), np.maximum(high, p)
            return low, high
        case Prim.NEG:
            return -b, -a
        case Prim.ABS:
            inside = (a <= 0) & (b >= 0)
            return np.where(inside, 0.0, np.minimum(abs(a), abs(b))), np.maximum(abs(a), abs(b))
        case Prim.SQRT:
            return np.sqrt(np.maximum(a, 0.0)), np.where(a < 0, np.inf, np.sqrt(b))
        case Prim.EXP2:
            return _power(a, dtype), _power(b, dtype)
        case Prim.EXP:
            scale = 1 / np.log(2.0)
            return _power(a * scale, dtype), _power(b * scale, dtype)
        case Prim.MIN:
            return np.minimum(a, c), np.minimum(b, d)
        case Prim.MAX:
            return np.maximum(a, c), np.maximum(b, d)
        case Prim.DIV if bool(np.all((c > 0) | (d < 0))):
            ratios = a / c, a / d, b / c, b / d
            low, high = ratios[0], ratios[0]
            for r in ratios[1:]:
                low, high = np.minimum(low, r), np.maximum(high, r)
            return low, high
    return _anything()


def _power(x: Array, dtype: str) -> Array:
    """2^x, and exactly 0 where the dtype has nothing between."""
    return np.where(x < _VANISHES[dtype], 0.0, np.exp2(x))
