"""The dense kernels of arrays that pykeops has beside its formulas: their logarithms and derivatives."""

from __future__ import annotations

import numpy as np
import pytest

from farsum.pykeops_kernels import (
    chain_rules,
    differences,
    grad_np_kernel,
    log_np_kernel,
    log_sum_exp,
    np_kernel,
    np_kernel_sphere,
    squared_distances,
)
from farsum_kernels.errors import UnknownOperation

rng = np.random.default_rng(0)
x, y = rng.random((6, 3)), rng.random((5, 3))
square = ((x[:, None] - y) ** 2).sum(-1)
VALUES = {
    "gaussian": lambda q, s: np.exp(-q / s**2),
    "laplacian": lambda q, s: np.exp(-np.sqrt(q) / s),
    "cauchy": lambda q, s: 1 / (1 + q / s**2),
    "inverse_multiquadric": lambda q, s: 1 / np.sqrt(1 + q / s**2),
}


@pytest.mark.parity("G-68")
@pytest.mark.parametrize("kernel", VALUES)
def test_kernels_their_logarithms_and_derivatives(kernel: str) -> None:
    k, s, h = VALUES[kernel], 0.7, 1e-6
    np.testing.assert_allclose(np_kernel(x, y, s, kernel), k(square, s), rtol=1e-13)
    np.testing.assert_allclose(log_np_kernel(x, y, s, kernel), np.log(k(square, s)), rtol=1e-12)
    slope = (k(square + h, s) - k(square - h, s)) / (2 * h)
    np.testing.assert_allclose(grad_np_kernel(x, y, s, kernel), slope, rtol=1e-6)
    # chain_rules is the gradient of sum_ij k(|x_i - y_j|²) <q_i, p_j> in x.
    q, p = rng.random((6, 2)), rng.random((5, 2))

    def total(points):
        return (np_kernel(points, y, s, kernel) * (q @ p.T)).sum()

    want = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[at] = h
        want[at] = (total(x + step) - total(x - step)) / (2 * h)
    np.testing.assert_allclose(
        chain_rules(q, x, y, grad_np_kernel(x, y, s, kernel), p), want, rtol=1e-5, atol=1e-8
    )


@pytest.mark.parity("G-68")
def test_the_other_helpers() -> None:
    np.testing.assert_allclose(squared_distances(x, y), square, rtol=1e-13)
    np.testing.assert_array_equal(differences(x, y), np.moveaxis(x[:, None] - y, 2, 0))
    for axis in (0, 1):
        np.testing.assert_allclose(log_sum_exp(square, axis), np.log(np.exp(square).sum(axis)))
    assert log_sum_exp(np.array([1000.0, 1000.0])) == pytest.approx(1000 + np.log(2))
    assert grad_np_kernel(x[:1], x[:1], 1.0, "laplacian") == -np.inf
    u, v = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    np.testing.assert_allclose(np_kernel_sphere(u, v, 1.0, "binet"), (u @ v.T) ** 2)
    oriented = np_kernel_sphere(u, v, 0.5, "gaussian_oriented")
    np.testing.assert_allclose(oriented, np_kernel(u, v, 0.5, "gaussian"))
    with pytest.raises(UnknownOperation, match="gaussian, laplacian"):
        np_kernel(x, y, 1.0, "energy")
