"""Derivatives and linear operators as operations: the client writes them, whoever compiles carries them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from farsum_kernels.errors import DimensionError, FormulaError
from farsum_kernels.formula.expr import MAX_DIM, VAR, Expr, Op, constant, register, walk
from farsum_kernels.formula.grad import check_linear, fresh, jvp, pullback, substituted, vjp
from farsum_kernels.formula.lower import Lowering, Vector
from farsum_kernels.formula.rewrite import make, mul, spread
from farsum_kernels.formula.tensors import joined
from farsum_kernels.scalar.indices import Affine
from farsum_kernels.scalar.ir import Val


def _needs_variable(name: str, v: Expr) -> None:
    if v.op is not VAR:
        raise FormulaError(f"{name} is taken with respect to a variable, not to {v}")


def _wrt(name: str) -> Callable[..., None]:
    return lambda f, v, *rest: _needs_variable(name, v)


def _linear(name: str) -> Callable[..., None]:
    def check(f: Expr, v: Expr, *rest: Expr) -> None:
        _needs_variable(name, v)
        check_linear(f, v)

    return check


def _equal(name: str, a: int, b: int, what: str) -> None:
    if a != b:
        raise DimensionError(f"{name}: {what} need the same dimension; received {a} and {b}")


def _basis_dims(d: int, index: Any, dim: Any) -> int:
    if type(index) is not int or type(dim) is not int or not (-1024 <= index < 0 and 1 <= dim <= MAX_DIM):
        raise FormulaError(f"BasisSum runs over no vectors with number {index!r} and dimension {dim!r}")
    return d


def _grad_dims(f: int, v: int, e: int) -> int:
    _equal("Grad", f, e, "the formula and the cotangent")
    return v


def _diff_dims(f: int, v: int, u: int) -> int:
    _equal("Diff", v, u, "the variable and the direction")
    return f


def _divergence_dims(f: int, v: int) -> int:
    _equal("Divergence", f, v, "the formula and the variable")
    return 1


def _laplacian_dims(f: int, v: int) -> int:
    _equal("Laplacian", f, 1, "the formula and a scalar")
    return 1


def _adjoint_dims(f: int, v: int, u: int) -> int:
    _equal("AdjointOperator", f, u, "the formula and the operand")
    return v


def _trace_dims(f: int, v: int, w: int) -> int:
    if f not in (1, v) or w not in (1, v):
        raise DimensionError(
            f"TraceOperator takes a formula and a weight of dimension 1 or {v}; received {f} and {w}"
        )
    return 1


def _sum_dims(f: int, v: int, left: int, right: int) -> int:
    if left not in (1, f) or right not in (1, v):
        raise DimensionError(
            f"SumLinOperator takes weights of dimension 1 or {f} and 1 or {v}; received {left} and {right}"
        )
    return 1


# ── a sum over the vectors of the standard basis ──────────────────────────────────────────────────


def _basis_sum(lowering: Lowering, node: Expr) -> Vector:
    (inner,) = node.args
    index, dim = node.params
    depending = {n for n in walk(inner) if n.op is VAR and n.params[0] == index}
    for n in walk(inner):
        if any(a in depending for a in n.args):
            depending.add(n)

    def at(k: Affine) -> Val:
        def term(b: Affine) -> Val:
            return lowering.bound(index, dim, b, depending).vector(inner).at(k)

        return lowering.sum(term, dim, k)

    return Vector(node.dim, at)


def _over_basis(f: Expr, v: Expr, build: Any) -> Expr:
    """The sum of build(b) over the vectors b of the standard basis of v's space."""
    b = fresh(v.dim, f)
    return make("BasisSum", build(b), params=(b.params[0], v.dim))


def _divergence(f: Expr, v: Expr) -> Expr:
    return _over_basis(f, v, lambda b: make("Scalprod", b, jvp(f, v, b)))


def _trace(f: Expr, v: Expr, w: Expr) -> Expr:
    if f.dim == 1:
        return _over_basis(f, v, lambda b: mul(make("Scalprod", spread(w, v.dim), b), substituted(f, v, b)))
    return _over_basis(f, v, lambda b: make("Scalprod", mul(b, w), substituted(f, v, b)))


def _sum_operator(f: Expr, v: Expr, left: Expr, right: Expr) -> Expr:
    return make("Scalprod", spread(left, f.dim), substituted(f, v, spread(right, v.dim)))


def _adjoint(f: Expr, v: Expr, u: Expr) -> Expr:
    return pullback(f, [v], u)[0]


def _jacobian(f: Expr, v: Expr) -> Expr:
    one = constant(1)
    return joined(
        [vjp(f, v, make("ElemT", one, params=(f.dim, k)) if f.dim > 1 else one) for k in range(f.dim)]
    )


# fmt: off
basis_sum  = register(Op("BasisSum",   1, _basis_dims, lower=_basis_sum, params=2))
grad       = register(Op("Grad",       3, _grad_dims, expand=vjp, check=_wrt("Grad"), inside=True))
diff       = register(Op("Diff",       3, _diff_dims, expand=jvp, check=_wrt("Diff"), inside=True))
jacobian   = register(Op("GradMatrix", 2, lambda f, v: f * v, expand=_jacobian, check=_wrt("GradMatrix"), inside=True))
divergence = register(Op("Divergence", 2, _divergence_dims, expand=_divergence, check=_wrt("Divergence"), inside=True))
laplacian  = register(Op("Laplacian",  2, _laplacian_dims, check=_wrt("Laplacian"), inside=True,
                         expand=lambda f, v: _divergence(vjp(f, v, constant(1)), v)))
trace      = register(Op("TraceOperator",   3, _trace_dims, expand=_trace, check=_linear("TraceOperator"), inside=True))
adjoint    = register(Op("AdjointOperator", 3, _adjoint_dims, expand=_adjoint, check=_linear("AdjointOperator"), inside=True))
sum_op     = register(Op("SumLinOperator",  4, _sum_dims, expand=_sum_operator, check=_linear("SumLinOperator"), inside=True))
factorize  = register(Op("Factorize",     2, lambda f, g: f, expand=lambda f, g: f))
auto       = register(Op("AutoFactorize", 1, lambda f: f, expand=lambda f: f))
# fmt: on
