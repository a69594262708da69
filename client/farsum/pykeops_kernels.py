"""Dense kernels and their derivatives, as `pykeops.numpy.utils` names them: small, for comparisons.

Every function here holds all pairs in memory at once. In what follows q is the squared distance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from farsum.arrays import Array
from farsum_kernels.errors import UnknownOperation

Radial = Callable[[Array, float], Array]
Kind = TypeVar("Kind")

# name: the kernel, its logarithm, its derivative in q
# fmt: off
_RADIAL: dict[str, tuple[Radial, Radial, Radial]] = {
    "gaussian": (
        lambda q, s: np.exp(-q / s**2),          lambda q, s: -q / s**2,
        lambda q, s: -np.exp(-q / s**2) / s**2),
    "laplacian": (
        lambda q, s: np.exp(-np.sqrt(q) / s),    lambda q, s: -np.sqrt(q) / s,
        lambda q, s: -np.exp(-np.sqrt(q) / s) / (2 * s * np.sqrt(q))),
    "cauchy": (
        lambda q, s: 1 / (1 + q / s**2),         lambda q, s: -np.log1p(q / s**2),
        lambda q, s: -1 / (s * (1 + q / s**2))**2),
    "inverse_multiquadric": (
        lambda q, s: 1 / np.sqrt(1 + q / s**2),  lambda q, s: -np.log1p(q / s**2) / 2,
        lambda q, s: -(1 + q / s**2)**-1.5 / (2 * s**2)),
}

# name: the kernel of the cosine c between two unit vectors
_SPHERICAL: dict[str, Radial] = {
    "linear":              lambda c, s: c,
    "binet":               lambda c, s: c**2,
    "gaussian_oriented":   lambda c, s: np.exp(-2 * (1 - c) / s**2),
    "gaussian_unoriented": lambda c, s: np.exp(-2 * (1 - c**2) / s**2),
}
# fmt: on


def differences(x: Array, y: Array) -> Array:
    """x_i - y_j by component: (M, D) and (N, D) give (D, M, N)."""
    return x.T[:, :, None] - y.T[:, None, :]


def squared_distances(x: Array, y: Array) -> Array:
    """|x_i - y_j|²: (M, D) and (N, D) give (M, N)."""
    found: Array = (differences(x, y) ** 2).sum(0)
    return found


def np_kernel(x: Array, y: Array, s: float, kernel: str) -> Array:
    """k(x_i, y_j), (M, N), for a kernel of scale s: gaussian, laplacian, cauchy or inverse_multiquadric.

    With r the distance they are exp(-r²/s²), exp(-r/s), 1/(1+r²/s²) and 1/sqrt(1+r²/s²).

    >>> np_kernel(np.zeros((1, 2)), np.ones((1, 2)), 1.0, "cauchy")
    array([[0.33333333]])
    """
    return _radial(kernel)[0](squared_distances(x, y), s)


def torch_kernel(x: Any, y: Any, s: float, kernel: str) -> Any:
    """`np_kernel` of tensors, differentiable: `pykeops.torch.utils` names it so."""
    _radial(kernel)
    q = (x[:, None] - y[None]).square().sum(-1)
    if kernel == "gaussian":
        return (-q / s**2).exp()
    if kernel == "laplacian":
        return (-q.sqrt() / s).exp()
    return 1 / (1 + q / s**2) if kernel == "cauchy" else (1 + q / s**2).rsqrt()


def log_np_kernel(x: Array, y: Array, s: float, kernel: str) -> Array:
    """The logarithm of `np_kernel`, (M, N)."""
    return _radial(kernel)[1](squared_distances(x, y), s)


def grad_np_kernel(x: Array, y: Array, s: float, kernel: str) -> Array:
    """The derivative of `np_kernel` in the squared distance, (M, N); -inf for a laplacian at 0."""
    with np.errstate(divide="ignore"):
        return _radial(kernel)[2](squared_distances(x, y), s)


def np_kernel_sphere(nalpha: Array, nbeta: Array, s: float, kernel: str) -> Array:
    """A kernel (M, N) of unit vectors (M, D) and (N, D): linear, binet, gaussian_oriented, gaussian_unoriented."""
    return _named(_SPHERICAL, kernel)(nalpha @ nbeta.T, s)


def chain_rules(q: Array, ax: Array, by: Array, Aa: Array, p: Array) -> Array:
    """The gradient in ax_i of Σ_j k(|ax_i - by_j|²) <q_i, p_j>: 2 Σ_j Aa_ij <q_i, p_j> (ax_i - by_j), (M, D).

    q    (M, E)
    ax   (M, D)
    by   (N, D)
    Aa   (M, N) the derivative of the kernel in the squared distance
    p    (N, E)
    """
    found: Array = 2 * np.einsum("ij,dij->id", Aa * (q @ p.T), differences(ax, by))
    return found


def log_sum_exp(mat: Array, axis: int = 0) -> Array:
    """log Σ exp along an axis, safe from overflow."""
    return np.asarray(np.logaddexp.reduce(mat, axis=axis))


def _radial(kernel: str) -> tuple[Radial, Radial, Radial]:
    return _named(_RADIAL, kernel)


def _named(table: dict[str, Kind], kernel: str) -> Kind:
    if kernel not in table:
        raise UnknownOperation(f"kernel {kernel!r} is not one of {', '.join(table)}")
    return table[kernel]
