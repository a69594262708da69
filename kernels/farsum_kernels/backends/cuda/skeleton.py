"""The one kernel of the CUDA backend, steered by a layout.

A block of threads takes one task: up to `task_rows` rows, reduced over a list of spans of columns.

    tasks   i64[task][5]   batch, first row, end row, first span, end span
    spans   i64[span][2]   first column, end column

Dense work has one span per split; block-sparse ranges, masks and radius searches are longer lists of them.
What a task leaves behind is a state of each reduction, component by component, at
o[component][repeat][thread_j][task][row]; nothing is masked, since the last rows of a task are repeated instead.
A second kernel, see combine.py, merges what belongs together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from farsum_kernels.backends.cuda.layout import LONG_BYTES, Layout
from farsum_kernels.backends.cuda.panels import Panels
from farsum_kernels.backends.cuda.states import LongWeights, State
from farsum_kernels.backends.cuda.text import Source
from farsum_kernels.formula.lower import Program
from farsum_kernels.job import Part
from farsum_kernels.scalar.indices import Loop
from farsum_kernels.scalar.ir import I, J


class Skeleton(Panels):
    """The pair loop: the loops over spans, tiles and columns, and one `State` per reduction."""

    more_parameters: tuple[str, ...] = ()  # of kernels that take more than others
    one_text = False  # for whole and cut blocks of columns

    def __init__(
        self, program: Program, parts: Sequence[Part], scalar: str, element: str, layout: Layout
    ) -> None:
        super().__init__(Source(), program, scalar, layout)
        self.element = element
        self.states: list[State] = []
        for place, (part, terms) in enumerate(zip(parts, program.terms, strict=True)):
            first = sum(len(s.kinds) for s in self.states)
            kind = LongWeights if terms.along else State
            self.states.append(kind(self, part, terms, place, first))
        room = LONG_BYTES // (layout.chunk * layout.tile * self.item_bytes)
        along = [n for own in self.long_values(J).values() for n in own][:room]
        self._long_words = {n: word for word, n in enumerate(along)}
        self._long_rows: dict[int, str] = {}

    @property
    def words_used(self) -> int:
        return len(self.staged) + self.layout.chunk * len(self._long_words)

    # ── what the states ask of the kernel ─────────────────────────────────────────────────────────

    def stored_at(self, repeat: str, r: str) -> str:
        """The place of the state of row r of this task among all."""
        layout = self.layout
        return (
            f"(((long long){repeat} * {layout.threads_j} + thread_j) * tasks_all + task_number) "
            f"* {layout.task_rows} + local[{r}]"
        )

    def inside(self, c: str) -> str:
        return f"whole || at[{c}] < count"

    # ── the kernel ────────────────────────────────────────────────────────────────────────────────

    def build(self) -> None:
        # What is inside is written first, since it finds out how much shared memory it takes.
        outer, self.src = self.src, Source()
        for state in self.states:
            state.src = self.src
        self._task()
        inner, self.src = self.src, outer
        layout, scalar = self.layout, self.scalar
        slots = ", ".join(f"const {self.element}* in{s}" for s in range(len(self.dims)))
        stored = [t for state in self.states for t in state.stored]
        outs = ", ".join(f"{t}* o{c}" for c, t in enumerate(stored))
        parameters = ", ".join(
            p
            for p in (
                slots,
                "const long long* offsets, const long long* tasks, const long long* spans",
                outs,
                "long long first_task, long long tasks_all",
                *self.more_parameters,
            )
            if p
        )
        bounds = f"{layout.threads}, {layout.resident}" if layout.resident else f"{layout.threads}"
        head = f'extern "C" __global__ void __launch_bounds__({bounds}) reduce({parameters})'
        with self.src.block(head):
            self.src.do(*self.shared())
            for place, words in self.panel_words.items():
                self.src.do(f"__shared__ __align__(16) {scalar} panel{place}[{words}];")
            if layout.powers:
                self.src.do(
                    "__shared__ double powers[FS_POWERS];",
                    "fs_fill_powers(powers);",
                    "__syncthreads();",
                    "const auto fs_exp2 = [&](const double x) { return fs_exp2_by<false>(powers, x); };",
                )
            self.src.do(*inner.text().splitlines())

    @property
    def _tile_words(self) -> int:
        return self.layout.tile * self.words

    def shared(self) -> list[str]:
        """Declarations of shared memory for columns."""
        return [f"__shared__ __align__(16) {self.scalar} tile[{self._tile_words}];"]

    @property
    def thread_text(self) -> str:
        """The place of a thread in the rectangle of its block."""
        side = self.layout.threads_i
        return f"const int thread_i = threadIdx.x % {side}, thread_j = threadIdx.x / {side};"

    def open_span(self) -> None:
        """Before the tiles of a span."""

    def _task(self) -> None:
        src, layout = self.src, self.layout
        run_i = layout.row_run
        src.do(
            "const long long task_number = first_task + blockIdx.x;",
            "const long long* const task = tasks + task_number * 5;",
            f"const int component = blockIdx.y * {layout.chunk};",
            self.thread_text,
            "const int first = (int)task[1], last_row = (int)task[2] - 1;",
            *(
                f"const {self.element}* const x{s} = in{s} + offsets[task[0] * {len(self.dims)} + {s}];"
                for s in range(len(self.dims))
            ),
            f"int local[{layout.rows}], row[{layout.rows}];",
        )
        with src.loop("r", layout.rows):
            src.do(
                f"local[r] = r / {run_i} * {layout.threads_i * run_i} + thread_i * {run_i} + r % {run_i};",
                "row[r] = fs_lesser(first + local[r], last_row);",
            )
        for n in self.leaving(frozenset()):
            self.get(n)
        self._hold_rows()
        for loop, values in self.long_values(I).items():
            with self.frame(loop, self._place_in(loop)):
                self.materialize(values, "r", "k")
                self._long_rows |= {n: self.get(n).text for n in values}
        for state in self.states:
            state.declare()
        with src.block("for (long long span = task[3]; span < task[4]; ++span)"):
            src.do("const int span_end = (int)spans[2 * span + 1];")
            self.open_span()
            with src.block(
                "for (int tile_first = (int)spans[2 * span]; tile_first < span_end; "
                f"tile_first += {layout.tile})"
            ):
                src.do(f"const int count = fs_lesser({layout.tile}, span_end - tile_first);")
                self._stage()
                self._columns()
                for state in self.states:
                    state.flush()
        for state in self.states:
            with self._along(state.loop, self._long_rows):
                state.leave()

    def _hold_rows(self) -> None:
        """What the pairs need of a row: in registers, which accumulators of long vectors leave none of; there it is shared."""
        if not self.layout.panel:
            self.materialize(self.leaving(frozenset({I})), "r")
            return
        if not (names := {n: self.src.name("held") for n in self.held_rows}):
            return
        self.src.do(
            *(f"__shared__ {self.scalar} {name}[{self.layout.task_rows}];" for name in names.values())
        )
        layout = self.layout
        with (
            self.src.block(f"for (int q = threadIdx.x; q < {layout.task_rows}; q += {layout.threads})"),
            self.frame(),
        ):
            self.src.do("const int i = fs_lesser(first + q, last_row);")
            self.row_at = "i"
            for n, name in names.items():
                self.src.do(f"{name}[q] = {self.get(n).text};")
            self.row_at = "row[r]"
        self.src.do("__syncthreads();")
        for n, name in names.items():
            self.known(n, f"{name}[local[r]]")
        self.materialize(self.leaving(frozenset({I})), "r")  # what found no room

    def _place_in(self, loop: Loop) -> str:
        """The component at hand of a long F; the last one is repeated to fill a chunk up."""
        return f"fs_lesser(component + k, {loop.extent - 1})"

    @contextmanager
    def _along(self, loop: Loop | None, texts: Mapping[int, str]) -> Iterator[None]:
        """Inside a nest over k: the component of a long F, and what is known of rows and columns along it."""
        if loop is None:
            yield
            return
        with self.frame(loop, self._place_in(loop)):
            for n, text in texts.items():
                if loop in self.loops_of(n):
                    self.known(n, text)
            yield

    # ── columns ───────────────────────────────────────────────────────────────────────────────────

    def _stage(self) -> None:
        """What the pairs need of each column of the tile, into shared memory; the last column fills it up."""
        if not self.staged and not self._long_words:
            return
        src = self.src
        src.do("__syncthreads();")
        with (
            src.block(f"for (int q = threadIdx.x; q < {self.layout.tile}; q += {self.layout.threads})"),
            self.frame(),
        ):
            src.do("const int j = tile_first + fs_lesser(q, count - 1);")
            self.column_at = "j"
            for word, n in enumerate(self.staged):
                src.do(f"tile[q * {self.words} + {word}] = {self.get(n).text};")
            self._stage_long()
            self.column_at = "column[c]"
        src.do("__syncthreads();")

    def _stage_long(self) -> None:
        """Of column j, its numbers along a long F."""
        for loop, found in self.long_values(J).items():
            if values := [n for n in found if n in self._long_words]:
                with self.src.loop("k", self.layout.chunk), self.frame(loop, self._place_in(loop)):
                    for n in values:
                        self.src.do(
                            f"tile[q * {self.words} + {self._long_word(n)} + k] = {self.get(n).text};"
                        )

    def _long_word(self, n: int) -> int:
        return len(self.staged) + self._long_words[n] * self.layout.chunk

    def _columns(self) -> None:
        """All pairs of the rows at hand with the columns of the tile, a block of columns after the other."""
        src, layout = self.src, self.layout
        with src.block("auto block = [&](const int base, auto whole)", "};"), self.frame():
            self._open_block()
            self.tiled_folds()
            short = [s for s in self.states if not s.loop]
            if short:
                self._pairs(short)
            for loop in dict.fromkeys(s.loop for s in self.states if s.loop):
                self._long_pairs(loop, [s for s in self.states if s.loop == loop])
        step = layout.block_columns
        if layout.panel or self.one_text:
            # Long work per pair: one text for whole and cut blocks costs a hundredth and saves registers.
            with src.block(f"for (int base = 0; base < count; base += {step})"):
                src.do(f"block(base, base + {step} <= count);")
            return
        src.do("int base = 0;")
        with src.block(f"for (; base + {step} <= count; base += {step})"):
            src.do("block(base, fs_yes());")
        src.do("if (base < count) block(base, fs_no());")

    def _open_block(self) -> None:
        src, layout, run = self.src, self.layout, self.layout.column_run
        src.do(
            "const int columns_first = tile_first + base, columns_last = tile_first + count - 1;",
            f"int at[{layout.columns}], column[{layout.columns}];",
        )
        with src.loop("c", layout.columns):
            src.do(
                f"at[c] = base + c / {run} * {layout.threads_j * run} + thread_j * {run} + c % {run};",
                "column[c] = fs_lesser(tile_first + at[c], columns_last);",
            )
        if (layout.panel or self.one_text) and not self._long_words:
            # Read where they are needed, mostly past the panels: until then registers are for the accumulators.
            for word, n in enumerate(self.staged):
                self.known(n, f"tile[at[c] * {self.words} + {word}]")
            return
        src.do(f"{self.scalar} w[{layout.columns}][{self.words}];")
        if self.staged or self._long_words:
            with src.loop("c", layout.columns):
                src.do(f"fs_read<{self.words}>(tile + at[c] * {self.words}, w[c]);")
        for word, n in enumerate(self.staged):
            self.known(n, f"w[c][{word}]")

    def _pairs(self, states: Sequence[State]) -> None:
        for state in states:
            state.declare_terms()
        with self.nest("r", "c"):
            for state in states:
                state.accumulate(self.inside("c"))
        for state in states:
            state.update()

    def _long_pairs(self, loop: Loop, states: Sequence[State]) -> None:
        """The components of a long F one after the other; what does not depend on them is computed once."""
        places = [n for s in states for n in s.terms.places]
        fixed = {m for n in places for m in self.outside(n, loop)}
        self.materialize([m for m in sorted(fixed) if {I, J} == self.symbols(m)], "r", "c")
        for state in states:
            state.open_block()
        texts = self._long_rows | {n: f"w[c][{self._long_word(n)} + k]" for n in self._long_words}
        with self.src.loop("k", self.layout.chunk), self._along(loop, texts):
            self._pairs(states)
