"""Folds over the components of vectors for all pairs at hand, with panels of long vectors in shared memory.

Each pair keeps an accumulator, so that a component that was loaded once serves all pairs of the nest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

from farsum_kernels.backends.cuda.emit import PAIR, Emitter
from farsum_kernels.backends.cuda.layout import SHARED_BYTES
from farsum_kernels.scalar.indices import Loop
from farsum_kernels.scalar.ir import MASKS, I, J, Prim

PANEL_PAD = 4  # keeps the stores of a panel, eight components of four rows, on 32 different banks


class Panels(Emitter):
    """Writes the folds of a block of pairs."""

    def tiled_folds(self) -> None:
        """The folds of all pairs at hand, those of one loop together, each pair with its accumulator."""
        code = self.program.code
        folds = [n for n, instr in enumerate(code) if instr.prim is Prim.FOLD and self.symbols(n) == PAIR]
        groups: dict[tuple[int, Loop], list[int]] = {}
        for n in folds:
            if code[n].imm.how == "sum":
                groups.setdefault((self.program.stages[n], code[n].imm.loop), []).append(n)
        for (_, loop), group in sorted(groups.items(), key=lambda item: (item[0][0], group_key(item[0][1]))):
            self._tiled_group(loop, group)

    def _tiled_group(self, loop: Loop, group: list[int]) -> None:
        src, code, layout = self.src, self.program.code, self.layout
        terms = {n: code[n].args[0] for n in group}
        fixed = {m for term in terms.values() for m in self.outside(term, loop)}
        self.materialize([m for m in sorted(fixed) if self.symbols(m) == PAIR], "r", "c")
        names = {n: src.name("f") for n in group}
        for name in names.values():
            src.do(f"{self.scalar} {name}[{layout.rows}][{layout.columns}] = {{}};")
        counter = src.name("d")

        def body() -> None:
            inner = [m for m in self._inside(terms.values(), loop)]
            self.materialize([m for m in inner if self.symbols(m) == {I, loop}], "r")
            self.materialize([m for m in inner if self.symbols(m) == {J, loop}], "c")
            with self.nest("r", "c"):
                for n, term in terms.items():
                    src.do(self.added(f"{names[n]}[r][c]", term))

        panels = self._panels(terms.values(), loop) if layout.panel else []
        if panels:
            self._paneled(loop, counter, panels, body)
        else:
            with src.loop(counter, loop.extent, 0, 4), self.frame(loop, counter):
                body()
        for n, name in names.items():
            self.known(n, f"{name}[r][c]")

    def _inside(self, terms: Iterable[int], loop: Loop) -> list[int]:
        """The values of one row or one column, along the loop, that pairs of a nest need."""
        found: set[int] = set()
        stack, seen = list(terms), set()
        while stack:
            m = stack.pop()
            if m in seen or self._found(m):
                continue
            seen.add(m)
            if self.symbols(m) in ({I, loop}, {J, loop}):
                if self.program.code[m].prim in MASKS:
                    continue
                found.add(m)
                continue
            stack.extend(self.program.code[m].args)
        return sorted(found)

    def _panels(self, terms: Iterable[int], loop: Loop) -> list[tuple[int, int]]:
        """The (slot, base) whose components base + 0, 1, 2 … the terms walk along, as many as shared memory holds."""
        found: dict[tuple[int, int], None] = {}
        stack, seen = list(terms), set()
        while stack:
            m = stack.pop()
            if m in seen:
                continue
            seen.add(m)
            instr = self.program.code[m]
            if instr.prim is Prim.LOAD and self.symbols(m) & PAIR:
                slot, k = instr.imm
                if k.terms == ((loop, 1),):
                    found[slot, k.base] = None
            stack.extend(instr.args)
        words = self.layout.tile * self.words + self.layout.task_rows * len(self.held_rows)
        room, chosen = SHARED_BYTES - words * self.item_bytes, []
        for slot, base in found:
            room -= self._panel_words(slot) * self.item_bytes
            if room >= 0:  # others are read where they lie
                chosen.append((slot, base))
        return chosen

    def _panel_words(self, slot: int) -> int:
        """Words of a panel of this input."""
        rows = (self.layout.task_rows, self.layout.block_columns)[self.program.slots[slot].params[2]]
        return self.layout.panel * (rows + PANEL_PAD)

    def _paneled(
        self, loop: Loop, counter: str, panels: list[tuple[int, int]], body: Callable[[], None]
    ) -> None:
        """The loop in steps of a panel: components of all rows and columns of the block, side by side."""
        src, layout, start = self.src, self.layout, self.src.name("d")

        def step(count: int, unroll: int = 0) -> None:
            src.do("__syncthreads();")
            for place, (slot, base) in enumerate(panels):
                category = self.program.slots[slot].params[2]
                rows = (layout.task_rows, layout.block_columns)[category]
                reach = ("first, last_row", "columns_first, columns_last")[category]
                src.do(
                    f"fs_stage<{rows}, {count}, {layout.threads}>"
                    f"(panel{place}, x{slot}, {reach}, {self.dims[slot]}, {start} + {base});"
                )
            src.do("__syncthreads();")
            with src.loop(counter, count, 0, unroll), self.frame(loop, f"({start} + {counter})"):
                for place, (slot, base) in enumerate(panels):
                    category = self.program.slots[slot].params[2]
                    size, run = (
                        (layout.rows, layout.row_run),
                        (layout.columns, layout.column_run),
                    )[category]
                    side, thread = (
                        (layout.threads_i, "thread_i"),
                        (layout.threads_j, "thread_j"),
                    )[category]
                    stride = (layout.task_rows, layout.block_columns)[category] + PANEL_PAD
                    name = src.name("q")
                    src.do(
                        f"{self.scalar} {name}[{size}];",
                        f"fs_read_runs<{size}, {run}, {side}>(panel{place} + {counter} * {stride}, {thread}, {name});",
                    )
                    self.panel(slot, base, f"{name}[{'rc'[category]}]")
                body()

        for place, (slot, _) in enumerate(panels):
            self.panel_words[place] = max(self.panel_words.get(place, 0), self._panel_words(slot))
        whole = loop.extent // layout.panel * layout.panel
        if whole:
            with src.block(f"for (int {start} = 0; {start} < {whole}; {start} += {layout.panel})"):
                step(layout.panel)
        if whole < loop.extent:
            with src.block(""):
                src.do(f"const int {start} = {whole};")
                step(loop.extent - whole, 1)  # short: written out it takes registers that the panels need

    @cached_property
    def panel_words(self) -> dict[int, int]:
        """Words of shared memory that each panel takes."""
        return {}


def group_key(loop: Loop) -> tuple[int, int]:
    return loop.depth, loop.extent
