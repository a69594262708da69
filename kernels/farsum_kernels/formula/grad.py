"""Differentiation, formula to formula: reverse mode by the rule of each operation, forward mode by
transposing it twice. Every order and every combination is this one mechanism.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from farsum_kernels.errors import DimensionError, FormulaError, FormulaTooLarge
from farsum_kernels.formula.expr import VAR, Expr, fictitious, walk
from farsum_kernels.formula.rewrite import add, is_zero, make, spread, total, zero

# A derivative of a derivative of … grows; past this many nodes it is refused before the next step.
MAX_EXPANDED = 20_000


def pullback(root: Expr, targets: Sequence[Expr], e: Expr) -> list[Expr]:
    """The cotangent of each target (any node below the root) from the cotangent e of the root.

    A target counts as an input: what it depends on itself is not followed.
    """
    inside = _depending(root, targets)
    order = [n for n in walk(root) if n in inside]
    cotangents: dict[Expr, Expr] = {root: spread(e, root.dim)}

    def arrive(n: Expr, c: Expr | None) -> None:
        if c is None or n not in inside:
            return
        c = _fitted(c, n.dim)
        if not is_zero(c):
            cotangents[n] = add(cotangents[n], c) if n in cotangents else c

    for n in reversed(order):
        if n in targets or n not in cotangents:
            continue
        if n.op.name == "BasisSum":
            # The cotangent does not depend on the basis vector: the sum stays outside.
            inner = pullback(n.args[0], targets, cotangents[n])
            for target, c in zip(targets, inner, strict=True):
                arrive(target, make("BasisSum", c, params=n.params))
            continue
        wanted = [a in inside for a in n.args]
        for arg, cotangent in zip(n.args, _rule(n, cotangents[n], wanted), strict=True):
            arrive(arg, cotangent)
    return [cotangents.get(t, zero(t.dim)) for t in targets]


def _depending(root: Expr, targets: Iterable[Expr]) -> set[Expr]:
    found = set(targets)
    for count, n in enumerate(walk(root)):
        if count > MAX_EXPANDED:
            raise FormulaTooLarge(f"a derivative would start from more than {MAX_EXPANDED} nodes")
        if any(a in found for a in n.args):
            found.add(n)
    return found


def _rule(n: Expr, e: Expr, wanted: list[bool]) -> Sequence[Expr | None]:
    if n.op.grad:
        return n.op.grad(e, n, *n.args, *n.params)
    assert n.op.expand, f"{n.op} has no derivative"
    places = {a for a, w in zip(n.args, wanted, strict=True) if w}
    inner = n.op.expand(*n.args, *n.params)
    targets = list(places)
    pulled = dict(zip(targets, pullback(inner, targets, e), strict=True))
    # An operand that occurs twice is one target: its whole cotangent is given once.
    return [pulled.pop(a, None) if a in places else None for a in n.args]


def _fitted(c: Expr, dim: int) -> Expr:
    """A cotangent as long as its operand: summed if that was broadcast, spread if it is a scalar."""
    if c.dim == dim:
        return c
    return total(c) if dim == 1 else spread(c, dim)


def vjp(f: Expr, v: Expr, e: Expr) -> Expr:
    """The adjoint of ∂f/∂v applied to e: a formula of the dimension of v; zero if f has no v."""
    if e.dim not in (1, f.dim):
        raise DimensionError(f"the cotangent of a formula of dimension {f.dim} has dimension {e.dim}")
    return pullback(f, [v], e)[0]


def jvp(f: Expr, v: Expr, u: Expr) -> Expr:
    """∂f/∂v applied to u: a formula of the dimension of f. The transpose of the transpose."""
    if u.dim != v.dim:
        raise DimensionError(f"the direction has dimension {u.dim}; the variable {v} has {v.dim}")
    e = fresh(f.dim, f, u)
    return pullback(vjp(f, v, e), [e], u)[0]


def fresh(dim: int, *roots: Expr) -> Expr:
    """A variable that occurs in none of the formulas and vanishes from what is built with it."""
    used = [n.params[0] for n in walk(*roots) if n.op is VAR]
    return fictitious(min([0, *used]) - 1, dim)


def substituted(root: Expr, old: Expr, new: Expr) -> Expr:
    """The formula with a variable replaced, inside derivatives too; composite operations written out."""
    made: dict[Expr, Expr] = {}
    whole = expanded(root)
    for n in walk(whole):
        if n is old:
            made[n] = new
        else:
            made[n] = make(n.op.name, *(made[a] for a in n.args), params=n.params) if n.args else n
    return made[whole]


def expanded(root: Expr) -> Expr:
    """The formula in terms of the operations that have a scalar rule."""
    made: dict[Expr, Expr] = {}
    for count, n in enumerate(walk(root)):
        if count > MAX_EXPANDED:
            raise FormulaTooLarge(f"the formula expands to more than {MAX_EXPANDED} nodes")
        args = [made[a] for a in n.args]
        if n.op.expand:
            made[n] = expanded(n.op.expand(*args, *n.params))
        else:
            made[n] = make(n.op.name, *args, params=n.params) if args else n
    return made[root]


def check_linear(f: Expr, v: Expr) -> None:
    """Raise FormulaError if f is not linear in v: its derivative must not contain v, and f(0) must vanish."""
    e = fresh(f.dim, f)
    if v in set(walk(vjp(f, v, e))):
        raise FormulaError(f"{f} is not linear in {v}")
    if not is_zero(substituted(f, v, zero(v.dim))):
        raise FormulaError(f"{f} is not linear in {v}: it has a part that does not depend on it")

