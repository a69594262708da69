"""The string language: text in, formula out. A parser of its own; no part of the text is ever evaluated.

    comparison   < <= > >= == !=     not chained
    product      |                   the scalar product, looser than + and *
    sum          + -
    term         * /
    unary        -
    power        **                  with an int literal; tighter than the unary minus before it

Ints next to operators are constants. `str` of a formula is text of this language, and reads back as the
same formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farsum_kernels.errors import FormulaError
from farsum_kernels.formula.aliases import Argument, Arguments
from farsum_kernels.formula.calls import Reduced
from farsum_kernels.formula.expr import VAR, Expr, walk
from farsum_kernels.formula.grad import expanded
from farsum_kernels.formula.parser import Parser
from farsum_kernels.formula.tokens import Source


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a formula and its aliases mean.

    root        the formula; the inner one if the text is a reduction
    weight      the second formula, if one was given
    arguments   one per argument, in the order of the call
    reduction   the reduction, if the text is one
    """

    root: Expr
    weight: Expr | None
    arguments: tuple[Argument, ...]
    reduction: Reduced | None = None

    @property
    def nargs(self) -> int:
        return len(self.arguments)


def parse(formula: str, aliases: Sequence[str] = (), weight: str | None = None) -> Parsed:
    """The formula that a text stands for, and its arguments.

    >>> parsed = parse("Exp(-SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)"])
    >>> parsed.root
    (Exp(Minus(SqDist(Var(0,3,0), Var(1,3,1)))) * Var(2,1,1))
    >>> parsed.nargs
    3

    Raises FormulaError, UnknownOperation, DimensionError or FormulaTooLarge; the message shows the place.
    """
    arguments = Arguments(aliases)
    main = Parser(Source(formula, "a formula"), arguments)
    found = main.whole()
    second = None if weight is None else Parser(Source(weight, "a formula"), arguments).formula()
    reduction = found if isinstance(found, Reduced) else None
    root = reduction.formula if reduction else found
    assert isinstance(root, Expr)
    second = second or (reduction.weight if reduction else None)
    try:
        closed = None if second is None else _closed(second)
        return Parsed(_closed(root), closed, arguments.in_order(), reduction)
    except FormulaError as error:
        raise main.source.error(str(error), 0, type(error)) from None


def expression(text: str) -> Expr:
    """The formula that a text with inline variables stands for: the inverse of `str`.

    >>> f = expression("2*SqDist(Var(0,3,0),Var(7,3,1))")
    >>> str(f)
    '(IntCst(2) * SqDist(Var(0,3,0), Var(7,3,1)))'
    >>> expression(str(f)) is f
    True
    """
    return Parser(Source(text, "a formula"), Arguments(())).formula()


def _closed(root: Expr) -> Expr:
    """The formula without fictitious variables. Raises FormulaError if one does not vanish."""
    if not any(n.op is VAR and n.params[0] < 0 for n in walk(root)):
        return root
    flat = expanded(root)
    for n in walk(flat):
        if n.op is VAR and n.params[0] < 0:
            raise FormulaError(
                f"{n} has a negative index, which is for variables that vanish; it does not vanish in {root}"
            )
    return flat
