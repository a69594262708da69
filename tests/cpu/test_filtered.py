"""Nearest columns by a filter are those of the direct form, on points made to mislead it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from farsum_kernels.backends import certified
from farsum_kernels.backends.cpu import filtered
from farsum_kernels.backends.cpu.filtered import FilteredLaunch
from farsum_kernels.backends.cpu.kernel import Kernel
from farsum_kernels.backends.cpu.native import machine
from farsum_kernels.formula.text import parse
from farsum_kernels.job import Spec, check_arrays

M, N = 1100, 1300
Arrays = dict[int, np.ndarray]


@cache
def kernels(formula: str, d: int, reduction: str, k: int, axis: int, dtype: str) -> tuple[Kernel, Kernel]:
    """The kernel that may filter, and the direct one."""
    root = parse(formula, [f"x = Vi({d})", f"y = Vj({d})", "b = Vj(1)"]).root
    spec = Spec(root, reduction, axis, dtype, k=k)
    return Kernel(spec, machine()), Kernel(spec, machine(), by_products=True)


def run(kernel: Kernel, arrays: Arrays) -> tuple[Any, np.ndarray]:
    launch = kernel.launch(arrays, check_arrays(kernel.spec, arrays))
    while launch.step() < 1.0:
        pass
    (found,) = launch.results()
    return launch, found


def compared(arrays: Arrays, k: int = 0, axis: int = 1, formula: str = "SqDist(x, y)") -> Any:
    """The launch that may filter; its answer is that of the direct form."""
    made = kernels(formula, arrays[0].shape[1], "ArgKMin" if k else "ArgMin", k, axis, arrays[0].dtype.name)
    launch, found = run(made[0], arrays)
    _, want = run(made[1], arrays)
    assert found.dtype == want.dtype and found.shape == want.shape
    np.testing.assert_array_equal(found, want)
    return launch


def points(kind: str, d: int, dtype: str = "float32", m: int = M, n: int = N) -> Arrays:
    rng = np.random.default_rng(7)
    x, y = rng.random((m, d)), rng.random((n, d))
    match kind:
        case "far away":
            x, y = x + 1000, y + 1000
        case "twice":  # every column has an equal one
            y[1::2] = y[::2]
        case "the same points":
            y[: len(x)] = x
        case "nearly twice":  # and here they differ by less than the filter can see
            y[1::2] = y[::2] + rng.integers(-3, 4, y[::2].shape) * float(np.finfo(dtype).eps) / 4
        case "on a line":
            x[:, 1:], y[:, 1:] = 0, 0
        case "one far out":
            y[5] = 1e6
        case "tiny":
            x, y = x * 1e-22, y * 1e-22
    return {0: x.astype(dtype), 1: y.astype(dtype)}


KINDS = ("plain", "far away", "twice", "the same points", "nearly twice", "on a line", "one far out", "tiny")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [0, 5])
def test_the_answer_is_that_of_the_direct_form(kind: str, k: int) -> None:
    launch = compared(points(kind, 40), k)
    assert isinstance(launch, FilteredLaunch)
    if kind == "plain":
        assert "filtered" in launch.words["distances"] and len(launch._unclear) < 0.3 * M
    if kind == "twice":
        assert len(launch._unclear) == M


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("formula", ["Norm2(x - y)", "SqNorm2(y - x)"])
def test_both_axes_and_dtypes(formula: str, dtype: str, axis: int) -> None:
    for kind in ("plain", "nearly twice"):
        assert isinstance(compared(points(kind, 9, dtype), 3, axis, formula), FilteredLaunch)


def test_the_filter_alone_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtered, "clear", lambda values, slack: np.ones(len(values), bool))
    with pytest.raises(AssertionError, match="Mismatched elements"):
        compared(points("nearly twice", 40), 5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e25])
def test_points_that_are_no_numbers_are_left_to_the_direct_form(wrong: float) -> None:
    for side in (0, 1):
        arrays = points("plain", 40)
        arrays[side][3, 2] = wrong
        assert not isinstance(compared(arrays), FilteredLaunch)


def test_where_most_rows_are_unclear_it_is_not_tried() -> None:
    rng = np.random.default_rng(0)
    arrays = {n: rng.integers(0, 2, (2048, 30)).astype(np.float32) for n in (0, 1)}
    assert not isinstance(compared(arrays, 5), FilteredLaunch)
    assert isinstance(compared(points("plain", 30, m=2048), 5), FilteredLaunch)


def test_what_is_not_a_distance_is_not_filtered() -> None:
    for formula, d in (("SqDist(x, y) + b", 40), ("(x | y)", 40), ("SqDist(x, y)", 7)):
        arrays = points("plain", d) | {2: np.ones((N, 1), np.float32)}
        arrays = {n: arrays[n] for n in kernels(formula, d, "ArgMin", 0, 1, "float32")[0].spec.inputs}
        assert not isinstance(compared(arrays, formula=formula), FilteredLaunch)
    small = {n: a[:200] for n, a in points("plain", 40).items()}
    assert not isinstance(compared(small), FilteredLaunch)


def test_large_points_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = points("plain", 40)
    monkeypatch.setattr(certified, "MOVED_BYTES", sum(a.nbytes for a in arrays.values()))
    assert isinstance(compared(arrays), FilteredLaunch)
    monkeypatch.setattr(certified, "MOVED_BYTES", sum(a.nbytes for a in arrays.values()) - 1)
    assert not isinstance(compared(arrays), FilteredLaunch)


def test_results_go_where_they_are_wanted() -> None:
    arrays = points("nearly twice", 40)
    kernel, _ = kernels("SqDist(x, y)", 40, "ArgKMin", 5, 1, "float32")
    _, found = run(kernel, arrays)
    again = kernel.launch(arrays, check_arrays(kernel.spec, arrays))
    shares: list[float] = []
    while not shares or shares[-1] < 1.0:
        shares.append(again.step())
    assert shares == sorted(shares)
    into = np.empty((M, 5), np.int64)
    again.results([into])
    np.testing.assert_array_equal(into, found)
