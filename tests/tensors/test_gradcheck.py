"""First and second derivatives of every operation under every reduction, against finite differences of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from farsum.torch import LazyTensor, Pm, Vi, Vj

mark = pytest.mark
Lazy = Callable[[Any, Any, Any], Any]


def leaves(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 2), (4, 2), (2,))
    # From 0.1 on, and apart from each other: no operation below has a kink or a pole nearby.
    return tuple(
        (torch.rand(s, generator=generator, dtype=torch.float64) * 0.7 + 0.1).requires_grad_() for s in shapes
    )


# Of rows a, rows b and a parameter c, two numbers each, all in (0.1, 0.8).
# fmt: off
OPERATIONS: dict[str, Lazy] = {
    "add": lambda a, b, c: a + b * c,                   "subtract": lambda a, b, c: a - b * c,
    "mult": lambda a, b, c: a * b * c[0],               "divide": lambda a, b, c: a / (b + c),
    "scalar product": lambda a, b, c: (a | b) * c,      "minus": lambda a, b, c: -(a * b) + c,
    "abs": lambda a, b, c: (a - 2 * b * c).abs(),       "exp": lambda a, b, c: (a * b - c).exp(),
    "log": lambda a, b, c: (a * b + c).log(),           "xlogx": lambda a, b, c: (a * b * c).xlogx(),
    "sin": lambda a, b, c: (a * b * c).sin(),           "cos": lambda a, b, c: (a * b + c).cos(),
    "sinxdivx": lambda a, b, c: (a + b * c).sinxdivx(), "sinc": lambda a, b, c: (a * b + c).sinc(),
    "asin": lambda a, b, c: (a * b * c).asin(),         "acos": lambda a, b, c: (a * b * c).acos(),
    "atan": lambda a, b, c: (a * b - c).atan(),         "atan2": lambda a, b, c: (a * c).atan2(b),
    "sqrt": lambda a, b, c: (a * b + c).sqrt(),         "rsqrt": lambda a, b, c: (a * b + c).rsqrt(),
    "square": lambda a, b, c: (a * b - c).square(),     "pow 3": lambda a, b, c: (a + b * c) ** 3,
    "pow -2": lambda a, b, c: (a + b * c) ** -2,        "powf": lambda a, b, c: (a + b) ** c[1],
    "relu": lambda a, b, c: (a * b * 3 - c).relu(),     "clamp": lambda a, b, c: (a * 3 * b).clamp(b, c),
    "ifelse": lambda a, b, c: (a - b).ifelse(a * c, b * b),
    "mod": lambda a, b, c: (a * 3).mod(b + 1, c),       "step": lambda a, b, c: (a - b).step() * a * b * c,
    "sqnorm2": lambda a, b, c: (a * b - c).sqnorm2(),   "norm2": lambda a, b, c: (a + b * c).norm2(),
    "normalize": lambda a, b, c: (a + b * c).normalize(),
    "sqdist": lambda a, b, c: a.sqdist(b) * c,          "weighted": lambda a, b, c: a.weightedsqdist(b, c),
    "elem": lambda a, b, c: a.elem(1) * b * c,          "extract": lambda a, b, c: a.concat(b).extract(1, 2) * c,
    "concat": lambda a, b, c: (a * b).concat(b * c),    "max": lambda a, b, c: (a * b * c).max(-1),
    "one hot": lambda a, b, c: (a[0] * 2).one_hot(2) * a * b * c,
    "sum": lambda a, b, c: (a * b).sum(-1) * c,         "tensorprod": lambda a, b, c: a.tensorprod(b * c),
    "matvecmult": lambda a, b, c: a.concat(b).matvecmult(a * c),
    "vecmatmult": lambda a, b, c: (b * c).vecmatmult(a.concat(b)),
    "tensordot": lambda a, b, c: a.concat(b).keops_tensordot(b * c, (2, 2), (2,), (1,), (0,)),
    "kron": lambda a, b, c: a.keops_kron(b * c, (2,), (2,)),
    "bspline": lambda a, b, c: Pm(torch.arange(6.0, dtype=torch.float64)).bspline(2 + a[0] * b[0] + c[0], 2),
    "softdtw": lambda a, b, c: a.softdtw_sqdist(b * c, c[0]),
    "derivative": lambda a, b, c: (a * b * c).exp().grad(a, b),
    "complex": lambda a, b, c: ((a + b * c).exp1j() * b.real2complex()).imag,
}
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": lambda f, a, b, c, axis: f.sum(axis=axis),
    "logsumexp": lambda f, a, b, c, axis: f.sum(-1).logsumexp(axis=axis),
    "weighted logsumexp": lambda f, a, b, c, axis: f.sum(-1).logsumexp(axis=axis, weight=(b * c).exp() + a),
    "softmax": lambda f, a, b, c, axis: f.sum(-1).sumsoftmaxweight(b * a, axis=axis),
    "min": lambda f, a, b, c, axis: f.min(axis=axis),
    "max": lambda f, a, b, c, axis: f.max(axis=axis),
    "min_argmin": lambda f, a, b, c, axis: f.min_argmin(axis=axis)[0],
    "Kmin": lambda f, a, b, c, axis: f.Kmin(2, axis=axis),
    "Kmin_argKmin": lambda f, a, b, c, axis: f.Kmin_argKmin(2, axis=axis)[0],
}
# fmt: on
# Second derivatives of these are not there: of a soft minimum that is one already.
FIRST_ORDER: set[str] = set()


def value(operation: str, reduction: str, axis: int) -> Callable[..., Any]:
    def reduced(x: Any, y: Any, p: Any) -> Any:
        a, b, c = Vi(x), Vj(y), Pm(p)
        return REDUCTIONS[reduction](OPERATIONS[operation](a, b, c), a, b, c, axis)

    return reduced


@mark.parity("R-60", "R-61", "R-64", "R-65", "G-70", "G-72")
@mark.parametrize("reduction", REDUCTIONS)
@mark.parametrize("axis", [0, 1])
def test_every_reduction_twice(reduction: str, axis: int) -> None:
    function = value("mult" if axis else "sqdist", reduction, axis)
    assert gradcheck(function, leaves())
    assert gradgradcheck(function, leaves())


@mark.parity("G-71", "G-80", "G-81", "X-20", "X-21", "X-22")
@mark.parametrize("operation", OPERATIONS)
def test_every_operation_once(operation: str) -> None:
    assert gradcheck(value(operation, "sum", 1), leaves())


@mark.slow
@mark.parity("G-71", "G-72")
@mark.parametrize("reduction", REDUCTIONS)
@mark.parametrize("operation", OPERATIONS)
def test_the_whole_matrix_twice(operation: str, reduction: str) -> None:
    function = value(operation, reduction, 1)
    assert gradcheck(function, leaves(1))
    if operation not in FIRST_ORDER:
        assert gradgradcheck(function, leaves(1))


@mark.parity("G-71")
def test_the_third_order() -> None:
    x, y = leaves()[:2]
    found = torch.func.jacrev(
        torch.func.jacrev(torch.func.jacrev(lambda a: (-Vi(a).sqdist(Vj(y))).exp().sum(1)))
    )(x)
    dense = torch.func.jacrev(torch.func.jacfwd(torch.func.jacrev(lambda a: torch.exp(-(a[:, None] - y).square().sum(-1)).sum(1, keepdim=True))))(x)  # fmt: skip
    torch.testing.assert_close(found, dense)


@mark.parity("R-66", "G-70")
def test_batches_that_were_broadcast_are_summed() -> None:
    generator = torch.Generator().manual_seed(2)
    shapes = ((2, 1, 3, 1, 2), (3, 1, 4, 2), (2, 1, 1, 1, 1), ())
    inputs = [torch.rand(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]

    def function(x: Any, y: Any, p: Any, s: Any) -> Any:
        return (-LazyTensor(x).sqdist(LazyTensor(y)) * LazyTensor(p) * s).exp().sum(axis=3)

    assert function(*inputs).shape == (2, 3, 3, 1)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@mark.parity("G-73", "L-216")
def test_with_ranges() -> None:
    x, y, p = leaves()
    ranges = tuple(map(torch.tensor, ([[0, 2], [2, 3]], [1, 2], [[0, 3], [1, 4]], [[0, 1], [1, 3], [3, 4]], [1, 3, 4],
                                      [[0, 2], [0, 2], [2, 3], [2, 3]])))  # fmt: skip

    def function(x: Any, y: Any, p: Any) -> Any:
        return (-Vi(x).sqdist(Vj(y)) * Pm(p)).exp().sum(axis=1, ranges=ranges)

    seen = torch.zeros(3, 4, dtype=torch.float64)
    seen[:2, :3], seen[2:, 1:] = 1, 1
    dense = torch.exp(-(x[:, None] - y).square().sum(-1, keepdim=True) * p)
    torch.testing.assert_close(function(x, y, p), (dense * seen[..., None]).sum(1))
    assert gradcheck(function, (x, y, p))
    assert gradgradcheck(function, (x, y, p))
