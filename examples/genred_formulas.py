"""Formulas as text: `Genred`, `generic_sum`, `generic_logsumexp`, `generic_argkmin`, and a gradient by `Grad`.

Every number is compared with dense NumPy: python examples/genred_formulas.py
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from scipy.special import logsumexp

from farsum.numpy import Genred, generic_argkmin, generic_argmin, generic_logsumexp, generic_sum

RNG = np.random.default_rng(2)
POINTS = ["x = Vi(3)", "y = Vj(3)"]


def main() -> int:
    gaussian_sums()
    mixture_log_likelihood()
    neighbours()
    gradient()
    batches()
    return 0


def gaussian_sums(M: int = 800, N: int = 1_000) -> None:
    """One formula, a parameter in it, reduced over j and over i."""
    x, y, b = RNG.random((M, 3)), RNG.random((N, 3)), RNG.random((N, 2))
    g = np.array([4.0])
    K = np.exp(-4 * squares(x, y))

    formula, arguments = "Exp(-g * SqDist(x, y))", ["g = Pm(1)", *POINTS]
    over_j, over_i = (Genred(formula, arguments, reduction_op="Sum", axis=axis) for axis in (1, 0))
    check("Genred over j", over_j(g, x, y), K.sum(1)[:, None])
    check("Genred over i", over_i(g, x, y), K.sum(0)[:, None])

    # The output says along what the result is indexed, in place of the axis.
    density = generic_sum(formula + " * b", "a = Vi(2)", *arguments, "b = Vj(2)")
    check("generic_sum", density(g, x, y, b), K @ b)
    largest = Genred("SqDist(x, y)", POINTS, "Max_ArgMax", axis=1)
    values, indices = largest(x, y)
    check("a reduction of two results, the values", values, squares(x, y).max(1)[:, None])
    check("and the indices", indices, squares(x, y).argmax(1)[:, None])


def mixture_log_likelihood(M: int = 500, N: int = 40) -> None:
    """The log-likelihood of points under a mixture of Gaussians, from the logarithms of its weights."""
    x, centres = RNG.standard_normal((M, 3)), RNG.standard_normal((N, 3))
    weights = RNG.dirichlet(np.ones(N))[:, None]
    arguments = [*POINTS, "g = Pm(1)", "b = Vj(1)"]
    g = np.array([20.0])  # far enough from the centres that exp alone would lose digits

    likelihood = generic_logsumexp("b - g*SqDist(x, y)", "a = Vi(1)", *arguments)
    truth = logsumexp(np.log(weights).T - 20 * squares(x, centres), axis=1)[:, None]
    check("generic_logsumexp", likelihood(x, centres, g, np.log(weights)), truth)

    weighted = generic_logsumexp("-g*SqDist(x, y)", "a = Vi(1)", *arguments, formula2="b")
    check("with the weights as formula2", weighted(x, centres, g, weights), truth)


def neighbours(M: int = 5, N: int = 20_000, D: int = 100) -> None:
    """Nearest neighbours in dimension 100."""
    x, y = RNG.standard_normal((M, D)), RNG.standard_normal((N, D))
    arguments = [f"x = Vi({D})", f"y = Vj({D})"]
    order = np.argsort(squares(x, y), axis=1)

    three = generic_argkmin("SqDist(x, y)", "a = Vi(3)", *arguments)(x, y)
    check("generic_argkmin", three, order[:, :3])
    nearest = generic_argmin("SqDist(x, y)", "a = Vi(1)", *arguments)(x, y)
    check("generic_argmin", nearest, order[:, :1])
    lengths = np.linalg.norm(x[:, None, :] - y[three], axis=-1)
    check("the distance to the nearest", np.linalg.norm(x - y[nearest[:, 0]], axis=-1), lengths[:, 0])
    say("distances to the three nearest of the first point: " + ", ".join(f"{d:.3f}" for d in lengths[0]))


def gradient(M: int = 300, N: int = 400) -> None:
    """Grad(f, x, e): the derivative of f·e by x; reduced, that of the sum of e_i a_i."""
    x, y = RNG.random((M, 3)), RNG.random((N, 3))
    b, e = RNG.random((N, 1)), RNG.standard_normal((M, 1))
    arguments = [*POINTS, "b = Vj(1)"]
    formula = "Exp(-SqDist(x, y)) * b"

    by_x = Genred(f"Grad({formula}, x, e)", [*arguments, "e = Vi(1)"], axis=1)(x, y, b, e)
    terms = -2 * (x[:, None, :] - y) * (np.exp(-squares(x, y))[..., None] * b)
    check("gradient by x", by_x, e * terms.sum(1))
    by_y = Genred(f"Grad({formula}, y, e)", [*arguments, "e = Vi(1)"], axis=0)(x, y, b, e)
    check("gradient by y", by_y, -(e[:, None] * terms).sum(0))

    total, h = generic_sum(formula, "a = Vi(1)", *arguments), 1e-5
    direction = RNG.standard_normal(x.shape)
    slope = (e * (total(x + h * direction, y, b) - total(x - h * direction, y, b))).sum() / (2 * h)
    check("against finite differences", np.vdot(by_x, direction), slope, 1e-7)


def batches(B: int = 6, M: int = 50, N: int = 70) -> None:
    """Axes before the last two are batches; an array that lacks them serves all."""
    x, y, p = RNG.random((B, M, 3)), RNG.random((B, N, 3)), RNG.random((B, 1))
    scaled = Genred("Exp(-p * SqDist(x, y))", [*POINTS, "p = Pm(1)"], axis=1)
    K = np.exp(-p[..., None] * squares(x, y))
    check(f"{B} batches", scaled(x, y, p), K.sum(2)[..., None])


def squares(x: Any, y: Any) -> Any:
    """The squared distances of all pairs, dense."""
    return np.square(x[..., :, None, :] - y[..., None, :, :]).sum(-1)


# ── words ─────────────────────────────────────────────────────────────────────────────────────────


def check(what: str, found: Any, truth: Any, tolerance: float = 1e-11) -> None:
    """Print how far apart the two are; end the script where that is too far."""
    if np.shape(found) != np.shape(truth):
        sys.exit(f"{what}: the shape is {np.shape(found)} and should be {np.shape(truth)}")
    error = np.abs(np.subtract(found, truth)).max() / np.abs(truth).max()
    if not error <= tolerance:
        sys.exit(f"{what}: wrong, the relative error is {error:.1e}")
    say(f"{what}: relative error {error:.0e}")


def say(text: str) -> None:
    print(f"  {text}")


if __name__ == "__main__":
    sys.exit(main())
