"""How much memory a job takes on a device, and into what pieces it is cut when that is too much. Allocates nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from numpy.typing import NDArray

from farsum_kernels.backends.cuda.layout import TILE, Layout
from farsum_kernels.formula.expr import I, J, P
from farsum_kernels.formula.lower import Program
from farsum_kernels.job import Extent

STREAM_BYTES = (
    256 << 20
)  # of columns that are sent at once: long for the bus, short for the host that fills it
SPARE = 4  # a part of the memory is left to more splits of the columns, which keep a device busy


@dataclass(frozen=True, slots=True)
class Cut:
    """The most that one piece has: batch members, rows of each, and columns on the device at a time.

    Members are cut before their rows are: a piece of several has them whole.
    """

    batches: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Appetite:
    """Bytes that a job takes.

    row, column     of the inputs, for each row and column of one member of the batch
    rows, columns   the same for all members together: inputs without a batch axis
    output, state   of one row of one member: its results, its states in one part
    fixed           whatever the cut
    """

    row: int
    column: int
    rows: int
    columns: int
    output: int
    state: int
    fixed: int

    @classmethod
    def of(
        cls, program: Program, held: Sequence[NDArray[Any]], outputs: int, state: int, fixed: int
    ) -> Appetite:
        """From the inputs by slot; `outputs` and `state` are bytes of one row."""
        sides: Counter[tuple[int, bool]] = Counter()
        for v, a in zip(program.slots, held, strict=True):
            shared = prod(a.shape[: -1 if v.params[2] == P else -2]) == 1
            sides[v.params[2], shared] += v.params[1] * a.itemsize
        fixed += sum(a.nbytes for v, a in zip(program.slots, held, strict=True) if v.params[2] == P)
        return cls(sides[I, False], sides[J, False], sides[I, True], sides[J, True], outputs, state, fixed)

    def of_columns(self, cut: Cut, n: int) -> int:
        """Of the columns on the device: all of them, or two stretches."""
        stretches = 1 if cut.columns >= n else 2
        return stretches * cut.columns * (cut.batches * self.column + self.columns)

    def of_piece(self, cut: Cut, n: int, layout: Layout) -> int:
        """Of a piece, with the columns in as few parts as may be."""
        rows = ceil(cut.rows / layout.task_rows) * layout.task_rows
        # Two sets of states, of two splits each, where the columns come a stretch at a time.
        parts = layout.threads_j * (1 if cut.columns >= n else 4)
        # A task takes 40 bytes and a row its place, of some jobs.
        each = self.row + self.output + 8 + parts * (self.state + 40 // layout.task_rows + 1)
        return self.fixed + cut.batches * rows * each + cut.rows * self.rows + self.of_columns(cut, n)

    def cut(self, extent: Extent, layout: Layout, budget: int) -> Cut:
        """The largest pieces that leave a part of the budget free, or the smallest there are."""
        cut = Cut(prod(extent.batch), extent.m, extent.n)
        while self.of_piece(cut, extent.n, layout) > budget - budget // SPARE:
            smaller = self._smaller(cut, extent.n, layout, budget)
            if smaller == cut:
                break
            cut = smaller
        return cut

    def _smaller(self, cut: Cut, n: int, layout: Layout, budget: int) -> Cut:
        if cut.batches > 1:
            return Cut(ceil(cut.batches / 2), cut.rows, cut.columns)
        least, rows = min(TILE, n), ceil(cut.rows / 2 / layout.task_rows) * layout.task_rows
        columns = max(least, min(cut.columns // 2, STREAM_BYTES // max(1, self.column + self.columns)))
        if columns < cut.columns and (self.of_columns(cut, n) > budget // 4 or rows >= cut.rows):
            return Cut(1, cut.rows, columns)
        return Cut(1, min(cut.rows, rows), cut.columns)


def edges(size: int, most: int) -> list[tuple[int, int]]:
    """Intervals of nearly equal lengths, at most `most` each.

    >>> edges(10, 4), edges(0, 4)
    ([(0, 3), (3, 6), (6, 10)], [(0, 0)])
    """
    count = max(1, ceil(size / max(1, most)))
    return [(size * k // count, size * (k + 1) // count) for k in range(count)]
