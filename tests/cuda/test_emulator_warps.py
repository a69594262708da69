"""The emulator, on kernels written by hand: warps, tensor cores, asynchronous copies, half precision."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import torch

from tests.cuda.emulate import ORDERS, EmulationError, Order, compile, launch

pytestmark = pytest.mark.emulated

PRELUDE = (files("farsum_kernels.backends.cuda") / "prelude.cuh").read_text()

SHUFFLES = r"""
template <class T> __device__ T shuffled(int what, T v, int by, int width) {
    if (what == 0) return __shfl_sync(0xffffffffu, v, by, width);
    if (what == 1) return __shfl_xor_sync(0xffffffffu, v, by, width);
    if (what == 2) return __shfl_down_sync(0xffffffffu, v, by, width);
    return __shfl_up_sync(0xffffffffu, v, by, width);
}
extern "C" __global__ void ints(int what, int by, int width, const int* in, int* out) {
    out[threadIdx.x] = shuffled(what, in[threadIdx.x], by, width);
}
extern "C" __global__ void doubles(int what, int by, int width, const double* in, double* out) {
    out[threadIdx.x] = shuffled(what, in[threadIdx.x], by, width);
}
// The sum of a warp's values, in every lane of it; only the lower half of warp 1 takes part.
extern "C" __global__ void sums(const float* in, float* out) {
    bool half = threadIdx.x / 32 == 1;
    float sum = in[threadIdx.x];
    if (half && threadIdx.x % 32 >= 16) return;
    unsigned mask = half ? 0xffffu : 0xffffffffu;
    for (int by = half ? 8 : 16; by; by /= 2) sum += __shfl_xor_sync(mask, sum, by);
    __syncwarp(mask);
    out[threadIdx.x] = sum;
}
extern "C" __global__ void votes(const int* in, unsigned* out) {
    int yes = in[threadIdx.x];
    unsigned low = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
    out[4 * threadIdx.x] = __ballot_sync(0xffffffffu, yes);
    out[4 * threadIdx.x + 1] = __any_sync(0xffffffffu, yes) + 2 * __all_sync(0xffffffffu, yes);
    out[4 * threadIdx.x + 2] = __ballot_sync(low, yes);
    out[4 * threadIdx.x + 3] = __any_sync(low, yes) + 2 * __all_sync(low, yes);
}
extern "C" __global__ void outsider(const float* in, float* out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, in[threadIdx.x], 20);
}
"""


def lane_that_is_read(what: int, lane: int, by: int, width: int) -> int:
    start = lane // width * width
    if what == 0:
        return start + by % width
    if what == 1:
        return lane ^ by if lane ^ by < start + width else lane
    if what == 2:
        return lane + by if lane + by < start + width else lane
    return lane - by if lane - by >= start else lane


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("what", range(4), ids=["idx", "xor", "down", "up"])
def test_shuffles(what: int, width: int) -> None:
    module = compile(SHUFFLES)
    for by in (0, 1, 5, 16, 31):
        lanes = [lane_that_is_read(what, lane, by, width) for lane in range(32)]
        for kernel, dtype in (("ints", np.int32), ("doubles", np.float64)):
            values, out = np.arange(100, 164).astype(dtype), np.zeros(64, dtype)
            launch(module, kernel, (1,), (64,), 0, (what, by, width, values, out), "random")
            assert np.array_equal(out, values.reshape(2, 32)[:, lanes].ravel())


@pytest.mark.parametrize("order", ORDERS)
def test_sums_of_warps_and_of_half_a_warp(order: Order) -> None:
    values, out = np.random.default_rng(0).integers(0, 99, 96).astype(np.float32), np.zeros(96, np.float32)
    launch(compile(SHUFFLES), "sums", (1,), (96,), 0, (values, out), order)
    warps = values.reshape(3, 32)
    expected = np.repeat([warps[0].sum(), warps[1, :16].sum(), warps[2].sum()], 32)
    expected[48:64] = 0
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("word", [0, 0xFFFFFFFF, 0x0001FFFF, 0x80000001])
def test_votes(word: int) -> None:
    bits, out = np.array([word >> k & 1 for k in range(32)], np.int32), np.zeros((32, 4), np.uint32)
    launch(compile(SHUFFLES), "votes", (1,), (32,), 0, (bits, out))

    def verdict(lanes: np.ndarray) -> int:
        return int(lanes.any()) + 2 * int(lanes.all())

    assert (out[:, 0] == word).all() and (out[:, 1] == verdict(bits)).all()
    assert (out[:16, 2] == word & 0xFFFF).all() and (out[16:, 2] == word & 0xFFFF0000).all()
    assert (out[:16, 3] == verdict(bits[:16])).all() and (out[16:, 3] == verdict(bits[16:])).all()


def test_a_lane_outside_the_mask_gives_nan() -> None:
    out = np.zeros(32, np.float32)
    launch(compile(SHUFFLES), "outsider", (1,), (32,), 0, (np.ones(32, np.float32), out))
    assert np.isnan(out[:16]).all()


# C (M×N) = A (M×K, row major) Bᵀ (N×K), a warp for each tile of 16 × 8. Fragments by the table of the PTX manual.
PRODUCT = (
    PRELUDE
    + r"""
extern "C" __global__ void product(int N, int K, const unsigned* a, const unsigned* b, float* c, int brain) {
    int lane = threadIdx.x, g = lane >> 2, q = lane & 3, row = 16 * blockIdx.x, column = 8 * blockIdx.y;
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int k = 0; k < K; k += 16) {
        const unsigned *top = a + ((row + g) * K + k) / 2, *bottom = a + ((row + g + 8) * K + k) / 2;
        const unsigned* right = b + ((column + g) * K + k) / 2;
        unsigned left[4] = {top[q], bottom[q], top[q + 4], bottom[q + 4]}, rest[2] = {right[q], right[q + 4]};
        if (brain) fs_mma_bf16(d, left, rest);
        else fs_mma_f16(d, left, rest);
    }
    for (int e = 0; e < 4; ++e) c[(row + g + e / 2 * 8) * N + column + 2 * q + e % 2] = d[e];
}
extern "C" __global__ void alone(float* c) {
    float d[4] = {};
    unsigned left[4] = {}, right[2] = {};
    if (threadIdx.x < 16) fs_mma_f16(d, left, right);
    c[threadIdx.x] = d[0];
}
"""
)


def product(a: np.ndarray, b: np.ndarray, brain: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A Bᵀ as the tensor cores find it, in float64 of the rounded inputs, and the sum of the absolute products."""
    kind = torch.bfloat16 if brain else torch.float16
    halves = [torch.from_numpy(m).to(kind) for m in (a, b)]
    words = [h.view(torch.int16).numpy().view(np.uint32) for h in halves]
    out = np.full((len(a), len(b)), np.nan, np.float32)
    grid = (len(a) // 16, len(b) // 8)
    launch(
        compile(PRODUCT), "product", grid, (32,), 0, (len(b), a.shape[1], *words, out, int(brain)), "random"
    )
    exact = [h.double().numpy() for h in halves]
    return out, exact[0] @ exact[1].T, abs(exact[0]) @ abs(exact[1]).T


@pytest.mark.parametrize("brain", [False, True], ids=["f16", "bf16"])
def test_tensor_cores(brain: bool) -> None:
    rng = np.random.default_rng(0)
    out, truth, _ = product(rng.integers(-8, 9, (48, 64)) * 1.0, rng.integers(-8, 9, (24, 64)) * 1.0, brain)
    assert np.array_equal(out, truth), "small integers are exact in any order"
    out, truth, size = product(rng.standard_normal((48, 64)), rng.standard_normal((24, 64)), brain)
    assert (abs(out - truth) <= 64 * 2.0**-24 * size).all() and not np.array_equal(out, truth)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_tensor_cores_cut_off_and_keep_infinities() -> None:
    a, b = np.zeros((16, 16)), np.ones((8, 16))
    a[:, 0], b[:, 0] = 1024, 1024
    a[:, 1:4] = (
        2.0**-5
    )  # three of them would round 2^20 up; each lies below the last bit that is kept beside it
    a[1, 4] = np.inf
    a[2, 5], b[:, 5] = np.inf, 0
    out, _, _ = product(a, b, False)
    assert (out[0] == 2.0**20).all() and np.isposinf(out[1]).all() and np.isnan(out[2]).all()


def test_tensor_cores_need_the_whole_warp() -> None:
    with pytest.raises(EmulationError, match=r"wait at fs_mma_f16\(\) of line \d+"):
        launch(compile(PRODUCT), "alone", (1,), (32,), 0, (np.zeros(32, np.float32),))


# Sums of the columns of a matrix whose rows arrive by two buffers.
COPIES = (
    PRELUDE
    + r"""
extern "C" __global__ void columns(int rows, const float* in, float* out) {
    __shared__ __align__(16) float buffer[2][128];
    int k = threadIdx.x;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    fs_copy_async16(&buffer[0][4 * k], in + 4 * k);
    fs_copy_commit();
    for (int row = 0; row < rows; ++row) {
        if (row + 1 < rows) fs_copy_async16(&buffer[(row + 1) & 1][4 * k], in + 128 * (row + 1) + 4 * k);
        fs_copy_commit();
        fs_copy_wait<1>();
        __syncthreads();  // landed
        for (int n = 0; n < 4; ++n) sum[n] += buffer[row & 1][32 * n + 31 - k];
        __syncthreads();  // read
    }
    for (int n = 0; n < 4; ++n) out[32 * n + 31 - k] = sum[n];
}
extern "C" __global__ void words(int shift, const float* in, float* out) {
    __shared__ __align__(16) float buffer[36];
    fs_copy_async4(buffer + threadIdx.x, in + threadIdx.x + shift);
    fs_copy_commit();
    fs_copy_wait<0>();
    __syncthreads();
    out[threadIdx.x] = buffer[31 - threadIdx.x];
}
extern "C" __global__ void skew(const float* in, float* out) {
    __shared__ __align__(16) float buffer[132];
    fs_copy_async16(buffer + 4 * threadIdx.x + 1, in + 4 * threadIdx.x);
}
"""
)


def columns(source: str, order: Order, rows: int = 7) -> bool:
    """Whether the kernel finds the sums of the columns."""
    values = np.random.default_rng(rows).integers(0, 99, (rows, 128)).astype(np.float32)
    out = np.zeros(128, np.float32)
    launch(compile(source), "columns", (1,), (32,), 0, (rows, values, out), order)
    return np.array_equal(out, values.sum(0))


@pytest.mark.parametrize("order", ORDERS)
def test_copies_in_two_buffers(order: Order) -> None:
    assert all(columns(COPIES, order, rows) for rows in (1, 2, 7))


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("        fs_copy_wait<1>();\n", ""),
        ("fs_copy_wait<1>", "fs_copy_wait<2>"),
        ("        fs_copy_commit();\n        fs_copy_wait<1>();\n", "        fs_copy_wait<1>();\n"),
        ("__syncthreads();  // landed", ""),
    ],
    ids=["no wait", "a wait for too little", "a group that is not closed", "no barrier after the wait"],
)
def test_a_copy_that_has_not_landed_is_nan(line: str, instead: str) -> None:
    assert line in COPIES
    for order in ORDERS:
        assert not columns(COPIES.replace(line, instead), order)


def test_a_buffer_that_is_overwritten_too_early_shows_in_some_order() -> None:
    """Without the second barrier a warp's copies overwrite what another still reads; here, what a lane still reads."""
    broken = COPIES.replace("__syncthreads();  // read", "")
    assert not all(columns(broken, order) for order in ORDERS)


def test_copies_of_a_word_and_their_alignment() -> None:
    values, out = np.arange(33, dtype=np.float32), np.zeros(32, np.float32)
    launch(compile(COPIES), "words", (1,), (32,), 0, (1, values, out))
    assert np.array_equal(out, values[:0:-1])
    with pytest.raises(EmulationError, match=r"copy of 16 bytes of line \d+ is not aligned"):
        launch(compile(COPIES), "skew", (1,), (32,), 0, (np.zeros(128, np.float32), out))


NUMBERS = (
    PRELUDE
    + r"""
extern "C" __global__ void from(int n, const unsigned short* in, float* half, float* brain) {
    for (int k = threadIdx.x; k < n; k += blockDim.x) half[k] = fs_from_half(in[k]), brain[k] = fs_from_bfloat16(in[k]);
}
extern "C" __global__ void to(int n, const float* in, unsigned short* half, unsigned short* brain) {
    for (int k = threadIdx.x; k < n; k += blockDim.x) half[k] = fs_to_half(in[k]), brain[k] = fs_to_bfloat16(in[k]);
}
extern "C" __global__ void special(int n, const float* in, float* exp2, float* log2, float* rsqrt, float* rcp) {
    for (int k = threadIdx.x; k < n; k += blockDim.x) {
        exp2[k] = fs_exp2(in[k]);
        log2[k] = fs_log2(in[k]);
        rsqrt[k] = fs_rsqrt(in[k]);
        rcp[k] = fs_rcp(in[k]);
    }
}
"""
)


def test_every_half_becomes_its_float() -> None:
    bits = np.arange(65536).astype(np.uint16)
    half, brain = np.zeros(65536, np.float32), np.zeros(65536, np.float32)
    launch(compile(NUMBERS), "from", (1,), (32,), 0, (65536, bits, half, brain))
    np.testing.assert_array_equal(half, bits.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(
        brain, torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    )


def test_floats_become_the_nearest_half() -> None:
    edges = np.arange(65536).astype(np.uint16).view(np.float16).astype(np.float32)
    edges = edges[np.isfinite(edges)]
    between = (edges[:-1].astype(np.float64) + edges[1:]).astype(np.float32) / 2
    ties = np.concatenate(
        [between, np.nextafter(between, np.float32(9e9)), np.nextafter(between, np.float32(-9e9))]
    )
    raw = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate(
        [edges, ties, raw, np.array([65519.99, 65520, np.inf, -np.inf, -0.0], np.float32)]
    )
    values = values.astype(np.float32)
    half, brain = (np.zeros(len(values), np.uint16) for _ in range(2))
    launch(compile(NUMBERS), "to", (1,), (32,), 0, (len(values), values, half, brain))
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(half.view(np.float16), values.astype(np.float16))
    expected = torch.from_numpy(values).bfloat16()
    np.testing.assert_array_equal(
        torch.from_numpy(brain.view(np.int16)).view(torch.bfloat16).float(), expected.float()
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_special_functions_flush_subnormal_numbers() -> None:
    tiny, huge = 2.0**-130, 2.0**127
    x = np.array(
        [0.3, 5.5, -126.5, -125.5, 128, -np.inf, np.inf, np.nan, 0, -0.0, tiny, -tiny, huge, -2], np.float32
    )
    out = np.zeros((4, len(x)), np.float32)
    launch(compile(NUMBERS), "special", (1,), (32,), 0, (len(x), x, *out))
    normal = np.where(abs(x) < 2.0**-126, np.copysign(0, x), x).astype(np.float64)
    for found, truth in zip(
        out, (np.exp2(normal), np.log2(normal), 1 / np.sqrt(normal), 1 / normal), strict=True
    ):
        truth = np.where(abs(truth) < 2.0**-126, np.copysign(0, truth), truth).astype(np.float32)
        np.testing.assert_allclose(found, truth, rtol=2.0**-22)
        assert np.array_equal(np.signbit(found[truth == 0]), np.signbit(truth[truth == 0]))
