"""Derivatives and linear operators as operations of a formula."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from farsum_kernels.errors import DimensionError, FormulaError
from farsum_kernels.formula.expr import I, constant, node, variable
from tests.evaluate import BACKENDS
from tests.parity.rows import at, dense_rows, joined, rows, same, sq, total

case, mark = pytest.param, pytest.mark
both = mark.parametrize("backend", BACKENDS)


@mark.parity("O-100")
@both
def test_grad(backend: str) -> None:
    x, y, e = rows(3, 3, 3)
    f = node("Mult", node("Exp", x), y)
    data = dense_rows((3, 3, 3))
    same(at(backend, node("Grad", f, x, e), *data), data[2] * np.exp(data[0]) * data[1])
    # the cotangent may be any formula, that of the formula itself included
    same(at(backend, node("Grad", f, x, f), *data), (np.exp(data[0]) * data[1]) ** 2)
    square = node("SqNorm2", x)
    same(at(backend, node("Grad", square, x, constant(1)), *data), 2 * data[0])
    # a variable that does not occur
    same(at(backend, node("Grad", square, y, constant(1)), *data), np.zeros((6, 3)))
    # a derivative of a derivative
    twice = node("Grad", node("Scalprod", node("Grad", f, x, e), e), x, constant(1))
    same(at(backend, twice, *data), data[2] ** 2 * np.exp(data[0]) * data[1])


@mark.parity("O-100", "O-103", "O-106", "O-107", "X-69")
def test_derivatives_refuse_what_does_not_fit() -> None:
    x, y = rows(3, 2)
    scalar = node("SqNorm2", x)
    with pytest.raises(DimensionError, match="formula and the cotangent"):
        node("Grad", x, x, y)
    with pytest.raises(FormulaError, match="with respect to a variable"):
        node("Grad", scalar, node("Exp", x), constant(1))
    with pytest.raises(DimensionError, match="variable and the direction"):
        node("Diff", scalar, x, y)
    with pytest.raises(DimensionError, match="Divergence"):
        node("Divergence", scalar, x)
    with pytest.raises(DimensionError, match="Laplacian"):
        node("Laplacian", x, x)
    for op in ("Divergence", "GradMatrix"):
        with pytest.raises(FormulaError, match="with respect to a variable"):
            node(op, x, node("Exp", x))


@mark.parity("O-103")
@both
def test_diff(backend: str) -> None:
    x, u = rows(3, 3)
    data = dense_rows((3, 3))
    same(at(backend, node("Diff", node("Exp", x), x, u), *data), np.exp(data[0]) * data[1])
    same(at(backend, node("Diff", node("SqNorm2", x), x, x), [[1.0, 10, 100]]), [[20202]])


@mark.parity("O-105", "X-28")
@both
def test_grad_matrix_is_the_jacobian_by_rows(backend: str) -> None:
    x, m = rows(3, 6)
    data = dense_rows((3, 6))
    same(
        at(backend, node("GradMatrix", node("Mult", x, x), x), [[1.0, 10, 100]]),
        [[2, 0, 0, 0, 20, 0, 0, 0, 200]],
    )
    f = node("MatVecMult", m, x)
    assert node("GradMatrix", f, x).dim == 6
    same(at(backend, node("GradMatrix", f, x), *data), data[1])
    same(at(backend, node("GradMatrix", node("SqNorm2", x), x), *data), 2 * data[0])
    same(
        at(backend, node("GradMatrix", node("Square", variable(0, 1, I)), variable(0, 1, I)), [[3.0]]), [[6]]
    )


@mark.parity("O-105", "X-69")
@both
def test_grad_matrix_of_a_long_vector(backend: str) -> None:
    (x,) = rows(40)
    data = dense_rows((40,), count=2)
    same(
        at(backend, node("GradMatrix", node("Exp", x), x), *data),
        [np.ravel(np.diag(r)) for r in np.exp(data[0])],
    )


# fmt: off
TRACES = [
    case(lambda x: x, lambda x, m: np.full((len(x), 1), 3.0), 3, id="identity", marks=mark.parity("O-106")),
    case(lambda x: node("Mult", x, x), lambda x, m: 2 * total(x), 3, id="square", marks=mark.parity("O-106")),
    case(lambda x: node("MatVecMult", variable(1, 9, I), x), lambda x, m: m[:, [0, 4, 8]].sum(-1, keepdims=True), 3, id="matrix", marks=mark.parity("O-106", "O-110", "O-111")),
    case(lambda x: node("Normalize", x), lambda x, m: 2 / np.sqrt(sq(x)), 3, id="normalize", marks=mark.parity("O-106", "X-83")),
    case(lambda x: node("IfElse", node("Subtract", x, constant(1)), node("Square", x), x), lambda x, m: total(np.where(x >= 1, 2 * x, 1)), 3, id="branches", marks=mark.parity("O-110", "X-83")),
    case(lambda x: node("TensorDot", variable(1, 9, I), x, params=((3, 3), (3,), (0,), (0,), ())), lambda x, m: m[:, [0, 4, 8]].sum(-1, keepdims=True), 3, id="tensordot", marks=mark.parity("O-110", "X-83")),
    case(lambda x: node("Concat", node("Extract", x, params=(1, 2)), node("Square", node("Elem", x, params=(0,)))), lambda x, m: np.zeros((len(x), 1)), 3, id="cut", marks=mark.parity("O-111", "X-83")),
    case(lambda x: node("Factorize", node("Mult", node("Exp", x), node("Exp", x)), node("Exp", x)), lambda x, m: total(2 * np.exp(2 * x)), 3, id="factorize", marks=mark.parity("O-110", "O-112")),
    case(lambda x: node("ComplexMult", x, x), lambda x, m: 4 * total(x[:, ::2]), 4, id="complex", marks=mark.parity("O-110", "X-83")),
    case(lambda x: node("Exp", x), lambda x, m: total(np.exp(x)), 50, id="long", marks=mark.parity("O-106")),
]
LAPLACIANS = [
    case(lambda x: node("SqNorm2", x), lambda x, m: np.full((len(x), 1), 6.0), 3, id="square", marks=mark.parity("O-107")),
    case(lambda x: node("Norm2", x), lambda x, m: 2 / np.sqrt(sq(x)), 3, id="norm", marks=mark.parity("O-107")),
    case(lambda x: node("Exp", node("Minus", node("SqNorm2", x))), lambda x, m: np.exp(-sq(x)) * (4 * sq(x) - 6), 3, id="gaussian", marks=mark.parity("O-107")),
    case(lambda x: node("WeightedSqNorm", variable(1, 9, I), x), lambda x, m: 2 * m[:, [0, 4, 8]].sum(-1, keepdims=True), 3, id="matrix", marks=mark.parity("O-107", "O-111", "X-83")),
    case(lambda x: node("Mult", node("Elem", x, params=(0,)), node("Square", node("Elem", x, params=(1,)))), lambda x, m: 2 * x[:, :1], 3, id="elements", marks=mark.parity("O-111", "X-83")),
    case(lambda x: node("Max", node("Mult", x, node("Square", x))), lambda x, m: 6 * x.max(-1, keepdims=True), 3, id="max", marks=mark.parity("O-111", "X-83")),
    case(lambda x: node("Sum", node("Sin", x)), lambda x, m: -total(np.sin(x)), 30, id="long", marks=mark.parity("O-107")),
    case(lambda x: node("ComplexAbs", x), lambda x, m: 1 / np.sqrt(sq(x)), 2, id="complex", marks=mark.parity("O-111", "X-83")),
    case(lambda x: node("SoftDTW_SqDist", x, x, constant(1)), None, 2, id="softdtw", marks=mark.parity("O-111", "X-83")),
]
# fmt: on


@mark.parametrize(
    ("op", "formula", "want", "dim"),
    [case("Divergence", *c.values, id=f"div-{c.id}", marks=c.marks) for c in TRACES]
    + [case("Laplacian", *c.values, id=f"lap-{c.id}", marks=c.marks) for c in LAPLACIANS],
)
@both
def test_divergence_and_laplacian(
    backend: str, op: str, formula: Callable, want: Callable | None, dim: int
) -> None:
    (x,) = rows(dim)
    data = dense_rows((dim, 9))
    got = at(backend, node(op, formula(x), x), *data)
    if want:
        same(got, want(*data))
        return
    step = 1e-4  # no closed form: by differences of the value
    shifted = [(data[0] + s * b) for b in np.eye(dim) for s in (step, -step)]
    values = [at(backend, formula(x), d) for d in shifted]
    same(got, (sum(values) - 2 * dim * at(backend, formula(x), data[0])) / step**2, rtol=1e-5, atol=1e-5)


@mark.parity("O-108")
@both
def test_trace_operator(backend: str) -> None:
    v, m, w = rows(3, 9, 3)
    data = dense_rows((3, 9, 3))
    matrix, weight = data[1].reshape(-1, 3, 3), data[2]
    diagonal = np.einsum("rkk->rk", matrix)
    linear = node("MatVecMult", m, v)
    same(at(backend, node("TraceOperator", linear, v, constant(1)), *data), total(diagonal))
    same(at(backend, node("TraceOperator", linear, v, w), *data), total(diagonal * weight))
    same(at(backend, node("TraceOperator", linear, v, constant(3)), *data), 3 * total(diagonal))
    # a row vector: its entries are summed, weighted too
    row = node("Scalprod", w, v)
    same(at(backend, node("TraceOperator", row, v, constant(1)), *data), total(weight))
    same(at(backend, node("TraceOperator", row, v, w), *data), sq(weight))


@mark.parity("O-109")
@both
def test_adjoint_and_sum_of_a_linear_operator(backend: str) -> None:
    v, m, u, right = rows(3, 6, 2, 3)
    data = dense_rows((3, 6, 2, 3))
    matrix = data[1].reshape(-1, 2, 3)
    linear = node("MatVecMult", m, v)
    adjoint = node("AdjointOperator", linear, v, u)
    assert adjoint.dim == 3
    same(at(backend, adjoint, *data), np.einsum("rn,rnp->rp", data[2], matrix))
    one = constant(1)
    same(at(backend, node("SumLinOperator", linear, v, one, one), *data), matrix.sum((1, 2))[:, None])
    weighted = np.einsum("rn,rnp,rp->r", data[2], matrix, data[3])[:, None]
    same(at(backend, node("SumLinOperator", linear, v, u, right), *data), weighted)


@mark.parity("O-108", "O-109")
@mark.parametrize("op", ["TraceOperator", "AdjointOperator", "SumLinOperator"])
def test_operators_that_are_not_linear_are_refused(op: str) -> None:
    v, w = rows(3, 3)
    more = {"TraceOperator": [constant(1)], "AdjointOperator": [w], "SumLinOperator": [constant(1)] * 2}[op]
    for f in (node("Square", v), node("Add", v, w), node("Exp", v)):
        with pytest.raises(FormulaError, match="not linear"):
            node(op, f, v, *more)
    with pytest.raises(DimensionError, match=op):
        node(op, *rows(3, 3), *[variable(7, 2, I)] * len(more))


# fmt: off
LINEAR = [
    case(lambda v, g: node("Extract", v, params=(1, 2)), id="Extract", marks=mark.parity("O-110")),
    case(lambda v, g: node("ExtractT", node("Elem", v, params=(3,)), params=(1, 2)), id="ExtractT", marks=mark.parity("O-110")),
    case(lambda v, g: node("Divide", node("Extract", node("Minus", v), params=(0, 2)), g), id="Divide", marks=mark.parity("O-110")),
    case(lambda v, g: node("Mult", g, node("Subtract", node("Sum", v), node("Elem", v, params=(1,)))), id="Mult", marks=mark.parity("O-110")),
    case(lambda v, g: node("Concat", node("Elem", v, params=(2,)), node("Sum", v)), id="Concat", marks=mark.parity("O-110", "X-83")),
    case(lambda v, g: node("IfElse", g, node("Extract", v, params=(0, 2)), node("Extract", v, params=(2, 2))), id="IfElse", marks=mark.parity("O-110", "X-83")),
    case(lambda v, g: node("ComplexSum", node("Conj", v)), id="complex", marks=mark.parity("O-110", "X-83")),
    case(lambda v, g: node("ComplexMult", g, node("ComplexSum", v)), id="ComplexMult", marks=mark.parity("O-110", "X-83")),
    case(lambda v, g: node("MatVecMult", v, g), id="MatVecMult", marks=mark.parity("O-109", "O-110", "X-83")),
    case(lambda v, g: node("TensorDot", v, g, params=((2, 2), (2,), (1,), (0,), ())), id="TensorDot", marks=mark.parity("O-110", "X-83")),
    case(lambda v, g: node("Extract", node("Kron", v, g, params=((4,), (2,))), params=(1, 2)), id="Kron", marks=mark.parity("O-110", "X-83")),
    case(lambda v, g: node("Factorize", node("Extract", v, params=(2, 2)), v), id="Factorize", marks=mark.parity("O-110", "O-112")),
]
# fmt: on


@mark.parametrize("operator", LINEAR)
@both
def test_the_adjoint_of_a_linear_operator_is_its_transpose(backend: str, operator: Callable) -> None:
    v, u, g = rows(4, 2, 2)
    f = operator(v, g)
    data = dense_rows((4, 2, 2), -1, 1)
    got = at(backend, node("AdjointOperator", f, v, u), *data)
    columns = [at(backend, f, np.broadcast_to(b, data[0].shape), *data[1:]) for b in np.eye(4)]
    same(got, np.concatenate([total(data[1] * c) for c in columns], -1))


@mark.parity("O-112", "O-113")
@both
def test_factorizing_keeps_the_value_and_the_derivative(backend: str) -> None:
    x, e = rows(3, 3)
    part = node("Exp", node("Sin", x))
    whole = node("Add", node("Mult", part, x), node("Square", part))
    data = dense_rows((3, 3))
    want = at(backend, joined(whole, node("Grad", whole, x, e)), *data)
    for f in (node("Factorize", whole, part), node("Factorize", whole, x), node("AutoFactorize", whole)):
        assert f.dim == 3
        np.testing.assert_array_equal(at(backend, joined(f, node("Grad", f, x, e)), *data), want)
