"""Distances from norms and scalar products: taken where the error is known to be small, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from farsum_kernels.backends import certified
from farsum_kernels.backends.cpu.kernel import Kernel
from farsum_kernels.backends.cpu.native import machine
from farsum_kernels.formula.expanded import expanded
from farsum_kernels.formula.rewrite import simplified
from farsum_kernels.formula.text import parse
from farsum_kernels.job import Spec, check_arrays

rng = np.random.default_rng(0)
M, N = 1100, 1300
GAUSS = "Exp(-g * SqDist(x, y))"


def aliases(d: int) -> list[str]:
    return [
        f"x = Vi({d})",
        f"y = Vj({d})",
        "b = Vj(1)",
        "w = Vj(3)",
        "h = Vi(1)",
        "g = Pm(1)",
        "e = Vi(1)",
        f"z = Vj({d})",
    ]


def scales(kind: str, formula: str, d: int = 10) -> list[str] | None:
    """The scales of the distance in the exponents, as text; None for a formula that stays as it is."""
    found = expanded([(kind, simplified(parse(formula, aliases(d)).root))])
    return sorted(map(repr, found.scales)) if found else None


G = "Var(5,1,2)"


@pytest.mark.parametrize(
    ("kind", "formula", "want"),
    [
        ("term", GAUSS, [f"Minus({G})"]),
        ("term", f"h * ({GAUSS} * w)", [f"Minus({G})"]),
        ("term", f"{GAUSS} / b", [f"Minus({G})"]),
        ("term", "Exp(-WeightedSqDist(g, x, y)) * b", [f"Minus({G})"]),
        ("term", "Exp(-SqNorm2(x - y) / (IntCst(2) * Square(g)))", [f"(IntCst(-1) / (IntCst(2) * Square({G})))"]),
        ("term", "Exp(h + b - SqDist(x, y))", ["IntCst(1)"]),
        ("term", f"Exp(-SqDist(x, y)) + b * {GAUSS}", ["IntCst(-1)", f"Minus({G})"]),
        ("term", f"Grad({GAUSS} * b, x, e)", [f"Minus({G})"]),
        ("exponent", "-g * SqDist(x, y) + b", [G]),
        # How far these are from what they should be, nobody knows beforehand.
        ("term", "Exp(-Norm2(x - y))", None),
        ("term", "SqDist(x, y) * b", None),
        ("term", "SqDist(x, y) * Exp(-SqDist(x, y))", None),
        ("term", "Inv(IntCst(1) + SqDist(x, y))", None),
        ("term", "Exp(-h * SqDist(x, y))", None),
        ("term", "Exp(-SqDist(x, y)) * Exp(-SqDist(x, z))", None),
        ("term", "Exp(-SqDist(x * x, y))", None),
        ("term", "Log(Exp(-SqDist(x, y)))", None),
        ("exponent", GAUSS, None),
        ("term", "-g * SqDist(x, y)", None),
    ],
)  # fmt: skip
def test_which_formulas_are_expanded(kind: str, formula: str, want: list[str] | None) -> None:
    assert scales(kind, formula) == want


def test_short_vectors_are_not() -> None:
    assert scales("term", GAUSS, 7) is None
    assert scales("term", GAUSS, 8) is not None


def run(
    spec: Spec, arrays: dict[int, np.ndarray], plain: bool = False
) -> tuple[bool, tuple[np.ndarray, ...]]:
    """Was the certificate given, and the results. A `plain` run never asks for it."""
    launch = Kernel(spec, machine(), by_products=plain).launch(arrays, check_arrays(spec, arrays))
    while launch.step() < 1.0:
        pass
    return not plain and "distances" in launch.words, launch.results()


def inputs(d: int, g: float, offset: float = 0.0, dtype: Any = np.float32) -> dict[int, np.ndarray]:
    shapes = {0: (M, d), 1: (N, d), 2: (N, 1), 3: (N, 3), 4: (M, 1), 6: (M, 1)}
    made = {n: rng.random(shape) for n, shape in shapes.items()} | {5: np.array([g])}
    for n in (0, 1):
        made[n] += offset
    return {n: a.astype(dtype) for n, a in made.items()}


def spec_of(formula: str, d: int, reduction: str = "Sum", axis: int = 1, dtype: str = "float32") -> Spec:
    parsed = parse(formula, aliases(d))
    weight = parse("w", aliases(d)).root if "SoftMaxWeight" in reduction else None
    return Spec(parsed.root, reduction, axis, dtype, weight)


def dense(a: dict[int, np.ndarray]) -> np.ndarray:
    """The exponents, in float64 by differences."""
    x, y = a[0].astype(float), a[1].astype(float)
    squares = (x**2).sum(-1)[:, None] + (y**2).sum(-1)[None]
    if squares.max() > 1e4:  # digits would be lost here too
        return -float(a[5][0]) * np.stack([((row - y) ** 2).sum(-1) for row in x])
    exponents: np.ndarray = -float(a[5][0]) * (squares - 2 * x @ y.T)
    return exponents


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("d", "offset"), [(8, 0.0), (33, 0.0), (100, 1000.0), (500, 0.0), (500, 10.0)])
def test_sums_are_as_exact_as_the_certificate_says(d: int, offset: float, dtype: type) -> None:
    arrays = inputs(d, 2.0 / d, offset, dtype)
    given, (found,) = run(spec_of(f"{GAUSS} * b", d, dtype=np.dtype(dtype).name), arrays)
    assert given
    truth = np.exp(dense(arrays)) @ arrays[2].astype(float)
    allowed = 1e-6 if dtype is np.float32 else 2e-15
    np.testing.assert_allclose(found, truth, rtol=allowed, atol=0)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reduction", ["LogSumExp", "SumSoftMaxWeight"])
def test_shifted_sums(reduction: str, axis: int) -> None:
    d = 20
    arrays = inputs(d, 2.0 / d)
    given, found = run(spec_of("-g * SqDist(x, y)", d, reduction, axis), arrays)
    assert given
    kernel = np.exp(dense(arrays))
    if reduction == "LogSumExp":
        np.testing.assert_allclose(found[0][:, 0], np.log(kernel.sum(axis)), rtol=0, atol=2e-6)
        return
    weights = arrays[3].astype(float)
    truth = kernel @ weights if axis == 1 else kernel.sum(0)[:, None] * weights
    np.testing.assert_allclose(found[0], truth / kernel.sum(axis)[:, None], rtol=2e-6, atol=0)


def test_a_gradient() -> None:
    d = 12
    arrays = inputs(d, 2.0 / d)
    given, (found,) = run(spec_of(f"Grad({GAUSS} * b, x, e)", d), arrays)
    assert given
    x, y = arrays[0].astype(float), arrays[1].astype(float)
    terms = np.exp(dense(arrays)) * arrays[2].astype(float).T
    truth = -2 * float(arrays[5][0]) * (x * terms.sum(1, keepdims=True) - terms @ y) * arrays[6]
    assert np.abs(found - truth).max() < 2e-6 * np.abs(truth).max()


def test_several_reductions_and_batches() -> None:
    d = 16
    root = parse(f"{GAUSS} * b", aliases(d)).root
    other = spec_of(f"{GAUSS} * w", d).parts[0]
    arrays = {n: np.stack([a, 2 * a]) for n, a in inputs(d, 0.05).items()}
    given, (one, three) = run(Spec(root, "Sum", 1, "float32", also=(other,)), arrays)
    assert given
    for k in range(2):
        kernel = np.exp(dense({n: a[k] for n, a in arrays.items()}))
        np.testing.assert_allclose(one[k], kernel @ arrays[2][k].astype(float), rtol=1e-6)
        np.testing.assert_allclose(three[k], kernel @ arrays[3][k].astype(float), rtol=1e-6)


def test_where_the_error_could_show_there_is_no_certificate() -> None:
    d = 50
    near = inputs(d, 2.0 / d)
    narrow = near | {5: np.array([20.0], np.float32)}
    outlier = near | {0: np.vstack([near[0][:-1], near[0][-1:] + 300.0])}
    unknown = near | {0: np.vstack([near[0][:-1], near[0][-1:] * np.nan])}
    endless = near | {1: np.vstack([near[1][:-1], near[1][-1:] + np.inf])}
    for arrays in (narrow, outlier, unknown, endless):
        given, (found,) = run(spec_of(f"{GAUSS} * b", d), arrays)
        _, (plain,) = run(spec_of(f"{GAUSS} * b", d), arrays, plain=True)
        assert not given
        np.testing.assert_array_equal(found, plain)


def test_a_small_job_is_not_asked() -> None:
    d = 50
    arrays = {n: a[:100] if n in (0, 4, 6) else a for n, a in inputs(d, 2.0 / d).items()}
    given, _ = run(spec_of(f"{GAUSS} * b", d), arrays)
    assert not given


def test_points_are_copied_only_if_they_must_move_and_are_not_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(certified, "MOVED_BYTES", 0)
    for offset, want in ((0.0, True), (1000.0, False)):
        given, _ = run(spec_of(f"{GAUSS} * b", 20), inputs(20, 0.1, offset))
        assert given is want


def test_the_arrays_of_the_caller_stay_as_they_are() -> None:
    arrays = inputs(20, 0.1, 1000.0)
    before = {n: a.copy() for n, a in arrays.items()}
    run(spec_of(f"{GAUSS} * b", 20), arrays)
    assert all((arrays[n] == before[n]).all() for n in arrays)
