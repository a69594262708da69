"""Powers of two by other means than the special function unit: a table for float64, a polynomial for float32."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

from farsum_kernels.backends import reference
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.job import Spec, check_arrays
from tests.cuda import emulate
from tests.cuda.cases import WORKLOADS, Case, laplace, over_distances, summed, times
from tests.cuda.driver import EmulatedDriver
from tests.cuda.emulate import ORDERS, Order

pytestmark = pytest.mark.emulated

KERNELS = """
extern "C" __global__ void single(const float* x, float* out, int count) {
    for (int n = threadIdx.x; n < count; n += blockDim.x) out[n] = fs_exp2_polynomial(x[n]);
}
template <bool DOWN> __device__ void table(const double* x, double* out, int count) {
    __shared__ double powers[FS_POWERS];
    fs_fill_powers(powers);
    __syncthreads();
    for (int n = threadIdx.x; n < count; n += blockDim.x) out[n] = fs_exp2_by<DOWN>(powers, x[n]);
}
extern "C" __global__ void wide(const double* x, double* out, int count) { table<false>(x, out, count); }
extern "C" __global__ void down(const double* x, double* out, int count) { table<true>(x, out, count); }
"""


def powers(kernel: str, x: np.ndarray) -> np.ndarray:
    folder = files("farsum_kernels.backends.cuda")
    text = "\n".join(folder.joinpath(name).read_text() for name in ("prelude.cuh", "numbers.cuh"))
    out = np.empty_like(x)
    emulate.launch(emulate.compile(text + KERNELS), kernel, (1,), (64,), 0, (x, out, len(x)))
    return out


def test_the_polynomial() -> None:
    x = -np.random.default_rng(0).random(20_000).astype(np.float32) * 126
    want = np.exp2(x.astype(np.float64))
    assert np.abs(powers("single", x) / want - 1).max() < 1.7e-7
    ends = np.array([0.0, -0.0, -1.0, -125.9, -127.5, -1e30, -np.inf, np.nan], np.float32)
    got = powers("single", ends)
    np.testing.assert_array_equal(got[:3], [1.0, 1.0, 0.5])
    np.testing.assert_array_equal(got[4:], [0.0, 0.0, 0.0, np.nan])


@pytest.mark.parametrize("kernel", ["wide", "down"])
def test_the_table(kernel: str) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([-rng.random(20_000) * 1022, -rng.random(5_000)])
    if kernel == "wide":
        x = np.concatenate([x, rng.random(20_000) * 1023.9])
    assert np.abs(powers(kernel, x) / np.exp2(x) - 1).max() < 3 * 2.0**-53
    ends = np.array([0.0, -1.0, -1021.5, -1e300, -np.inf, np.nan, -np.nan, 1023.0, 1024.0, np.inf])
    got = powers(kernel, ends[: 10 if kernel == "wide" else 7])
    np.testing.assert_allclose(got[:3], np.exp2(ends[:3]), rtol=4e-16)
    np.testing.assert_array_equal(got[3:7], [0.0, 0.0, np.nan, np.nan])
    if kernel == "wide":
        np.testing.assert_array_equal(got[7:], [2.0**1023, np.inf, np.inf])


def run(spec: Spec, arrays: dict[int, np.ndarray], order: Order = "forward") -> np.ndarray:
    launch = Kernel(spec, EmulatedDriver(order)).launch(arrays, check_arrays(spec, arrays))
    while launch.step() < 1:
        pass
    return launch.results()[0]


@pytest.mark.parametrize("name", ["W2", "W3"])
def test_sums_in_every_order_of_threads(name: str) -> None:
    case = Case(name, WORKLOADS[name], 1000, 131)
    arrays = case.arrays()
    found = [run(case.spec, arrays, order) for order in ORDERS]
    want = reference.run(case.spec, {n: a.astype(np.float64) for n, a in arrays.items()})[0]
    np.testing.assert_allclose(found[0], want, rtol=1e-14 if name == "W2" else 3e-6)
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    layout = Kernel(case.spec, EmulatedDriver()).layouts[0]
    assert layout.powers if name == "W2" else 0 < layout.polynomials < layout.rows


def test_numbers_that_are_none() -> None:
    for name in ("W2", "W3"):
        arrays = Case(name, WORKLOADS[name], 1000, 70).arrays()
        arrays[0][3, 1], arrays[0][200], arrays[0][990, 0] = np.nan, np.inf, 1e30
        want = reference.run(WORKLOADS[name], {n: a.astype(np.float64) for n, a in arrays.items()})[0]
        np.testing.assert_allclose(run(WORKLOADS[name], arrays), want, rtol=3e-6)


def test_shifted_sums_take_the_table_too() -> None:
    spec = over_distances("LogSumExp", 3, "float64")
    arrays = Case("lse", spec, 60, 300).arrays()
    arrays[1][5] = 1e4
    np.testing.assert_allclose(run(spec, arrays), reference.run(spec, arrays)[0], rtol=1e-14)
    assert Kernel(spec, EmulatedDriver()).layouts[0].powers


def test_where_a_polynomial_is_no_gain_or_no_help() -> None:
    x, y = variable(0, 3, I), variable(1, 3, J)
    root = node("Norm2", node("Subtract", x, y))
    for spec in (
        WORKLOADS["W1"],  # one special function for each pair: others of its instructions bind
        summed(node("Exp", root)),  # may overflow
        Spec(laplace(3), "ArgMax", 1, "float32"),  # an index would tell rows apart
        summed(times(laplace(3)), "float64"),
    ):
        assert not any(layout.polynomials for layout in Kernel(spec, EmulatedDriver()).layouts)
