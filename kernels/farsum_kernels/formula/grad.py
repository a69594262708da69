"""Differentiation, formula to formula: reverse mode by the rule of each operation, forward mode by
transposing it twice. Every order and every combination is this one mechanism.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from farsum_kernels.errors import DimensionError, FormulaError, FormulaTooLarge, NoDerivative
from farsum_kernels.formula.expr import VAR, Expr, constant, fictitious, variables, walk
from farsum_kernels.formula.rewrite import add, is_zero, make, spread, total, zero

if TYPE_CHECKING:
    from farsum_kernels.formula.reductions import Reduction

# A derivative of a derivative of … grows; past this many nodes it is refused before the next step.
MAX_EXPANDED = 20_000


def pullback(root: Expr, targets: Sequence[Expr], e: Expr) -> list[Expr]:
    """The cotangent of each target (any node below the root) from the cotangent e of the root.

    A target counts as an input: what it depends on itself is not followed.
    """
    root = _opened(root, targets)
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


def _opened(root: Expr, targets: Sequence[Expr]) -> Expr:
    """The formula with the derivatives in it carried out, down to the targets: they are no functions of their operands."""
    nodes = list(islice(walk(root), MAX_EXPANDED + 1))
    if not any(n.op.inside for n in nodes):
        return root
    made: dict[Expr, Expr] = {}
    for n in nodes:
        if n in targets or not n.args:
            made[n] = n
            continue
        args = [made[a] for a in n.args]
        if n.op.inside:
            assert n.op.expand
            made[n] = _opened(n.op.expand(*args, *n.params), targets)
        else:
            changed = any(a is not b for a, b in zip(args, n.args, strict=True))
            made[n] = make(n.op.name, *args, params=n.params) if changed else n
    return made[root]


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
    # Letters stand for the operands: a simplification of the expansion could take one of them apart, and what
    # reaches the operand itself would be lost. An operand that occurs twice is one letter.
    letters = {a: fictitious(-1 - k, a.dim) for k, a in enumerate(dict.fromkeys(n.args))}
    seed = fictitious(-1 - len(letters), e.dim)
    places = {a for a, w in zip(n.args, wanted, strict=True) if w}
    inner = n.op.expand(*(letters[a] for a in n.args), *n.params)
    meant = {letter: a for a, letter in letters.items()} | {seed: e}
    pulled = {
        a: _spelled(c, meant)
        for a, c in zip(places, pullback(inner, [letters[a] for a in places], seed), strict=True)
    }
    # The whole cotangent is given at the first place.
    return [pulled.pop(a, None) if a in places else None for a in n.args]


def _spelled(root: Expr, meant: dict[Expr, Expr]) -> Expr:
    """The formula with the letters replaced by what they stand for."""
    made: dict[Expr, Expr] = {}
    for n in walk(root):
        if n in meant:
            made[n] = meant[n]
        else:
            made[n] = make(n.op.name, *(made[a] for a in n.args), params=n.params) if n.args else n
    return made[root]


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


# ── reductions ────────────────────────────────────────────────────────────────────────────────────


def reduction_vjp(rule: Reduction, f: Expr, w: Expr | None, reduced: int, v: Expr, e: Expr, y: Expr) -> Expr:
    """The gradient of a reduction, at one pair: its Sum over the pairs of a row of v is the cotangent of v.

    reduced   the category that the reduction runs over, I or J
    e, y      variables of the other category: the cotangent of the result, and the saved results
              (`rule.saves`, end to end)

    For a parameter v the Sum gives a row per kept index, to be added up. Raises NoDerivative for a
    reduction without one.
    """
    for_f, for_w = _at_pair(rule, f, w, reduced, e, y)
    parts = [pullback(g, [v], c)[0] for g, c in ((f, for_f), (w, for_w)) if g is not None and c is not None]
    return _added(parts, v.dim)


def reduction_jvp(rule: Reduction, f: Expr, w: Expr | None, reduced: int, v: Expr, u: Expr, y: Expr) -> Expr:
    """The derivative of a reduction in the direction u of v, at one pair: its Sum over the reduced axis is it."""
    width = rule.width(f.dim, w.dim if w else 0)
    if rule.listed:
        width = sum(n.params[1] for n in walk(y) if n.op is VAR)  # K places for each component
    e = fresh(width, f, u, y, *([w] if w else []))
    for_f, for_w = _at_pair(rule, f, w, reduced, e, y)
    parts = [
        pullback(c, [e], jvp(g, v, u))[0]
        for g, c in ((f, for_f), (w, for_w))
        if g is not None and c is not None
    ]
    return _added(parts, width)


def _at_pair(
    rule: Reduction, f: Expr, w: Expr | None, reduced: int, e: Expr, y: Expr
) -> tuple[Expr | None, Expr | None]:
    if rule.grad is None:
        raise NoDerivative(
            f"{rule.name} has no derivative: reduce with LogSumExp or SumSoftMaxWeight instead"
        )
    roots = (f,) if w is None else (f, w)
    along = [x for x in variables(*roots).values() if x.params[2] == reduced]
    place = make("RowIndex", along[0]) if along else constant(0)
    return rule.grad(e, y, f, w, place)


def _added(parts: Sequence[Expr], dim: int) -> Expr:
    total_ = zero(dim)
    for part in parts:
        total_ = add(total_, part)
    return total_
