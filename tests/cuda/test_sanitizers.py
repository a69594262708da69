"""Kernels under AddressSanitizer and UBSan, each launch in a process of its own: what is out of bounds is named."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda.emulate import ORDERS, EmulationError, Order, compile, launch

pytestmark = pytest.mark.emulated

# Rows of 32 words turned around in shared memory, twice; the second array lies beside the first.
SOURCE = r"""
extern "C" __global__ void turn(int N, const float* __restrict__ in, float* __restrict__ out, int past) {
    __shared__ float row[32];
    __shared__ float again[32];
    extern __shared__ float sums[];
    float* flat = row;
    int k = threadIdx.x, from = 32 * blockIdx.x + k;
    row[k] = from < N ? in[from] : 0.0f;
    sums[k] = 0.0f;
    __syncthreads();
    float v = flat[31 - k + past];
    again[k] = __shfl_xor_sync(0xffffffffu, v, 31);
    __syncthreads();
    if (from < N) out[from] = row[31 - k] - again[31 - k];
}
extern "C" __global__ void global(const float* in, float* out, int k) { out[threadIdx.x] = in[threadIdx.x + k]; }
extern "C" __global__ void indexed(const float* in, float* out, int k) {
    __shared__ float row[32];
    row[threadIdx.x + k] = in[threadIdx.x];
    out[threadIdx.x] = row[threadIdx.x + k];
}
extern "C" __global__ void local(const float* in, float* out, int k) {
    float own[4] = {1.0f, 2.0f, 3.0f, in[0]};
    float* p = own;
    __syncthreads();
    out[threadIdx.x] = p[k];
}
extern "C" __global__ void vector(const float* in, float* out, int k) {
    out[threadIdx.x] = ((const float4*)(in + k))[0].x;
}
extern "C" __global__ void overflow(const float* in, float* out, int k) { out[threadIdx.x] = in[0] + (k * k > k); }
extern "C" __global__ void early(const float* in, float* out, int k) {
    float own[4] = {in[0], in[1], in[2], in[3]};
    if (threadIdx.x == 5) return;
    __syncthreads();
    out[threadIdx.x] = own[k];
}
"""


@pytest.mark.parametrize("order", ORDERS)
def test_a_sound_kernel_is_clean(order: Order) -> None:
    values, out = np.arange(45, dtype=np.float32), np.full(45, np.nan, np.float32)
    padded = np.zeros(64, np.float32)
    padded[:45] = values
    launch(compile(SOURCE, sanitize=True), "turn", (2,), (32,), 128, (45, values, out, 0), order)
    turned = padded.reshape(2, 32)[:, ::-1]
    assert np.array_equal(out, (turned - turned).ravel()[:45])


FAULTS = [
    ("turn", (45, 1), r"AddressSanitizer: global-buffer-overflow(.|\n)*turn.*kernel\.cu:11(.|\n)*'row'"),
    ("turn", (46, 0), r"AddressSanitizer: heap-buffer-overflow(.|\n)*turn.*kernel\.cu:8"),
    ("global", (14,), r"AddressSanitizer: heap-buffer-overflow(.|\n)*global.*kernel\.cu:16"),
    ("indexed", (1,), r"kernel\.cu:19.*runtime error: index 32 out of bounds for type 'float \[32\]'"),
    ("local", (4,), r"AddressSanitizer: stack-buffer-overflow(.|\n)*local.*kernel\.cu:26"),
    ("vector", (1,), r"kernel\.cu:29.*runtime error: member access within misaligned address"),
    ("overflow", (65536,), r"kernel\.cu:31.*runtime error: signed integer overflow"),
    ("early", (0,), r"31 threads wait at __syncthreads\(\) of line 35, 1 threads returned"),
]


@pytest.mark.parametrize(
    ("kernel", "args", "says"), FAULTS, ids=[f"{kernel}-{args}" for kernel, args, _ in FAULTS]
)
def test_a_fault_is_named(kernel: str, args: tuple[int, ...], says: str) -> None:
    values, out = np.ones(45, np.float32), np.zeros(45, np.float32)
    all_args = (args[0], values, out, args[1]) if kernel == "turn" else (values, out, *args)
    with pytest.raises(EmulationError, match=says):
        launch(compile(SOURCE, sanitize=True), kernel, (2 if kernel == "turn" else 1,), (32,), 128, all_args)


def test_one_array_given_twice_is_one_array() -> None:
    values = np.arange(32, dtype=np.float32)
    source = 'extern "C" __global__ void add(float* a, const float* b, float* c) { a[threadIdx.x] += b[threadIdx.x]; }'
    launch(compile(source, sanitize=True), "add", (1,), (32,), 0, (values, values, None))
    assert np.array_equal(values, 2 * np.arange(32))
