"""The kernel of sums whose scalar products come from the tensor cores; everything else of a pair is the skeleton's.

A thread holds the four rows and the columns that the tensor cores leave it, so what follows the product is the scalar
code of any other kernel. Numbers of a row or a column alone are made once for the job, in float64, and read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files

from farsum_kernels.backends.cuda.bilinear import Product
from farsum_kernels.backends.cuda.emit import Emitter
from farsum_kernels.backends.cuda.layout import Layout
from farsum_kernels.backends.cuda.skeleton import Skeleton
from farsum_kernels.backends.cuda.tensor_layout import CHUNK_STEPS, HELD_STEPS, STEP, TRIPLES
from farsum_kernels.formula.lower import Program
from farsum_kernels.job import Part
from farsum_kernels.scalar.ir import I

NUMBERS_BYTES = 6 << 10  # of the numbers of a tile of columns


class TensorSums(Skeleton):
    """`reduce` and the kernels that pack its points, `tensor_rows` and `tensor_columns`."""

    more_parameters = (
        "const uint4* rows_packed",
        "const float* rows_numbers",
        "const uint4* columns_packed",
        "const float* columns_numbers",
        "float unit",
    )

    def __init__(
        self,
        program: Program,
        parts: Sequence[Part],
        scalar: str,
        element: str,
        layout: Layout,
        found: Product,
    ) -> None:
        self._about = found
        super().__init__(program, parts, scalar, element, layout)
        self._held = -(-found.dim // STEP) <= HELD_STEPS
        self.one_text = layout.columns != 8

    @cached_property
    def _uses(self) -> list[list[int]]:
        """As for every kernel, without what only the scalar product needs: that is not computed here."""
        code, live, stack = self.program.code, set(), [*self.wanted]
        while stack:
            n = stack.pop()
            if n not in live:
                live.add(n)
                stack.extend(() if n == self._about.place else code[n].args)
        return [[u for u in uses if u in live and u != self._about.place] for uses in super()._uses]

    @cached_property
    def staged(self) -> list[int]:
        """As for every kernel, as many as there is room for twice beside the packed points."""
        return super().staged[: NUMBERS_BYTES // (self.layout.tile * self.item_bytes)]

    @property
    def row_numbers(self) -> list[int]:
        """The values of a row alone that the kernel reads."""
        own = self.leaving(frozenset({I}))
        return own + [n for n in self._factors if n not in own]

    @property
    def _factors(self) -> list[int]:
        return [n for t in self.program.terms for n in t.factor if n is not None and self.symbols(n) == {I}]

    # ── packing ───────────────────────────────────────────────────────────────────────────────────

    def build(self) -> None:
        found, layout = self._about, self.layout
        steps = -(-found.dim // STEP)
        self.src.do(
            f"constexpr int TENSOR_DIM = {found.dim}, TENSOR_WARPS = {layout.threads // 32}, TENSOR_TILE = {layout.tile};",
            f"constexpr bool TENSOR_TRIPLES = {int(found.dim <= TRIPLES)};",
            f"constexpr int TENSOR_CHUNK = {steps if self._held else CHUNK_STEPS};",
            *files(__package__).joinpath("tensor.cuh").read_text().splitlines(),
        )
        self._packing("tensor_rows_packed", "rows_at", self.row_numbers, 0)
        self._packing("tensor_columns_packed", "columns_at", self.staged, 1)
        super().build()

    def _packing(self, name: str, at: str, values: Sequence[int], side: int) -> None:
        """The kernel that packs one side, and computes what the pair loop needs of each of its rows."""
        src, where = self.src, (self._about.rows, self._about.columns)[side]
        slots = ", ".join(f"const {self.element}* x{s}" for s in range(len(self.dims)))
        head = f'extern "C" __global__ void {name}({slots}, unsigned* packed, float* numbers, int rows, long long words, double scale)'
        with src.block(head):
            one = Emitter(src, self.program, "double", self.layout)
            one.row_at = one.column_at = at
            factor = "1.0"
            if side == 0 and self._about.factor is not None:
                factor = one.get(self._about.factor).text
            src.do(f"const double factor = {factor};")
            step = "gridDim.x * blockDim.x"
            with (
                src.block(
                    f"for (int {at} = blockIdx.x * blockDim.x + threadIdx.x; {at} < rows; {at} += {step})"
                ),
                one.frame(),
            ):
                for word, n in enumerate(values):
                    src.do(f"numbers[(long long){at} * {len(values)} + {word}] = (float){one.get(n).text};")
            src.do(
                f"tensor_pack<{'true' if side else 'false'}>(x{where}, packed, rows, words, factor * scale);"
            )

    # ── the pair loop ─────────────────────────────────────────────────────────────────────────────

    @property
    def thread_text(self) -> str:
        return "const int thread_i = threadIdx.x / 4, thread_j = threadIdx.x % 4;"

    def shared(self) -> list[str]:
        steps = "TENSOR_CHUNK * TENSOR_HALVES * TENSOR_GROUPS * 32"
        return [
            f"__shared__ __align__(16) uint4 packed[2][{steps}];",
            f"__shared__ __align__(16) float numbers[2][{self._tile_words}];",
        ]

    def _hold_rows(self) -> None:
        src = self.src
        src.do(f"const int task_tile = first / {self.layout.task_rows};", "int buffer = 0;")
        if self._held:
            src.do("uint4 a[TENSOR_STEPS][TENSOR_HALVES][2];")
            with src.loop("step", "TENSOR_STEPS"):
                src.do("tensor_rows(a[step], rows_packed, task_tile, step);")
        held = self.leaving(frozenset({I}))
        for word, n in enumerate(self.row_numbers):
            text = f"__ldg(rows_numbers + (long long)row[r] * {len(self.row_numbers)} + {word})"
            if n in held:
                name = src.name("a")
                src.do(f"float {name}[{self.layout.rows}];")
                with src.loop("r", self.layout.rows):
                    src.do(f"{name}[r] = {text};")
                text = f"{name}[r]"
            self.known(n, text)

    def open_span(self) -> None:
        src, count = self.src, len(self.staged)
        src.do("const int span_first = (int)spans[2 * span];")
        # The first steps of a tile, and its numbers, into shared memory, by copies that are not waited for.
        with src.block("auto fetch = [&](const int from)", "};"):
            if count:
                with src.block(
                    f"for (int q = threadIdx.x; q < {self.layout.tile * count}; q += {self.layout.threads})"
                ):
                    at = f"numbers[from / TENSOR_TILE & 1] + q / {count} * {self.words} + q % {count}"
                    j = f"(long long)fs_lesser(from + q / {count}, span_end - 1) * {count} + q % {count}"
                    src.do(f"fs_copy_async4({at}, columns_numbers + {j});")
            src.do("tensor_fetch(packed[buffer], columns_packed, from / TENSOR_TILE, 0);")
        src.do("if (span_first < span_end) fetch(span_first);")

    _NEXT = "if (tile_first + TENSOR_TILE < span_end) fetch(tile_first + TENSOR_TILE);"

    def _stage(self) -> None:
        """Wait for the columns of this tile, and send for those of the next."""
        src = self.src
        src.do("// These columns have landed, and everyone is done with those before.", "fs_copy_wait<0>();")
        src.do("__syncthreads();")
        src.do("const float* const tile = numbers[tile_first / TENSOR_TILE & 1];")
        if self._held:
            src.do("const uint4* const at_hand = packed[buffer];", "buffer ^= 1;", self._NEXT)

    def tiled_folds(self) -> None:
        src, about = self.src, self._about
        if self._held:
            src.do(
                f"float products[4][{self.layout.columns}];",
                "tensor_products(products, a, at_hand + base / 16 * 32);",
            )
        else:
            self._chunks()
        text = "products[r][c]"
        self.known(about.place, text if about.factor is not None else f"fs_mul({text}, unit)")

    def _chunks(self) -> None:
        """Vectors too long for registers: a few steps of all columns of the tile at a time."""
        src = self.src
        src.do(f"float products[4][{self.layout.columns}] = {{}};")
        with src.block("for (int chunk = 0; chunk < TENSOR_CHUNKS; ++chunk)"):
            with src.block("if (chunk > 0)"):
                src.do("fs_copy_wait<0>();", "__syncthreads();")
            src.do("const uint4* const at_hand = packed[buffer];", "buffer ^= 1;")
            src.do(
                "if (chunk + 1 < TENSOR_CHUNKS) "
                "tensor_fetch(packed[buffer], columns_packed, tile_first / TENSOR_TILE, chunk + 1);",
                f"else {self._NEXT}",
                "const int steps = fs_lesser(TENSOR_CHUNK, TENSOR_STEPS - chunk * TENSOR_CHUNK);",
            )
            with src.loop("step", "steps", unroll=1):
                src.do(
                    "uint4 a[TENSOR_HALVES][2];",
                    "tensor_rows(a, rows_packed, task_tile, chunk * TENSOR_CHUNK + step);",
                    "tensor_step<false>(products, a, at_hand + step * TENSOR_HALVES * TENSOR_GROUPS * 32);",
                )
