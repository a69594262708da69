"""torch.func over reductions: forward and reverse mode, Hessians, maps over any axis, all nested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from farsum.torch import Genred, KernelSolve, LazyTensor, Pm, Vi, Vj

mark = pytest.mark
close = torch.testing.assert_close
generator = torch.Generator().manual_seed(0)


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


x, y, b, p = rand(4, 2), rand(5, 2), rand(5, 3), rand(1)
Function = Callable[..., Any]
to_dual: Any = torch.autograd.forward_ad


def squares(x: Any, y: Any) -> Any:
    return (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)


def tangent(f: Function, inputs: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    value, moved, *_ = jvp(f, inputs, tangents)
    return value, moved


# fmt: off
PAIRS: dict[str, tuple[Function, Function]] = {
    "sum": (lambda x, y, b, p: ((-p * Vi(x).sqdist(Vj(y))).exp() * Vj(b)).sum(axis=1),
            lambda x, y, b, p: torch.exp(-p * squares(x, y)) @ b),
    "logsumexp": (lambda x, y, b, p: (Pm(p) * Vi(x).sqdist(Vj(y)) + Vj(b).sum(-1)).logsumexp(axis=0),
                  lambda x, y, b, p: (p * squares(x, y) + b.sum(-1)).logsumexp(0)[:, None]),
    "softmax": (lambda x, y, b, p: (-p * Vi(x).sqdist(Vj(y))).sumsoftmaxweight(Vj(b), axis=1),
                lambda x, y, b, p: (-p * squares(x, y)).softmax(1) @ b),
    "min": (lambda x, y, b, p: (Vi(x).sqdist(Vj(y)) * p).min(axis=1) + b.sum(),
            lambda x, y, b, p: (squares(x, y) * p).min(1, keepdim=True).values + b.sum()),
    "Kmin": (lambda x, y, b, p: (Vi(x).sqdist(Vj(y)) * Pm(p)).Kmin(2, axis=1) * b[0, 0],
             lambda x, y, b, p: (squares(x, y) * p).topk(2, 1, largest=False).values * b[0, 0]),
}
# fmt: on


@mark.parity("G-77", "G-78", "R-64")
@mark.parametrize("name", PAIRS)
def test_forward_and_reverse_mode(name: str) -> None:
    ours, dense = PAIRS[name]
    inputs, tangents = (x, y, b, p), (rand(4, 2), rand(5, 2), rand(5, 3), rand(1))
    for found, want in zip(tangent(ours, inputs, tangents), tangent(dense, inputs, tangents), strict=True):
        close(found, want)
    e = torch.ones_like(dense(*inputs))
    for found, want in zip(vjp(ours, *inputs)[1](e), vjp(dense, *inputs)[1](e), strict=True):
        close(found, want)
    for n in range(4):
        close(jacrev(ours, n)(*inputs), jacrev(dense, n)(*inputs))
        close(jacfwd(ours, n)(*inputs), jacfwd(dense, n)(*inputs))


@mark.parity("G-77", "G-71")
@mark.parametrize("name", ["sum", "softmax", "Kmin"])
def test_hessians_by_every_road(name: str) -> None:
    ours, dense = PAIRS[name]

    def scalar(f: Function) -> Function:
        return lambda x: f(x, y, b, p).square().sum()

    want = hessian(scalar(dense))(x)
    for road in (
        hessian,
        lambda f: jacrev(jacrev(f)),
        lambda f: jacrev(jacfwd(f)),
        lambda f: jacfwd(jacfwd(f)),
    ):
        close(road(scalar(ours))(x), want)


@mark.parity("G-78")
def test_dual_numbers() -> None:
    ours, dense = PAIRS["sum"]
    u = rand(4, 2)
    _, want = tangent(lambda x: dense(x, y, b, p), (x,), (u,))
    with to_dual.dual_level():
        dual = to_dual.make_dual(x, u)
        close(to_dual.unpack_dual(ours(dual, y, b, p)).tangent, want)


@mark.parity("X-31", "G-78")
def test_indices_have_no_tangent() -> None:
    places, moved = tangent(lambda x: Vi(x).sqdist(Vj(y)).argmin(axis=1), (x,), (x,))
    close(places, squares(x, y).argmin(1, keepdim=True))
    assert not moved.any()


@mark.parity("G-79", "X-62")
@mark.parametrize("in_dims", [(0, None, None, None), (1, 0, None, None), (2, None, 2, 0), (-1, 1, 0, None)])
@mark.parametrize("out_dims", [0, 1, 2])
def test_maps_over_any_axis(in_dims: tuple[int | None, ...], out_dims: int) -> None:
    inputs = []
    for a, d in zip((x, y, b, p), in_dims, strict=True):
        inputs.append(a if d is None else torch.stack([a, 2 * a, a * a], d))
    by_name = Genred("Exp(-p*SqDist(x,y))*b", ["x=Vi(2)", "y=Vj(2)", "b=Vj(3)", "p=Pm(1)"], axis=1)
    want = vmap(PAIRS["sum"][1], in_dims, out_dims)(*inputs)
    for ours in (PAIRS["sum"][0], by_name):
        close(vmap(ours, in_dims, out_dims)(*inputs), want)


@mark.parity("G-79")
@mark.parametrize("name", PAIRS)
def test_gradients_within_and_through_a_map(name: str) -> None:
    ours, dense = PAIRS[name]
    many = rand(4, 3, 2).requires_grad_()
    for inner in (lambda f: f, lambda f: grad(lambda x, *rest: f(x, *rest).sum())):
        got, want = (vmap(inner(f), (1, None, None, None))(many, y, b, p) for f in (ours, dense))
        close(got, want)
        close(
            torch.autograd.grad(got.square().sum(), many)[0],
            torch.autograd.grad(want.square().sum(), many)[0],
        )


@mark.parity("G-79")
def test_maps_within_maps_and_over_batches() -> None:
    ours, dense = PAIRS["sum"][0], PAIRS["sum"][1]
    grid = rand(4, 3, 2, 2)
    got, want = (
        vmap(vmap(f, (1, None, None, None)), (2, None, 0, None), out_dims=1)(
            grid, y, torch.stack([b, 2 * b]), p
        )
        for f in (ours, dense)
    )
    close(got, want)
    batches = rand(3, 7, 4, 1, 2)

    def batched(x: Any, s: Any) -> Any:
        return (-LazyTensor(x).sqdist(LazyTensor(y[None, None])) * LazyTensor(s)).exp().sum(axis=2)

    scale = rand(3, 1, 1, 1)
    got = vmap(batched, (1, None))(batches, scale)
    want = torch.exp(-squares(batches[..., 0, :], y) * scale).sum(-1, keepdim=True).movedim(1, 0)
    close(got, want)
    places = vmap(lambda x: Vi(x).sqdist(Vj(y)).argKmin(2, axis=1), in_dims=1)(rand(4, 3, 2))
    assert places.shape == (3, 4, 2) and places.dtype == torch.int64


@mark.parity("G-79", "X-13")
def test_a_map_with_ranges_runs_one_by_one() -> None:
    ranges = tuple(map(torch.tensor, ([[0, 2], [2, 4]], [1, 2], [[0, 2], [2, 5]], [[0, 2], [2, 5]], [1, 2],
                                      [[0, 2], [2, 4]])))  # fmt: skip
    many = rand(4, 3, 2).requires_grad_()

    def seen(x: Any) -> Any:
        return Vi(x).sqdist(Vj(y)).sum(axis=1, ranges=ranges)

    got = vmap(seen, in_dims=1)(many)
    want = torch.stack([seen(many[:, k]) for k in range(3)])
    close(got, want)
    close(*(torch.autograd.grad(f.square().sum(), many, retain_graph=True)[0] for f in (got, want)))


# ── solutions ─────────────────────────────────────────────────────────────────────────────────────

solve = KernelSolve("Exp(-p*SqDist(x,y))*b", ["x=Vi(2)", "y=Vj(2)", "b=Vj(3)", "p=Pm(1)"], "b", axis=1)


def solved(x: Any, b: Any, p: Any, alpha: Any) -> Any:
    return solve(x, x, b, p, alpha=alpha, eps=1e-13)


def lazily(x: Any, b: Any, p: Any, alpha: Any) -> Any:
    return (-p * Vi(x).sqdist(Vj(x))).exp().solve(Vi(b), alpha=alpha, eps=1e-13)


def dense_solved(x: Any, b: Any, p: Any, alpha: Any) -> Any:
    return torch.linalg.solve(torch.exp(-p * squares(x, x)) + alpha * torch.eye(5, dtype=torch.float64), b)


ALPHA = torch.tensor(0.3, dtype=torch.float64)


@mark.parity("G-60", "G-61", "G-83", "G-55", "G-56")
@mark.parametrize("ours", [solved, lazily])
def test_solutions_are_differentiated_twice(ours: Function) -> None:
    inputs = tuple(a.clone().requires_grad_() for a in (y, b, p, ALPHA))
    close(ours(*inputs), dense_solved(*inputs))
    assert torch.autograd.gradcheck(ours, inputs)
    if ours is solved:
        assert torch.autograd.gradgradcheck(ours, inputs)


@mark.parity("G-60", "G-83")
def test_the_hessian_of_a_solution_by_every_road() -> None:
    want = hessian(lambda p: dense_solved(y, b, p, ALPHA).square().sum())(p)
    for road in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f))):
        close(road(lambda p: solved(y, b, p, ALPHA).square().sum())(p), want)


@mark.parity("G-60", "G-83")
def test_solutions_in_forward_mode_and_under_a_map() -> None:
    inputs, tangents = (
        (y, b, p, ALPHA),
        (rand(5, 2), rand(5, 3), rand(1), torch.tensor(0.1, dtype=torch.float64)),
    )
    close(tangent(solved, inputs, tangents), tangent(dense_solved, inputs, tangents))
    many = (torch.stack([y, y * 2], 1), b, torch.stack([p, p + 1]), ALPHA)
    close(vmap(solved, (1, None, 0, None))(*many), vmap(dense_solved, (1, None, 0, None))(*many))
    alphas = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    close(vmap(solved, (None, None, None, 0))(y, b, p, alphas), vmap(dense_solved, (None, None, None, 0))(y, b, p, alphas))  # fmt: skip
    close(jacrev(lambda p: solved(y, b, p, ALPHA))(p), jacrev(lambda p: dense_solved(y, b, p, ALPHA))(p))


def test_halves_are_solved_in_singles() -> None:
    got = solve(y.bfloat16(), y.bfloat16(), b.bfloat16(), p.bfloat16(), alpha=0.3)
    assert got.dtype == torch.bfloat16
    close(got.double(), dense_solved(y, b, p, ALPHA), rtol=0.1, atol=0.1)


@mark.parity("G-59")
def test_batches_of_systems() -> None:
    many = rand(2, 5, 3)
    got = solve(y, y, many, p, alpha=0.3, eps=1e-13)
    close(got, torch.stack([dense_solved(y, m, p, ALPHA) for m in many]))
