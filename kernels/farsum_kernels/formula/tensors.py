"""Products of matrices and tensors, flattened row by row, and two operations built of many scalars.

All products are one: TensorDot. Its derivative is TensorDot again, so every order exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from math import prod
from typing import Any

from farsum_kernels.errors import DimensionError, FormulaError, FormulaTooLarge
from farsum_kernels.formula.expr import MAX_DIM, Expr, Op, constant, register
from farsum_kernels.formula.lower import Lowering, Vector
from farsum_kernels.formula.rewrite import add, div, make, mul, neg, spread, sub, zero
from farsum_kernels.scalar.indices import Affine
from farsum_kernels.scalar.ir import Val

Dims = tuple[int, ...]

# Of the recursions that are written out cell by cell.
MAX_CELLS = 1024


class _Layout:
    """Which axes of f and g are contracted, and where each kept axis goes in the output."""

    def __init__(self, f: Dims, g: Dims, over_f: Dims, over_g: Dims, perm: Dims) -> None:
        self.f, self.g, self.over_f, self.over_g = f, g, over_f, over_g
        self.keep_f = [a for a in range(len(f)) if a not in over_f]
        self.keep_g = [a for a in range(len(g)) if a not in over_g]
        self.kept = [f[a] for a in self.keep_f] + [g[a] for a in self.keep_g]
        self.perm = perm or tuple(range(len(self.kept)))
        # perm[a] is the place of kept axis a in the output.
        self.order = sorted(range(len(self.perm)), key=lambda a: self.perm[a])
        self.shape = [self.kept[a] for a in self.order]
        self.contracted = [f[a] for a in over_f]


def _ints(name: str, *lists: Any) -> None:
    for values in lists:
        if not isinstance(values, tuple) or any(type(v) is not int for v in values):
            raise FormulaError(f"{name} takes lists of ints, not {values!r}")


def _tensordot_dims(df: int, dg: int, f: Any, g: Any, over_f: Any, over_g: Any, perm: Any) -> int:
    _ints("TensorDot", f, g, over_f, over_g, perm)
    if any(len(shape) > 16 or max(shape, default=1) > MAX_DIM for shape in (f, g)):
        raise FormulaTooLarge(f"TensorDot takes at most 16 axes of at most {MAX_DIM} entries")
    for name, dim, shape, axes in (("first", df, f, over_f), ("second", dg, g, over_g)):
        if prod(shape) != dim or any(d < 1 for d in shape):
            raise DimensionError(
                f"the {name} operand of TensorDot has dimension {dim}, not that of shape {list(shape)}"
            )
        if len(set(axes)) != len(axes) or any(not 0 <= a < len(shape) for a in axes):
            raise DimensionError(
                f"the axes {list(axes)} of the {name} operand of TensorDot are not axes of {list(shape)}"
            )
    if [f[a] for a in over_f] != [g[a] for a in over_g]:
        raise DimensionError(
            f"TensorDot contracts axes of lengths {[f[a] for a in over_f]} with {[g[a] for a in over_g]}"
        )
    kept = len(f) + len(g) - 2 * len(over_f)
    if perm and sorted(perm) != list(range(kept)):
        raise DimensionError(f"{list(perm)} does not order the {kept} axes that TensorDot keeps")
    return prod(_Layout(f, g, over_f, over_g, perm).shape)


def _digits(k: Affine, shape: Sequence[int]) -> list[Affine]:
    """The multi-index of a flat index, row-major."""
    found = []
    for length in reversed(shape):
        found.append(k.mod(length))
        k = k.div(length)
    return found[::-1]


def _flat(index: Sequence[Affine], shape: Sequence[int]) -> Affine:
    return reduce(lambda k, pair: k * pair[1] + pair[0], zip(index, shape, strict=True), Affine(0))


def _tensordot(lowering: Lowering, node: Expr) -> Vector:
    f, g = (lowering.vector(a) for a in node.args)
    layout = _Layout(*node.params)

    def at(k: Affine) -> Val:
        out = _digits(k, layout.shape)
        kept = [out[place] for place in layout.perm]

        def term(c: Affine) -> Val:
            inner = _digits(c, layout.contracted)
            in_f = dict(zip(layout.keep_f, kept, strict=False)) | dict(zip(layout.over_f, inner, strict=True))
            in_g = dict(zip(layout.keep_g, kept[len(layout.keep_f) :], strict=True))
            in_g |= dict(zip(layout.over_g, inner, strict=True))
            return f.at(_flat([in_f[a] for a in range(len(layout.f))], layout.f)) * g.at(
                _flat([in_g[a] for a in range(len(layout.g))], layout.g)
            )

        return lowering.sum(term, prod(layout.contracted), k)

    return Vector(node.dim, at)


def _inverse(perm: Sequence[int]) -> Dims:
    return tuple(sorted(range(len(perm)), key=lambda a: perm[a]))


def _grad_tensordot(
    e: Expr, y: Expr, f: Expr, g: Expr, df: Dims, dg: Dims, over_f: Dims, over_g: Dims, perm: Dims
) -> tuple[Expr | None, ...]:
    layout = _Layout(df, dg, over_f, over_g, perm)
    e, shape, split = spread(e, y.dim), tuple(layout.shape), len(layout.keep_f)
    places_f, places_g = layout.perm[:split], layout.perm[split:]
    # e·g over the axes that g keeps: what is left is the kept axes of f, in output order, then g's contracted ones.
    left_f = sorted(range(split), key=lambda a: places_f[a])
    axes_f = [layout.keep_f[a] for a in left_f] + [over_f[over_g.index(a)] for a in sorted(over_g)]
    for_f = make("TensorDot", e, g, params=(shape, dg, tuple(places_g), tuple(layout.keep_g), tuple(axes_f)))
    left_g = sorted(range(len(places_g)), key=lambda a: places_g[a])
    axes_g = [layout.keep_g[a] for a in left_g] + [over_g[over_f.index(a)] for a in sorted(over_f)]
    for_g = make("TensorDot", e, f, params=(shape, df, tuple(places_f), tuple(layout.keep_f), tuple(axes_g)))
    return for_f, for_g


def tensordot(f: Expr, g: Expr, df: Dims, dg: Dims, over_f: Dims, over_g: Dims, perm: Dims = ()) -> Expr:
    return make("TensorDot", f, g, params=(df, dg, over_f, over_g, perm))


def _divides(name: str, matrix: int, vector: int) -> int:
    if matrix % vector:
        raise DimensionError(
            f"{name}: a vector of dimension {vector} does not divide a matrix of {matrix} entries"
        )
    return matrix // vector


def _matvec(a: Expr, b: Expr) -> Expr:
    return tensordot(a, b, (a.dim // b.dim, b.dim), (b.dim,), (1,), (0,))


def _vecmat(b: Expr, a: Expr) -> Expr:
    return tensordot(b, a, (b.dim,), (b.dim, a.dim // b.dim), (0,), (0,))


def _kron_dims(df: int, dg: int, f: Any, g: Any) -> int:
    _ints("Kron", f, g)
    if len(f) != len(g):
        raise DimensionError(f"Kron needs shapes of one length; received {list(f)} and {list(g)}")
    return _tensordot_dims(df, dg, f, g, (), (), ())


def _kron(f: Expr, g: Expr, df: Dims, dg: Dims) -> Expr:
    rank = len(df)
    perm = (*(2 * a for a in range(rank)), *(2 * a + 1 for a in range(rank)))
    return tensordot(f, g, df, dg, (), (), perm)


# ── B-splines ─────────────────────────────────────────────────────────────────────────────────────


def _bspline_dims(knots: int, x: int, k: Any) -> int:
    if x != 1:
        raise DimensionError(f"BSpline is sampled at a scalar; received dimension {x}")
    if type(k) is not int or k < 0 or knots < k + 2:
        raise DimensionError(
            f"BSpline of degree {k!r} needs a degree of at least 0 and at least degree + 2 knots; received {knots}"
        )
    if (knots - k) * (k + 1) > MAX_CELLS:
        raise FormulaTooLarge(f"BSpline of degree {k} on {knots} knots has more than {MAX_CELLS} cells")
    return knots - k - 1


def _elem(x: Expr, m: int) -> Expr:
    return make("Extract", x, params=(m, 1))


def _bspline(knots: Expr, x: Expr, k: int) -> Expr:
    """The Cox-de Boor recursion on half-open cells, 0/0 counted as 0."""
    t = [_elem(knots, m) for m in range(knots.dim)]
    nothing = zero(1)
    basis = [mul(make("LessOrEqual", a, x), make("LessThan", x, b)) for a, b in pairwise(t)]

    def ramp(up: Expr, width: Expr, value: Expr) -> Expr:
        empty = make("LessOrEqual", width, constant(0))
        safe = add(width, empty)  # never 0, so that the unused branch and its derivative stay finite
        return mul(make("IfElse", neg(empty), div(up, safe), nothing), value)

    for degree in range(1, k + 1):
        basis = [
            add(
                ramp(sub(x, t[m]), sub(t[m + degree], t[m]), basis[m]),
                ramp(sub(t[m + degree + 1], x), sub(t[m + degree + 1], t[m + 1]), basis[m + 1]),
            )
            for m in range(len(basis) - 1)
        ]
    return joined(basis)


def joined(parts: Sequence[Expr]) -> Expr:
    """The parts end to end, joined in a balanced tree."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return make("Concat", joined(parts[:half]), joined(parts[half:]))


# ── soft dynamic time warping ─────────────────────────────────────────────────────────────────────


def _softdtw_dims(x: int, y: int, gamma: int) -> int:
    if gamma != 1:
        raise DimensionError(f"the softness of SoftDTW is a scalar; received dimension {gamma}")
    if x * y > MAX_CELLS:
        raise FormulaTooLarge(f"SoftDTW of sequences of lengths {x} and {y} has more than {MAX_CELLS} cells")
    return 1


def _softdtw(x: Expr, y: Expr, gamma: Expr) -> Expr:
    """The value of the last cell; each cell adds (x_i - y_j)² to the soft minimum of its predecessors."""

    def soft_min(parts: list[Expr]) -> Expr:
        if len(parts) == 1:
            return parts[0]
        # -γ log Σ exp(-p/γ), shifted by the smallest.
        least = make("Min", joined(parts))
        terms = [make("Exp", div(sub(least, p), gamma)) for p in parts]
        return sub(least, mul(gamma, make("Log", reduce(add, terms))))

    row: list[Expr] = []
    for i in range(x.dim):
        above, row = row, []
        for j in range(y.dim):
            before = [*above[max(0, j - 1) : j + 1], *row[-1:]]
            cost = make("Square", sub(_elem(x, i), _elem(y, j)))
            row.append(add(cost, soft_min(before)) if before else cost)
    return row[-1]


# fmt: off
tensordot_ = register(Op("TensorDot",  2, _tensordot_dims, lower=_tensordot, grad=_grad_tensordot, params=5))
matvec     = register(Op("MatVecMult", 2, lambda a, b: _divides("MatVecMult", a, b), expand=_matvec))
vecmat     = register(Op("VecMatMult", 2, lambda b, a: _divides("VecMatMult", a, b), expand=_vecmat))
outer      = register(Op("TensorProd", 2, lambda f, g: f * g, expand=lambda f, g: tensordot(f, g, (f.dim,), (g.dim,), (), ())))
kron       = register(Op("Kron",       2, _kron_dims, expand=_kron, params=2))
bspline    = register(Op("BSpline",    2, _bspline_dims, expand=_bspline, params=1))
softdtw    = register(Op("SoftDTW_SqDist", 3, _softdtw_dims, expand=_softdtw))
# fmt: on
