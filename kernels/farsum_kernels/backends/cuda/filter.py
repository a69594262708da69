"""The kernel that finds nearest neighbours with the tensor cores: a filter, and the verification of what passes it.

All pairs are looked at in float16, with a bound on the error (filter.cuh). Only a pair that may change the state of its
row by that bound is computed, by the same scalar code as in any other kernel, so the results are the same bits.
A block is four warps of 32 rows; each lane keeps the state of one row. Pairs to verify wait in a queue of their
warp until there are 32 of them, one for each lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from farsum_kernels.backends.cuda.bilinear import Bilinear
from farsum_kernels.backends.cuda.emit import Emitter
from farsum_kernels.backends.cuda.layout import Layout
from farsum_kernels.backends.cuda.rules import TYPES, run_rule
from farsum_kernels.backends.cuda.skeleton import Skeleton
from farsum_kernels.backends.cuda.text import Value
from farsum_kernels.formula.lower import Program
from farsum_kernels.job import Part
from farsum_kernels.scalar import ir
from farsum_kernels.scalar.ir import Prim, Val

# A warp may verify this many pairs at once and then a share of those it has looked at; past that the filter is no use.
SPARE, SHARE = 4096, 32


class Filter(Skeleton):
    """`reduce` by way of the filter. The states that it leaves are those of any other kernel with its layout."""

    def __init__(
        self,
        program: Program,
        parts: Sequence[Part],
        scalar: str,
        element: str,
        layout: Layout,
        found: Bilinear,
    ) -> None:
        super().__init__(program, parts, scalar, element, layout)
        self._about = found
        (self._state,) = self.states
        self._part = parts[0]

    def build(self) -> None:
        found, src = self._about, self.src
        sides = (("X", found.rows), ("Y", found.columns))
        src.do(
            f"typedef {self.element} fs_element;",
            f"constexpr int FILTER_DIM = {found.dim}, FILTER_STEPS = {-(-found.dim // 16)};",
            f"constexpr int FILTER_CENTRED = {int(found.distance)}, FILTER_SIGN = {1 if found.smallest else -1};",
            *(
                f"constexpr int FILTER_{name}_WIDTH = {self.dims[side.slot]}, FILTER_{name}_BASE = {side.base};"
                for name, side in sides
            ),
            *files(__package__).joinpath("filter.cuh").read_text().splitlines(),
        )
        self._exact()
        self._reduce()

    def _exact(self) -> None:
        """The term of one pair, in the operations of every other kernel."""
        src = self.src
        slots = ", ".join(f"const {self.element}* x{s}" for s in range(len(self.dims)))
        with src.block(f"__device__ __noinline__ float exact({slots}, const int row, const int column)"):
            pair = Emitter(src, self.program, self.scalar, self.layout)
            pair.row_at, pair.column_at = "row", "column"
            src.do(f"return {pair.get(self._state.terms.value[0]).text};")

    def _reduce(self) -> None:
        src, layout, state = self.src, self.layout, self._state
        slots = ", ".join(f"const {self.element}* in{s}" for s in range(len(self.dims)))
        outs = ", ".join(f"{t}* o{c}" for c, t in enumerate(state.stored))
        packed = (
            "const uint4* rows_packed, const float4* rows_numbers, const uint4* columns_packed, "
            "const float* columns_numbers, const int* tiles, int* marks"
        )
        head = (
            f'extern "C" __global__ void __launch_bounds__({layout.threads}, {layout.resident}) reduce({slots}, '
            f"const long long* offsets, const long long* tasks, const long long* spans, {outs}, long long first_task, "
            f"long long tasks_all, {packed})"
        )
        with src.block(head):
            src.do(
                "__shared__ __align__(16) uint4 staged[2][FILTER_CHUNK * 128];",
                "__shared__ int queued_row[FILTER_WARPS][64], queued_column[FILTER_WARPS][64], stop[2];",
                "__shared__ float verified[FILTER_WARPS][32];",
                "const long long task_number = first_task + blockIdx.x;",
                "const long long* const task = tasks + task_number * 5;",
                "const int component = 0, thread_j = 0, lane = threadIdx.x % 32, warp = threadIdx.x / 32;",
                "const int first = (int)task[1], last_row = (int)task[2] - 1;",
                *(
                    f"const {self.element}* const x{s} = in{s} + offsets[task[0] * {len(self.dims)} + {s}];"
                    for s in range(len(self.dims))
                ),
                "const int local[1] = {(int)threadIdx.x};",
                "const int row = fs_lesser(first + local[0], last_row);",
            )
            state.declare()
            src.do(*_PROLOGUE.splitlines())
            with src.block("for (long long span = task[3]; span < task[4]; ++span)"):
                src.do("const int span_first = (int)spans[2 * span], span_end = (int)spans[2 * span + 1];")
                with src.block("if (span_first < span_end)"):
                    src.do(*_TILES.splitlines())
                    with src.block("if (__any_sync(0xffffffffu, hit))"):
                        self._verify()
                    src.do("}")
            src.do("// What still waits.")
            self._flush("while (count > 0)")
            state.leave()

    def _verify(self) -> None:
        """Queue the pairs of this tile that may change a state, and compute them 32 at a time."""
        src = self.src
        if not self._state.listed:
            src.do(*_SEED.splitlines())
        src.do(*_CANDIDATES.splitlines())
        with src.block("while (__any_sync(0xffffffffu, (low | high) != 0))"):
            src.do(*_PUSH.splitlines())
            self._flush("if (count >= 32)")

    def _flush(self, head: str) -> None:
        src, state = self.src, self._state
        slots = ", ".join(f"x{s}" for s in range(len(self.dims)))
        with src.block(head):
            src.do(*_COMPUTE.replace("SLOTS", slots).splitlines())
            with (
                src.block("for (int n = 0; n < ready; ++n)"),
                src.block("if (queued_row[warp][n] == lane)"),
                src.loop("r", 1),
            ):
                src.do("const float x = verified[warp][n];", "const int j = queued_column[warp][n];")
                self._take(Value("x", "f"), Value("j", "i"))
            worst = state._slot(0, str(state.listed - 1)) if state.listed else f"{state._names[0]}[0]"
            with src.loop("r", 1):
                src.do(f"const float worst = {worst};", f"key = {self._key()};")
            src.do(*_SHARE.replace("SPARE", str(SPARE)).replace("SHARE", str(SHARE)).splitlines())

    def _key(self) -> str:
        """The key, times s t, of the distance or product behind the worst value that the state of this row keeps."""
        text = "worst"
        for prim in self._about.chain:
            if prim is Prim.NEG:
                text = f"(-{text})"
            else:
                text = f"({text} * {text} * (1.0f + FILTER_SIGN * 0x1p-20f))"
        identity = self._state._fresh(0)
        return f"worst == {identity} ? fs_inf<float>() : FILTER_SIGN * {text} * scale"

    def _take(self, x: Value, j: Value) -> None:
        """A value enters the state of its row. Of equal ones the smallest column stays: they come in any order."""
        state, src, rule = self._state, self.src, self._part.rule
        if not state.listed:
            values = state._values(state._names)

            def merged(args: list[Val]) -> Sequence[Val]:
                *old, value, place = args
                return rule.merge(tuple(old), rule.lift((value,), place))

            new = run_rule(src, self.scalar, [*values, x, j], merged)
            src.do(*(f"{old.text} = {v.text};" for old, v in zip(values, new, strict=True)))
            return
        smallest = state.identity[0] > 0

        def step(args: list[Val]) -> Sequence[Val]:
            value, index, x, j, moved = args
            better = (x < value) if smallest else (value < x)
            take = moved | better | (ir.equal(x, value) & (j < index))
            kept, out = ir.select(take, x, value), ir.select(take, value, x)
            return kept, ir.select(take, j, index), out, ir.select(take, index, j), take

        src.do("float incoming = x;", f"{TYPES['i'][self.scalar]} place = j;", "bool moved = false;")
        with src.loop("s", state.listed, 0, state._unroll):
            slots = [Value(state._slot(0, "s"), "f"), Value(state._slot(1, "s"), "i")]
            args = [*slots, Value("incoming", "f"), Value("place", "i"), Value("moved", "m")]
            new = run_rule(src, self.scalar, args, step)
            targets = [*(v.text for v in slots), "incoming", "place", "moved"]
            src.do(*(f"{t} = {v.text};" for t, v in zip(targets, new, strict=True)))


# What a lane knows: its own row (`row`), and of the four rows of its fragments, 16 m + 8 h + lane / 4 of the warp, what
# the bound takes of |Ŷ| (by_size), of E (by_error), and the number that f is compared with (base).
_PROLOGUE = """\
const int g = lane / 4, q = lane % 4, row_tile = (first + warp * 32) / 16;
const float scale = (float)(filter_scale(marks[0]) * filter_scale(marks[1]));
const float4 own = rows_numbers[row];
const bool here = first + local[0] <= last_row;
float key = fs_inf<float>(), seed = fs_inf<float>();
float base[4], by_size[4], by_error[4];
#pragma unroll
for (int r = 0; r < 4; ++r) {
    base[r] = __shfl_sync(0xffffffffu, here ? fs_inf<float>() : -fs_inf<float>(), r * 8 + g);
    by_size[r] = __shfl_sync(0xffffffffu, own.x, r * 8 + g);
    by_error[r] = __shfl_sync(0xffffffffu, own.y, r * 8 + g);
}
constexpr bool held = FILTER_CHUNKS == 1;
uint4 a[FILTER_STEPS <= 8 ? FILTER_STEPS : 1][2];
if constexpr (held) filter_rows(a, rows_packed, row_tile, 0);
int count = 0, buffer = 0, done = 0;
long long spent = 0;
unsigned low = 0, high = 0;
"""

_TILES = """\
const int tile_first = span_first / FILTER_TILE, tile_end = (span_end + FILTER_TILE - 1) / FILTER_TILE;
filter_fetch(staged[buffer], columns_packed, tile_first, 0);
for (int tile = tile_first; tile < tile_end; ++tile) {
    float d[2][8][4];
    #pragma unroll
    for (int n = 0; n < 8; ++n) {
        const float2 c = *reinterpret_cast<const float2*>(columns_numbers + tile * FILTER_TILE + n * 8 + 2 * q);
        #pragma unroll
        for (int m = 0; m < 2; ++m) d[m][n][0] = d[m][n][2] = c.x, d[m][n][1] = d[m][n][3] = c.y;
    }
    if (threadIdx.x == 0) stop[tile & 1] = *(volatile int*)(marks + 2);
    for (int chunk = 0; chunk < FILTER_CHUNKS; ++chunk) {
        // This chunk has landed, and everyone is done with the one before.
        fs_copy_wait<0>();
        __syncthreads();
        const uint4* const at_hand = staged[buffer];
        buffer ^= 1;
        if (chunk + 1 < FILTER_CHUNKS) filter_fetch(staged[buffer], columns_packed, tile, chunk + 1);
        else if (tile + 1 < tile_end) filter_fetch(staged[buffer], columns_packed, tile + 1, 0);
        if constexpr (held) filter_multiply(d, a, at_hand);
        else {
            const int steps = fs_lesser(FILTER_CHUNK, FILTER_STEPS - chunk * FILTER_CHUNK);
            #pragma unroll 1
            for (int k = 0; k < steps; ++k) {
                uint4 rows[1][2];
                filter_rows(rows, rows_packed, row_tile, chunk * FILTER_CHUNK + k);
                filter_multiply(d, rows, at_hand + k * 128);
            }
        }
    }
    if (stop[tile & 1]) return;  // the job is computed without the filter
    const float size = __int_as_float(tiles[tile * 3]), error = __int_as_float(tiles[tile * 3 + 1]);
    const float own_sums = (FILTER_SUMS + 0x1p-22f) * 1.001f * __int_as_float(tiles[tile * 3 + 2]);
    if (tile * FILTER_TILE < span_first || (tile + 1) * FILTER_TILE > span_end) {
        #pragma unroll
        for (int n = 0; n < 8; ++n)
            #pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int j = tile * FILTER_TILE + n * 8 + 2 * q + e % 2;
                if (j < span_first || j >= span_end) d[0][n][e] = d[1][n][e] = fs_inf<float>();
            }
    }
    float least[4], limit[4];
    bool hit = false;
    #pragma unroll
    for (int r = 0; r < 4; ++r) {
        least[r] = fs_inf<float>();
        #pragma unroll
        for (int n = 0; n < 8; ++n)
            least[r] = fminf(least[r], fminf(d[r / 2][n][r % 2 * 2], d[r / 2][n][r % 2 * 2 + 1]));
        limit[r] = fs_fma(by_size[r], size, fs_fma(by_error[r], error, own_sums + base[r]));
        hit = hit || least[r] <= limit[r];
    }
    ++done;
"""

# The pair with the smallest f has a key of at most f + k and the bound: what cannot be below that never wins.
_SEED = """\
#pragma unroll
for (int r = 0; r < 4; ++r) {
    least[r] = fminf(least[r], __shfl_xor_sync(0xffffffffu, least[r], 1));
    least[r] = fminf(least[r], __shfl_xor_sync(0xffffffffu, least[r], 2));
    const float mine = __shfl_sync(0xffffffffu, least[r], lane % 8 * 4);
    if (lane / 8 == r) {
        const float top = mine + own.z + fs_fma(own.x, size, fs_fma(own.y, error, own_sums));
        seed = fminf(seed, top + (FILTER_GAP * (fabsf(mine) + fabsf(top) + fabsf(own.z)) + FILTER_TINY));
    }
}
#pragma unroll
for (int r = 0; r < 4; ++r) {
    base[r] = __shfl_sync(0xffffffffu, here ? filter_base(fminf(seed, key), own.z) : -fs_inf<float>(), r * 8 + g);
    limit[r] = fs_fma(by_size[r], size, fs_fma(by_error[r], error, own_sums + base[r]));
}
"""

_CANDIDATES = """\
low = high = 0;
#pragma unroll
for (int n = 0; n < 8; ++n)
    #pragma unroll
    for (int e = 0; e < 2; ++e) {
        #pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (d[0][n][2 * r + e] <= limit[r] && d[0][n][2 * r + e] < fs_inf<float>()) low |= 1u << (r * 16 + 2 * n + e);
            if (d[1][n][2 * r + e] <= limit[2 + r] && d[1][n][2 * r + e] < fs_inf<float>()) high |= 1u << (r * 16 + 2 * n + e);
        }
    }
"""

_PUSH = """\
const unsigned some = __ballot_sync(0xffffffffu, (low | high) != 0);
if (low | high) {
    const int m = low ? 0 : 1, bit = __ffs(low ? low : high) - 1;
    (low ? low : high) &= (low ? low : high) - 1;
    const int place = count + __popc(some & ((1u << lane) - 1));
    queued_row[warp][place] = m * 16 + bit / 16 * 8 + g;
    queued_column[warp][place] = tile * FILTER_TILE + bit % 16 / 2 * 8 + 2 * q + bit % 2;
}
count += __popc(some);
__syncwarp();
"""

_COMPUTE = """\
const int ready = fs_lesser(count, 32);
if (lane < ready) {
    const int i = fs_lesser(first + warp * 32 + queued_row[warp][lane], last_row);
    verified[warp][lane] = exact(SLOTS, i, queued_column[warp][lane]);
}
__syncwarp();
"""

_SHARE = """\
__syncwarp();
count -= ready, spent += ready;
if (lane < count) queued_row[warp][lane] = queued_row[warp][lane + 32], queued_column[warp][lane] = queued_column[warp][lane + 32];
__syncwarp();
#pragma unroll
for (int r = 0; r < 4; ++r)
    base[r] = __shfl_sync(0xffffffffu, here ? filter_base(fminf(seed, key), own.z) : -fs_inf<float>(), r * 8 + g);
if (spent > SPARE + done * (2048LL / SHARE)) marks[2] = 1;
"""
