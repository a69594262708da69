"""Formulas as data: immutable, hash-consed nodes whose dimension and index set are known at birth.

A formula F(x_i, y_j, p) is a tree of `Expr`. Equality is identity, so common subexpressions are
free and a dict keyed by a formula is fast. A node never knows a machine, an array or a dtype: the
same formula is evaluated in whatever dtype the job asks for.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from farsum_kernels.errors import DimensionError, FormulaError, FormulaTooLarge, UnknownOperation

if TYPE_CHECKING:
    from farsum_kernels.formula.lower import Lowering, Vector

# Limits of one formula. They hold for a local user too: past them the compiler, not the
# arithmetic, is what takes the time.
MAX_NODES = 4096
MAX_DEPTH = 4096
MAX_DIM = 1 << 16
MAX_VARIABLES = 1024

I, J, P = 0, 1, 2
CATEGORIES = {I: "Vi", J: "Vj", P: "Pm"}


@dataclass(frozen=True, eq=False)
class Op:
    """One operation: its name, its dims rule and its meaning. No backend is ever named here.

    `dims(*dims, *params)` gives the output dimension or raises `DimensionError`; `check(*args, *params)`
    looks at the operands themselves where their dimensions do not say enough. The meaning is one of:
    `expand(*args, *params)`, a formula of simpler operations, or `lower(lowering, node)`, a rule in the
    scalar IR. `grad(e, y, *args, *params)` gives the cotangents of the operands from that of the output
    y; an operation without it is differentiated through its expansion. `inside`: the expansion is made of what
    the operands are made of, not of their values, as that of a derivative is.
    """

    name: str
    arity: int
    dims: Callable[..., int]
    lower: Callable[[Lowering, Expr], Vector] | None = None
    expand: Callable[..., Expr] | None = None
    grad: Callable[..., tuple[Expr | None, ...]] | None = None
    check: Callable[..., None] | None = None
    params: int = 0
    infix: str | None = None
    inside: bool = False

    def __repr__(self) -> str:
        return f"<op {self.name}>"


OPS: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Add an operation to the table. A name is given once."""
    if op.name in OPS:
        raise ValueError(f"operation {op.name!r} is declared twice")
    OPS[op.name] = op
    return op


def operations() -> dict[str, Op]:
    """The table of operations, with every module that declares some loaded."""
    from farsum_kernels.formula import calculus, complexes, constants, norms, pointwise, tensors, vectors  # noqa: F401

    return OPS


def op_named(name: str) -> Op:
    """The operation of that name, or `UnknownOperation` with the nearest names."""
    if op := OPS.get(name) or operations().get(name):
        return op
    from difflib import get_close_matches

    near = get_close_matches(name, OPS, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UnknownOperation(f"unknown operation {name!r}{hint}")


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True, repr=False)
class Expr:
    """One node. Build it with `node`, `variable` or `constant`, never directly.

    dim      length of the value, a flat vector, at least 1
    indices  bit 0: depends on i; bit 1: depends on j; 0: parameters and constants only
    digest   content digest built from the children's, the same on every machine
    """

    op: Op
    args: tuple[Expr, ...]
    params: tuple[Any, ...]
    dim: int
    indices: int
    depth: int
    digest: bytes = field(repr=False)

    def __repr__(self) -> str:
        return render(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (encode(self),)


_nodes: WeakValueDictionary[tuple[Any, ...], Expr] = WeakValueDictionary()
_lock = threading.Lock()


def _intern(
    op: Op, args: tuple[Expr, ...], params: tuple[Any, ...], make_dims: Callable[[], tuple[int, int]]
) -> Expr:
    # The type of each parameter is part of the key: 1 == 1.0 == True in Python, not in a formula.
    key = (op.name, args, params, tuple(map(type, params)))
    if found := _nodes.get(key):
        return found
    dim, indices = make_dims()
    if not 1 <= dim <= MAX_DIM:
        raise FormulaTooLarge(f"{op.name} gives a vector of dimension {dim}; allowed are 1 to {MAX_DIM}")
    depth = 1 + max((a.depth for a in args), default=0)
    if depth > MAX_DEPTH:
        raise FormulaTooLarge(f"the formula is nested more than {MAX_DEPTH} levels deep")
    text = f"{op.name}|{params!r}|{dim}|".encode()
    digest = hashlib.blake2b(text + b"".join(a.digest for a in args), digest_size=16).digest()
    with _lock:
        if found := _nodes.get(key):
            return found
        made = Expr(op, args, params, dim, indices, depth, digest)
        _nodes[key] = made
        return made


def node(op: Op | str, *args: Expr, params: tuple[Any, ...] = ()) -> Expr:
    """The node `op(*args, *params)`.

    Raises DimensionError when the operands do not fit, FormulaError for a wrong number of them.

    >>> from farsum_kernels.formula import vectors
    >>> node("SqDist", variable(0, 3, I), variable(1, 3, J)).dim
    1
    """
    op = op_named(op) if isinstance(op, str) else op
    if len(args) != op.arity or len(params) != op.params:
        raise FormulaError(
            f"{op.name} takes {op.arity} operands and {op.params} parameters, "
            f"not {len(args)} and {len(params)}"
        )

    def dims() -> tuple[int, int]:
        dim, indices = op.dims(*(a.dim for a in args), *params), 0
        if op.check:
            op.check(*args, *params)
        for a in args:
            indices |= a.indices
        return dim, indices

    return _intern(op, args, params, dims)


def _leaf(lowering: Lowering, leaf: Expr) -> Vector:
    return lowering.leaf(leaf)


VAR = register(Op("Var", 0, lambda *p: p[1], lower=_leaf, params=3))
CONST = register(Op("Const", 0, lambda value: 1, lower=_leaf, params=1))


def variable(index: int, dim: int, category: int) -> Expr:
    """Input number `index`: rows of x_i (category I), of y_j (J), or one parameter vector (P).

    >>> variable(0, 3, I)
    Var(0,3,0)
    """
    for word, value in (("index", index), ("dimension", dim), ("category", category)):
        if type(value) is not int:
            raise FormulaError(f"the {word} of a variable must be an int, not {value!r}")
    if category not in CATEGORIES:
        raise FormulaError(f"category {category} of a variable is none of 0 (i), 1 (j), 2 (parameter)")
    if not 0 <= index < MAX_VARIABLES:
        raise FormulaError(f"variable index {index} is not in 0 to {MAX_VARIABLES - 1}")
    if not 1 <= dim <= MAX_DIM:
        raise DimensionError(f"variable {index} has dimension {dim}; allowed are 1 to {MAX_DIM}")
    return _intern(VAR, (), (index, dim, category), lambda: (dim, (1, 2, 0)[category]))


def fictitious(index: int, dim: int) -> Expr:
    """A variable with a negative index: it stands for a vector while a derivative is built, and is no input."""
    assert index < 0
    return _intern(VAR, (), (index, dim, P), lambda: (dim, 0))


def constant(value: float) -> Expr:
    """A number, exact in the data dtype of the job."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormulaError(f"a constant must be an int or a float, not {value!r}")
    if isinstance(value, int) and abs(value) > 1 << 53:
        raise FormulaError(f"the integer constant {value} is not exact in float64; write it as a float")
    if isinstance(value, float):
        # One node for each number: nan is unlike itself, and -0.0 like 0.0.
        value = math.nan if math.isnan(value) else value + 0.0
    return _intern(CONST, (), (value,), lambda: (1, 0))


def walk(*roots: Expr, closed: frozenset[str] = frozenset()) -> Iterator[Expr]:
    """Every distinct node below the roots, operands before the nodes that use them.

    The operands of operations named in `closed` are not visited.
    """
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        expr, ready = stack.pop()
        if expr in seen:
            continue
        if ready:
            seen.add(expr)
            yield expr
        else:
            stack.append((expr, True))
            if expr.op.name not in closed:
                stack.extend((a, False) for a in reversed(expr.args) if a not in seen)


def variables(*roots: Expr) -> dict[int, Expr]:
    """The variables below the roots by index, in rising order of index.

    Raises FormulaError when one index is used with two dims or categories.
    """
    found: dict[int, Expr] = {}
    for expr in walk(*roots):
        if expr.op is VAR and expr.params[0] >= 0 and found.setdefault(expr.params[0], expr) is not expr:
            raise FormulaError(f"{found[expr.params[0]]} and {expr} declare one input in two ways")
    return dict(sorted(found.items()))


def substitute(root: Expr, leaf: Callable[[Expr], Expr]) -> Expr:
    """The formula with every variable v replaced by leaf(v)."""
    new: dict[Expr, Expr] = {}
    for expr in walk(root):
        if expr.op is VAR and expr.params[0] >= 0:
            new[expr] = leaf(expr)
        elif expr.args:
            new[expr] = node(expr.op, *(new[a] for a in expr.args), params=expr.params)
        else:
            new[expr] = expr
    return new[root]


def swap_axes(root: Expr) -> Expr:
    """The formula with the roles of i and j exchanged."""
    return substitute(root, lambda v: variable(v.params[0], v.params[1], (J, I, P)[v.params[2]]))


def check_size(*roots: Expr) -> None:
    """Raise FormulaTooLarge when a formula has more distinct nodes than the limit."""
    for count, _ in enumerate(walk(*roots), 1):
        if count > MAX_NODES:
            raise FormulaTooLarge(f"the formula has more than {MAX_NODES} distinct nodes")


def render(root: Expr) -> str:
    """The formula as text, in the spelling of the string language."""
    text: dict[Expr, str] = {}
    for expr in walk(root):
        args = [text[a] for a in expr.args]
        if expr.op is CONST:
            # IntCst(0) reads as the structural zero, which a computed 0 is not.
            value = expr.params[0]
            text[expr] = f"IntCst({value})" if isinstance(value, int) and value else f"Const({value!r})"
        elif expr.op.infix and len(args) == 2:
            text[expr] = f"({args[0]} {expr.op.infix} {args[1]})"
        elif expr.params:
            # Two-operand functions print a blank after the comma, literal parameters none.
            literals = ",".join(str(list(p) if isinstance(p, tuple) else p) for p in expr.params)
            text[expr] = f"{expr.op.name}({', '.join(args)}{',' if args else ''}{literals})"
        else:
            text[expr] = f"{expr.op.name}({', '.join(args)})"
        if len(text[expr]) > 20_000:
            text[expr] = text[expr][:200] + "…"
    return text[root]


# A formula in its flat form: operands are indices into the list, strictly smaller than the node's own.
Flat = tuple[tuple[str, tuple[int, ...], tuple[Any, ...]], ...]


def encode(*roots: Expr) -> tuple[Flat, tuple[int, ...]]:
    """The nodes below the roots as a flat list, and the place of each root in it."""
    place: dict[Expr, int] = {}
    flat: list[tuple[str, tuple[int, ...], tuple[Any, ...]]] = []
    for expr in walk(*roots):
        place[expr] = len(flat)
        flat.append((expr.op.name, tuple(place[a] for a in expr.args), expr.params))
    return tuple(flat), tuple(place[r] for r in roots)


def decode(flat: Flat, roots: tuple[int, ...]) -> tuple[Expr, ...]:
    """The inverse of `encode`. Every rule that holds for a local formula is checked again.

    Raises FormulaError for an operand that is not an earlier node, UnknownOperation for a name that
    is in no table, FormulaTooLarge past the limits.
    """
    if len(flat) > MAX_NODES:
        raise FormulaTooLarge(f"the formula has {len(flat)} nodes; at most {MAX_NODES} are allowed")
    made: list[Expr] = []
    for n, (name, args, params) in enumerate(flat):
        if any(not 0 <= a < n for a in args):
            raise FormulaError(f"node {n} ({name}) refers to {list(args)}; operands must be earlier nodes")
        match name, args, params:
            case "Var", (), (index, dim, category):
                made.append(variable(index, dim, category))
            case "Const", (), (value,):
                made.append(constant(value))
            case _:
                made.append(node(name, *(made[a] for a in args), params=params))
    if any(not 0 <= r < len(made) for r in roots):
        raise FormulaError("the message has no root node")
    return tuple(made[r] for r in roots)


def _rebuild(parts: tuple[Flat, tuple[int, ...]]) -> Expr:
    return decode(*parts)[0]
