"""Random formulas, shapes and arrays, for hypothesis. The vocabulary of all property tests.

The formulas are smooth enough that two correct evaluations agree: divisors and arguments of roots and
logarithms are at least 1, exponents are bounded, and only variables decide which side of a branch is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from farsum_kernels.formula.expr import Expr, I, J, P, constant, node, variable
from farsum_kernels.formula.rewrite import rational

DIMS = (1, 2, 3, 4, 9)
CATEGORIES = (I, J, P)
SAME = ("Minus", "Square", "Sin", "Cos", "Atan", "Abs", "ReLU", "SinXDivX")
JOINED = ("Add", "Subtract", "Mult")
TO_SCALAR = ("Sum", "Max", "Min", "SqNorm2", "Norm2")


def _above_one(f: Expr) -> Expr:
    return node("Add", constant(1), node("Square", f))


# What is made of one operand of any dimension, with the same dimension.
TAMED: tuple[Callable[[Expr], Expr], ...] = (
    lambda f: node("Exp", node("Atan", f)),
    lambda f: node("Exp", node("Minus", node("Square", f))),
    lambda f: node("Log", _above_one(f)),
    lambda f: node("Sqrt", _above_one(f)),
    lambda f: node("Rsqrt", _above_one(f)),
    lambda f: node("Inv", _above_one(f)),
    lambda f: node("XLogX", _above_one(f)),
    lambda f: node("Asin", node("Divide", f, _above_one(f))),
    lambda f: node("Powf", _above_one(f), node("RatCst", params=(1, 3))),
    lambda f: node("Pow", f, params=(3,)),
    lambda f: node("ClampInt", f, params=(-1, 1)),
    lambda f: node("Divide", f, constant(3)),
    lambda f: node("AutoFactorize", node("Add", f, node("Sin", f))),
)


def inputs_of(dims: tuple[int, ...] = DIMS) -> dict[tuple[int, int], Expr]:
    """One variable for each dimension and category."""
    places = [(d, c) for d in dims for c in CATEGORIES]
    return {(d, c): variable(n, d, c) for n, (d, c) in enumerate(places)}


@st.composite
def formulas(draw: st.DrawFn, dim: int | None = None, depth: int = 4) -> Expr:
    """A random formula of that dimension, or of any of a few."""
    dim = draw(st.sampled_from(DIMS)) if dim is None else dim
    return _formula(draw, dim, depth)


def _leaf(draw: st.DrawFn, dim: int) -> Expr:
    variables = inputs_of()
    if dim in DIMS and draw(st.integers(0, 5)):
        return variables[dim, draw(st.sampled_from(CATEGORIES))]
    number = draw(
        st.sampled_from([constant(0), constant(1), constant(-1), constant(2), constant(0.5), rational(-3)])
    )
    if draw(st.integers(0, 9)) == 0:
        return node("Zero", params=(dim,))
    return number if dim == 1 else node("SumT", number, params=(dim,))


def _formula(draw: st.DrawFn, dim: int, depth: int) -> Expr:
    if depth == 0 or draw(st.integers(0, 7)) == 0:
        return _leaf(draw, dim)

    def one(d: int) -> Expr:
        return _formula(draw, d, depth - 1)

    def pair() -> tuple[Expr, Expr]:
        # equal dimensions, or one of them a scalar
        a, b = draw(st.sampled_from([(dim, dim), (dim, 1), (1, dim)]))
        return one(a), one(b)

    kinds = ["same", "tamed", "joined", "divide", "branch", "cut"]
    kinds += ["scalar", "product", "distance"] if dim == 1 else ["vector"]
    kinds += ["complex"] if dim % 2 == 0 else []
    match draw(st.sampled_from(kinds)):
        case "same":
            return node(draw(st.sampled_from(SAME)), one(dim))
        case "tamed":
            return draw(st.sampled_from(TAMED))(one(dim))
        case "joined":
            return node(draw(st.sampled_from(JOINED)), *pair())
        case "divide":
            a, b = pair()
            return node(draw(st.sampled_from(["Divide", "Atan2"])), a, _above_one(b))
        case "branch":
            side = inputs_of()[
                draw(st.sampled_from([1, dim] if dim in DIMS else [1])), draw(st.sampled_from(CATEGORIES))
            ]
            a, b = pair()
            return node("IfElse", side, a, b)
        case "cut":
            return node("Extract", one(dim + 1), params=(draw(st.integers(0, 1)), dim))
        case "scalar":
            return node(draw(st.sampled_from(TO_SCALAR)), one(draw(st.sampled_from(DIMS))))
        case "product":
            d = draw(st.sampled_from(DIMS))
            return node("Scalprod", one(d), one(d))
        case "distance":
            d = draw(st.sampled_from((1, 2, 3)))
            if draw(st.booleans()):
                return node("WeightedSqDist", one(draw(st.sampled_from((1, d, d * d)))), one(d), one(d))
            return node("SqDist", one(d), one(d))
        case "complex":
            return node(
                draw(st.sampled_from(["ComplexMult", "ComplexAdd"])),
                one(dim),
                one(draw(st.sampled_from((2, dim)))),
            )
        case _:
            return _vector(draw, dim, one)


def _vector(draw: st.DrawFn, dim: int, one: Callable[[int], Expr]) -> Expr:
    """A formula that makes a vector of others of different dimensions."""
    first = draw(st.integers(1, dim - 1))
    kinds: list[Callable[[], Expr]] = [
        lambda: node("Concat", one(first), one(dim - first)),
        lambda: node("SumT", one(1), params=(dim,)),
        lambda: node("ExtractT", one(first), params=(dim - first, dim)),
    ]
    if dim in (2, 3):
        kinds.append(lambda: node("MatVecMult", one(dim * dim), one(dim)))
        kinds.append(lambda: node("VecMatMult", one(dim), one(dim * dim)))
    if dim % 2 == 0:
        kinds.append(lambda: node("TensorProd", one(2), one(dim // 2)))
        kinds.append(lambda: node("ComplexExp1j", one(dim // 2)))
    if dim == 9:
        kinds.append(lambda: node("TensorDot", one(9), one(9), params=((3, 3), (3, 3), (0,), (1,), (1, 0))))
        kinds.append(lambda: node("Kron", one(3), one(3), params=((3, 1), (1, 3))))
    return draw(st.sampled_from(kinds))()


def arrays_for(
    inputs: dict[int, Expr], m: int, n: int, seed: int, batches: Any = ()
) -> dict[int, np.ndarray]:
    """Rows between -1 and 1 for each input; `batches` holds the batch shape of each, in order."""
    rng = np.random.default_rng(seed)
    made = {}
    for place, (index, v) in enumerate(inputs.items()):
        _, dim, category = v.params
        batch = tuple(batches[place]) if batches else ()
        made[index] = rng.uniform(-1, 1, (*batch, *((m,), (n,), ())[category], dim))
    return made


@st.composite
def batch_shapes(draw: st.DrawFn, count: int) -> tuple[tuple[int, ...], ...]:
    """One batch shape for each of `count` inputs; together they broadcast."""
    shapes = hnp.mutually_broadcastable_shapes(num_shapes=max(1, count), max_dims=2, max_side=3)
    return draw(shapes).input_shapes


seeds = st.integers(0, 2**16)
lengths = st.integers(0, 9)
