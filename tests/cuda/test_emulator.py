"""The emulator, on kernels written by hand: blocks, barriers, shared memory, arguments. It must see each planted fault."""

from __future__ import annotations

import math
from importlib.resources import files

import numpy as np
import pytest

from tests.cuda.emulate import ORDERS, CompilationError, EmulationError, Order, compile, launch

pytestmark = pytest.mark.emulated

PRELUDE = (files("farsum_kernels.backends.cuda") / "prelude.cuh").read_text()

# Gaussian sums: two rows per thread, tiles of 64 columns, the columns shared out over blockIdx.y; then the parts are
# added in order.
GAUSS = (
    PRELUDE
    + r"""
#define TILE 64
extern "C" __global__ void __launch_bounds__(32) part(int M, int N, int chunk, const float* __restrict__ x,
    const float* __restrict__ y, const float* __restrict__ b, float g, float* __restrict__ out) {
    __shared__ float4 tile[TILE];
    float4 a[2];
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        int i = min(2 * 32 * (int)blockIdx.x + 32 * r + (int)threadIdx.x, M - 1);
        a[r] = make_float4(x[3 * i], x[3 * i + 1], x[3 * i + 2], 0.0f);
    }
    int last = min(N, (int)(blockIdx.y + 1) * chunk);
    for (int start = blockIdx.y * chunk; start < last; start += TILE) {
        for (int k = threadIdx.x; k < TILE; k += 32) {
            int j = min(start + k, last - 1);
            tile[k] = make_float4(y[3 * j], y[3 * j + 1], y[3 * j + 2], start + k < last ? b[j] : 0.0f);
        }
        __syncthreads();  // written
        for (int k = 0; k < TILE; ++k) {
            float4 v = tile[k];
            for (int r = 0; r < 2; ++r) {
                float u = a[r].x - v.x, s = a[r].y - v.y, t = a[r].z - v.z;
                sum[r] = fmaf(v.w, fs_exp2(g * fmaf(u, u, fmaf(s, s, t * t))), sum[r]);
            }
        }
        __syncthreads();  // read
    }
    for (int r = 0; r < 2; ++r) {
        int i = 2 * 32 * blockIdx.x + 32 * r + threadIdx.x;
        if (i < M) out[(long long)blockIdx.y * M + i] = sum[r];
    }
}
extern "C" __global__ void combine(int M, int parts, const float* part, float* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= M) return;
    double sum = 0.0;
    for (int k = 0; k < parts; ++k) sum += part[(long long)k * M + i];
    out[i] = (float)sum;
}
"""
)


def gauss(source: str, M: int, N: int, parts: int, order: Order) -> tuple[np.ndarray, np.ndarray]:
    """What the kernels find, and the same in float64."""
    rng = np.random.default_rng(M + N)
    x, y = (rng.uniform(-1, 1, (n, 3)).astype(np.float32) for n in (M, N))
    b = rng.standard_normal(N).astype(np.float32)
    part, out = np.full((parts, M), np.nan, np.float32), np.full(M, np.nan, np.float32)
    module, chunk = compile(source), -(-N // parts)
    grid = (-(-M // 64), parts)
    launch(module, "part", grid, (32,), 0, (M, N, chunk, x, y, b, -1.7 * math.log2(math.e), part), order)
    launch(module, "combine", (-(-M // 64),), (64,), 0, (M, parts, part, out), order)
    squares = ((x[:, None].astype(np.float64) - y) ** 2).sum(-1)
    return out, np.exp(-1.7 * squares) @ b.astype(np.float64)


@pytest.mark.parametrize(("M", "N", "parts"), [(1, 1, 1), (5, 63, 1), (65, 129, 3), (200, 513, 4)])
def test_tiles_and_parts(M: int, N: int, parts: int) -> None:
    found = []
    for order in ORDERS:
        out, truth = gauss(GAUSS, M, N, parts, order)
        np.testing.assert_allclose(out, truth, rtol=0, atol=2e-6 * np.sqrt(N))
        found.append(out)
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


@pytest.mark.parametrize("which", ["written", "read"])
def test_a_missing_barrier_shows_in_the_order_or_as_nan(which: str) -> None:
    broken = GAUSS.replace(f"__syncthreads();  // {which}", "")
    found = [gauss(broken, 65, 129, 1, order)[0] for order in ORDERS]
    assert any(np.isnan(f).any() or not np.array_equal(f, found[0]) for f in found)


BARRIERS = r"""
extern "C" __global__ void early(int n, float* out) {
    if (threadIdx.x >= n) return;
    __syncthreads();
    out[threadIdx.x] = 1.0f;
}
extern "C" __global__ void apart(float* out) {
    if (threadIdx.x < 32) __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1.0f;
}
extern "C" __global__ void half_warp(float* out) {
    float v = out[threadIdx.x];
    if (threadIdx.x % 32 < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);
    out[threadIdx.x] = v;
}
extern "C" __global__ void not_mine(float* out) {
    out[threadIdx.x] = __shfl_sync(0x0000ffffu, out[threadIdx.x], 0);
}
extern "C" __global__ void mixed(float* out) {
    if (threadIdx.x < 16) __syncwarp(0xffff);
    else __syncthreads();
    out[threadIdx.x] = 2.0f;
}
extern "C" __global__ void deep(float* out) {
    volatile float own[1 << 16];
    for (int k = 0; k < 1 << 16; ++k) own[k] = 1.0f;
    out[threadIdx.x] = own[threadIdx.x];
}
extern "C" __global__ void trap(int n) { if (threadIdx.x == n) __trap(); }
"""


@pytest.mark.parametrize(
    ("kernel", "args", "says"),
    [
        ("early", (40,), r"40 threads wait at __syncthreads\(\) of line 4, 24 threads returned"),
        ("apart", (), r"32 threads wait at __syncthreads\(\) of line 8, 32 .* of line 10"),
        ("half_warp", (), r"__shfl_xor_sync\(\) of line 15 with mask ffffffff, 32 threads returned"),
        ("not_mine", (), r"__shfl_sync\(\) of line 19: lane \d+ is not in its own mask 0000ffff"),
        ("mixed", (), r"16 threads returned, 48 threads wait at __syncthreads"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_that_not_all_reach(kernel: str, args: tuple[int, ...], says: str, order: Order) -> None:
    module = compile(BARRIERS)
    with pytest.raises(EmulationError, match=f"{kernel}: .*{says}"):
        launch(module, kernel, (2,), (64,), 0, (*args, np.zeros(64, np.float32)), order)
    launch(module, "trap", (1,), (64,), 0, (99,), order)  # a failed launch leaves nothing behind


def test_trap_says_where() -> None:
    with pytest.raises(EmulationError, match=r"__trap\(\) of line 31 \(block 0,0,0; thread 7,0,0\)"):
        launch(compile(BARRIERS), "trap", (1,), (64,), 0, (7,))


def test_a_stack_that_is_too_small() -> None:
    with pytest.raises(EmulationError, match=r"more than 256 KB of stack|stack-overflow"):
        launch(compile(BARRIERS), "deep", (1,), (4,), 0, (np.zeros(4, np.float32),), "reverse")


SHARED = r"""
extern "C" __global__ void turn(int n, const int* in, int* out) {
    extern __shared__ int words[];
    words[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = words[n - 1 - threadIdx.x];
}
extern "C" __global__ void untouched(unsigned long long* out) {
    __shared__ double fixed[2];
    extern __shared__ __align__(16) unsigned char raw[];
    out[0] = __double_as_longlong(fixed[1]);
    out[1] = ((unsigned long long*)raw)[0];
    fixed[1] = 1.0;
    ((double*)raw)[0] = 1.0;
}
"""


def test_dynamic_shared_memory() -> None:
    values, out = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    launch(compile(SHARED), "turn", (1,), (64,), 256, (64, values, out))
    assert np.array_equal(out, values[::-1])
    with pytest.raises(
        EmulationError, match=r"past the end of its dynamic shared memory|heap-buffer-overflow"
    ):
        launch(compile(SHARED), "turn", (1,), (64,), 252, (64, values, out))


def test_shared_memory_is_poisoned_before_every_block() -> None:
    out = np.zeros(2, np.uint64)
    launch(compile(SHARED), "untouched", (3,), (1,), 16, (out,))
    assert np.isnan(out.view(np.float64)).all()


GRID = r"""
struct Strides { long long of[3]; };
extern "C" __global__ void where(Strides strides, int* out) {
    long long block = blockIdx.x * strides.of[0] + blockIdx.y * strides.of[1] + blockIdx.z * strides.of[2];
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * (blockDim.x * blockDim.y * blockDim.z) + thread] = 1000 * (int)block + thread;
}
extern "C" __global__ void types(float f, double d, int i, long long l, unsigned u, bool b, unsigned short h, double* out) {
    out[0] = f; out[1] = d; out[2] = i; out[3] = (double)l; out[4] = u; out[5] = b; out[6] = h;
}
extern "C" __global__ void count(unsigned* blocks, float* sum, float* out) {
    if (threadIdx.x == 0) {
        atomicAdd(sum, 0.5f);
        __threadfence();
        if (atomicAdd(blocks, 1) == gridDim.x - 1) out[0] = *sum;
    }
    atomicMax((int*)out + 1, (int)threadIdx.x);
    atomicMin((unsigned long long*)out + 1, 7 + threadIdx.x);
    if (atomicCAS((int*)out + 4, 3, 4) == 3) atomicAdd((int*)out + 5, 1);
}
"""


@pytest.mark.parametrize("order", ORDERS)
def test_grids_of_three_sizes(order: Order) -> None:
    out = np.full(2 * 3 * 2 * 24, -1, np.int32)
    launch(compile(GRID), "where", (2, 3, 2), (4, 3, 2), 0, (np.array([1, 2, 6]).tobytes(), out), order)
    expected = 1000 * np.arange(12)[:, None] + np.arange(24)
    assert np.array_equal(out, expected.ravel())


def test_arguments_by_type() -> None:
    out = np.zeros(7)
    launch(compile(GRID), "types", (1,), (1,), 0, (0.1, 0.1, -3, 2**40, 2**32 - 1, True, 65535, out))
    assert np.array_equal(out, [float(np.float32(0.1)), 0.1, -3, 2**40, 2**32 - 1, 1, 65535])
    typed = (
        np.float32(2),
        np.float64(3),
        np.int32(4),
        np.int64(5),
        np.uint32(6),
        np.bool_(False),
        np.uint16(7),
    )
    launch(compile(GRID), "types", (1,), (1,), 0, (*typed, out))
    assert np.array_equal(out, [2, 3, 4, 5, 6, 0, 7])


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (0, np.float64(1)),
        (2, np.int64(1)),
        (4, np.int32(1)),
        (7, np.zeros(7, np.int16)),
        (7, np.zeros(14)[::2]),
        (7, 0),
    ],
)
def test_arguments_that_do_not_fit(place: int, wrong: object) -> None:
    args: list[object] = [0.1, 0.1, 1, 1, 1, True, 1, np.zeros(7)]
    args[place] = wrong
    with pytest.raises(TypeError, match=f"argument {place} of types"):
        launch(compile(GRID), "types", (1,), (1,), 0, args)
    with pytest.raises(TypeError, match="takes 8 arguments, got 7"):
        launch(compile(GRID), "types", (1,), (1,), 0, args[:-1])


@pytest.mark.parametrize("order", ORDERS)
def test_atomic_operations(order: Order) -> None:
    blocks, total, out = np.zeros(1, np.uint32), np.zeros(1, np.float32), np.zeros(8, np.float32)
    integers = out.view(np.int32)
    integers[1:6] = -1, 100, 0, 3, 0
    launch(compile(GRID), "count", (9,), (64,), 0, (blocks, total, out), order)
    assert (blocks[0], total[0], out[0]) == (9, 4.5, 4.5)
    assert [*integers[1:6]] == [63, 7, 0, 4, 1]


def test_a_source_that_does_not_compile_says_why() -> None:
    with pytest.raises(CompilationError, match=r"kernel\.cu:2.*'y' was not declared"):
        compile('extern "C" __global__ void k(float* x) {\n  x[0] = y; }')
