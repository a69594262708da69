"""The string language: what each construct means, what each mistake says, and that text round-trips."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farsum_kernels.errors import (
    DimensionError,
    FarsumError,
    FormulaError,
    FormulaTooLarge,
    UnknownOperation,
)
from farsum_kernels.formula.expr import (
    Expr,
    I,
    J,
    P,
    constant,
    fictitious,
    node,
    operations,
    variable,
)
from farsum_kernels.formula.rewrite import rational
from farsum_kernels.formula.text import expression, parse
from tests import oracles

ALIASES = ["x = Vi(3)", "y = Vj(3)", "s = Pm(1)", "z = Vj(4)"]
x, y, s, z = variable(0, 3, I), variable(1, 3, J), variable(2, 1, P), variable(3, 4, J)
mark = pytest.mark


def n(op: str, *args: Expr, p: tuple = ()) -> Expr:
    return node(op, *args, params=p)


def zero(dim: int) -> Expr:
    return n("Zero", p=(dim,))


# ── what it means ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("SqDist (x, y)", n("SqDist", x, y), marks=mark.parity("F-20")),
        pytest.param("-x**2", n("Minus", n("Square", x)), marks=mark.parity("F-21")),
        pytest.param("x**3", n("Pow", x, p=(3,)), marks=mark.parity("F-21")),
        pytest.param("x**1", x, marks=mark.parity("F-21")),
        pytest.param("x**0", n("Pow", x, p=(0,)), marks=mark.parity("F-21")),
        pytest.param("x**-2", n("Pow", x, p=(-2,)), marks=mark.parity("F-21")),
        pytest.param("x**2**3", n("Pow", x, p=(8,)), marks=mark.parity("F-21")),
        pytest.param("(x**3)**2", n("Square", n("Pow", x, p=(3,))), marks=mark.parity("F-21")),
        pytest.param("-x*y", n("Mult", n("Minus", x), y), marks=mark.parity("F-22")),
        pytest.param("x - -y", n("Subtract", x, n("Minus", y)), marks=mark.parity("F-22")),
        pytest.param("x*y/s", n("Divide", n("Mult", x, y), s), marks=mark.parity("F-23")),
        pytest.param("x/y*s", n("Mult", n("Divide", x, y), s), marks=mark.parity("F-23")),
        pytest.param("1/x", n("Inv", x), marks=mark.parity("F-23")),
        pytest.param("5/x", n("Divide", constant(5), x), marks=mark.parity("F-23")),
        pytest.param("0/x", zero(3), marks=mark.parity("F-23")),
        pytest.param("x-y+s", n("Add", n("Subtract", x, y), s), marks=mark.parity("F-24")),
        pytest.param("x+y*s", n("Add", x, n("Mult", y, s)), marks=mark.parity("F-24")),
        pytest.param("x|y+s", n("Scalprod", x, n("Add", y, s)), marks=mark.parity("F-25")),
        pytest.param("x*s|y", n("Scalprod", n("Mult", x, s), y), marks=mark.parity("F-25")),
        pytest.param("x-y|x-y", n("Scalprod", n("Subtract", x, y), n("Subtract", x, y)), marks=mark.parity("F-25")),
        pytest.param("x|y<s", n("LessThan", n("Scalprod", x, y), s), marks=mark.parity("F-26")),
        pytest.param("x<=y", n("LessOrEqual", x, y), marks=mark.parity("F-26")),
        pytest.param("x>y", n("LessThan", y, x), marks=mark.parity("F-26")),
        pytest.param("x>=y", n("LessOrEqual", y, x), marks=mark.parity("F-26")),
        pytest.param("x == y", n("Equal", x, y), marks=mark.parity("F-28")),
        pytest.param("x != y", n("NotEqual", x, y), marks=mark.parity("F-28")),
        pytest.param("2*x+3", n("Add", n("Mult", constant(2), x), constant(3)), marks=mark.parity("F-29")),
        pytest.param("x*True", n("Mult", x, constant(1)), marks=mark.parity("F-29")),
        pytest.param("2*3*x", n("Mult", constant(6), x), marks=mark.parity("F-29")),
        pytest.param("x+0", n("Add", x, zero(1)), marks=mark.parity("F-29")),
        pytest.param(" x\n +\t y ", n("Add", x, y), marks=mark.parity("F-32")),
        pytest.param(
            "TensorDot(x,y,[3],[3],[0],[0])",
            n("TensorDot", x, y, p=((3,), (3,), (0,), (0,), ())),
            marks=mark.parity("F-33", "X-67"),
        ),
        pytest.param("Kron(x, y, [3,1], [1, 3])", n("Kron", x, y, p=((3, 1), (1, 3))), marks=mark.parity("F-33")),
        pytest.param("Kron(x,y,Ind(3),Ind(3))", n("Kron", x, y, p=((3,), (3,))), marks=mark.parity("F-33", "X-67")),
        pytest.param("IntCst(7)", constant(7), marks=mark.parity("O-01")),
        pytest.param("IntCst(0)", zero(1), marks=mark.parity("O-01")),
        pytest.param("Zero(4)", zero(4), marks=mark.parity("O-02")),
        pytest.param("IntInv(3)", n("RatCst", p=(1, 3)), marks=mark.parity("O-03")),
        pytest.param("IntInv(-1)", constant(-1), marks=mark.parity("O-03")),
        pytest.param("RatCst(4,-6)", n("RatCst", p=(-2, 3)), marks=mark.parity("O-04")),
        pytest.param("RatCst(6,3)", constant(2), marks=mark.parity("O-04")),
        pytest.param("RatCst(0,3)", zero(1), marks=mark.parity("O-04")),
        pytest.param("IntInv(2)+1", n("Add", n("RatCst", p=(1, 2)), constant(1)), marks=mark.parity("S-11", "X-27")),
        pytest.param("1/2*x", n("Mult", n("RatCst", p=(1, 2)), x)),
        pytest.param("Var(0,3,0)", x, marks=mark.parity("O-05")),
        pytest.param("Elem(x,2)", n("Elem", x, p=(2,))),
        pytest.param("Grad(SqDist(x,y),x,s)", n("Grad", n("SqDist", x, y), x, s)),
        pytest.param("TraceOperator(x*s,x)", n("TraceOperator", n("Mult", x, s), x, constant(1)), marks=mark.parity("O-108")),
        pytest.param("TraceOperator(x,x,y)", n("TraceOperator", x, x, y), marks=mark.parity("O-108")),
        pytest.param("SumLinOperator(x,x)", n("SumLinOperator", x, x, constant(1), constant(1)), marks=mark.parity("O-109")),
        pytest.param("SumLinOperator(x,x,s)", n("SumLinOperator", x, x, s, constant(1)), marks=mark.parity("O-109")),
        pytest.param(
            "Diff(x|y,(x,y),(y,x))",
            n("Add", n("Diff", n("Scalprod", x, y), x, y), n("Diff", n("Scalprod", x, y), y, x)),
            marks=mark.parity("O-103"),
        ),
    ],
)  # fmt: skip
def test_meaning(text: str, want: Expr) -> None:
    assert parse(text, ALIASES).root is want


@pytest.mark.parametrize(
    ("aliases", "want"),
    [
        pytest.param(["x=Vi(2)", "y=Vj(3)", "p=Pm(1)"], [(0, 2, I), (1, 3, J), (2, 1, P)], marks=mark.parity("F-01", "F-03")),
        pytest.param([" x = V i ( 2 ) "], [(0, 2, I)], marks=mark.parity("F-01")),
        pytest.param(["p=Pm(2,1)", "x=Vi(0,3)", "y=Vj(1,3)"], [(0, 3, I), (1, 3, J), (2, 1, P)], marks=mark.parity("F-02")),
        pytest.param(["x=Vi(3)", "Vj(5)", "Vj(2,5)", "Var(3,1,2)"], [(0, 3, I), (1, 5, J), (2, 5, J), (3, 1, P)], marks=mark.parity("F-04")),
        pytest.param(["x=Vx(3)", "y=Vy(2)"], [(0, 3, I), (1, 2, J)], marks=mark.parity("F-08", "X-67")),
        pytest.param(["x=Var(0,3,0)"], [(0, 3, I)], marks=mark.parity("F-09", "X-67")),
        pytest.param(["x=Vi(0,3)", "same=Vi(0,3)"], [(0, 3, I)]),
    ],
)  # fmt: skip
def test_aliases_declare_the_arguments(aliases: list[str], want: list[tuple]) -> None:
    parsed = parse("IntCst(1)", aliases)
    assert [(a.index, a.dim, a.category) for a in parsed.arguments] == want
    assert parsed.nargs == len(want)


@mark.parity("F-05")
def test_inline_variables_are_appended_to_the_arguments() -> None:
    parsed = parse("SqDist(x, Var(1,3,1)) * Var(2,1,2)", ["x=Vi(3)"])
    assert parsed.root is n("Mult", n("SqDist", x, y), s)
    assert [str(a) for a in parsed.arguments] == ["x = Vi(0,3)", "Var(1,3,1)", "Var(2,1,2)"]
    with pytest.raises(FormulaError, match="argument 1 is not declared"):
        parse("SqDist(x, Var(2,3,1))", ["x=Vi(3)"])


@mark.parity("F-12")
def test_unused_aliases_are_arguments() -> None:
    assert parse("Exp(s)", ALIASES).nargs == 4


@mark.parity("F-13")
def test_an_alias_wins_over_an_operation() -> None:
    assert parse("Sin(Exp)", ["Exp=Vi(3)"]).root is n("Sin", x)
    with pytest.raises(FormulaError, match="'Exp' is an alias here"):
        parse("Exp(Exp)", ["Exp=Vi(3)"])


@mark.parity("F-14", "X-65")
def test_any_sequence_of_aliases_does_and_stays_as_it_is() -> None:
    aliases = ["x=Vi(3)"]
    parse("SqDist(x,Var(1,3,1))", aliases)
    assert aliases == ["x=Vi(3)"]
    assert parse("x", tuple(aliases)).root is x
    with pytest.raises(FormulaError, match="list of strings"):
        parse("x", "x=Vi(3)")


@mark.parity("F-17")
def test_a_negative_index_stands_for_what_vanishes() -> None:
    parsed = parse("Grad(Scalprod(x,Var(-1,3,2)), Var(-1,3,2), 1)", ["x=Vi(3)"])
    assert parsed.nargs == 1
    assert "Var(-1" not in str(parsed.root)
    with pytest.raises(FormulaError, match="does not vanish"):
        parse("x+Var(-1,3,2)", ["x=Vi(3)"])


@mark.parity("O-101")
def test_a_gradient_without_cotangent_takes_the_next_argument() -> None:
    f = n("SqDist", x, y)
    parsed = parse("Grad(SqDist(x,y),x)", ["x=Vi(3)", "y=Vj(3)"])
    assert parsed.root is n("Grad", f, x, variable(2, 1, J))
    assert parsed.nargs == 3
    named = parse("Grad(SqDist(x,y),y)", ["x=Vi(3)", "y=Vj(3)", "e=Vi(1)"])
    assert named.root is n("Grad", f, y, variable(2, 1, I))
    with pytest.raises(FormulaError, match="needs a variable"):
        parse("Grad(SqDist(x,y),s)", ALIASES)


@mark.parity("O-141")
@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Sum_Reduction(x,1)", ("Sum", 0, x, None, 0)),
        ("ArgKMin_Reduction(SqDist(x,y),4,0)", ("ArgKMin", 1, n("SqDist", x, y), None, 4)),
        ("LogSumExp_Reduction(s,0,y)", ("LogSumExp", 1, s, y, 0)),
    ],
)
def test_a_reduction_may_be_outermost(text: str, want: tuple) -> None:
    parsed = parse(text, ALIASES)
    assert parsed.reduction
    r = parsed.reduction
    assert (r.name, r.axis, r.formula, r.weight, r.k) == want
    assert (parsed.root, parsed.weight) == (r.formula, r.weight)


@mark.parity("O-142")
def test_the_zero_reduction_is_a_sum_of_zeros() -> None:
    parsed = parse("Zero_Reduction(3,0)")
    assert parsed.reduction and (parsed.reduction.name, parsed.root) == ("Sum", zero(3))


# ── what is refused, where, and in which words ────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "at", "kind", "words"),
    [
        pytest.param("x + Foo(x)", 4, UnknownOperation, "unknown operation 'Foo'; did you mean", marks=mark.parity("F-20", "E-45")),
        pytest.param("x + w", 4, UnknownOperation, "'w' is neither an alias", marks=mark.parity("E-45")),
        pytest.param("exp(x)", 0, UnknownOperation, "did you mean Exp", marks=mark.parity("F-20")),
        pytest.param("x * Vi(0,3)", 4, UnknownOperation, "belongs in the aliases", marks=mark.parity("F-06")),
        pytest.param("Vj(3)", 0, UnknownOperation, "belongs in the aliases", marks=mark.parity("F-06")),
        pytest.param("x**y", 3, FormulaError, "Powf", marks=mark.parity("F-21")),
        pytest.param("x**1.5", 3, FormulaError, "parameter", marks=mark.parity("F-21")),
        pytest.param("y*+x", 2, FormulaError, "no unary", marks=mark.parity("F-22")),
        pytest.param("x<y<x", 3, FormulaError, "cannot be chained", marks=mark.parity("F-27", "X-45")),
        pytest.param("x==y!=x", 4, FormulaError, "cannot be chained", marks=mark.parity("F-27", "X-45")),
        pytest.param("x and y", 2, FormulaError, "found 'and'", marks=mark.parity("X-45")),
        pytest.param("2", 0, FormulaError, "IntCst(2)", marks=mark.parity("F-29")),
        pytest.param("2.5*x", 0, FormulaError, "parameter", marks=mark.parity("F-30")),
        pytest.param("x*2.0", 2, FormulaError, "parameter", marks=mark.parity("F-30")),
        pytest.param("x % y", 2, FormulaError, "Mod(f,n,o)", marks=mark.parity("F-31")),
        pytest.param("x // y", 2, FormulaError, "Floor(f/g)", marks=mark.parity("F-31")),
        pytest.param("x & y", 2, FormulaError, "f*g", marks=mark.parity("F-31")),
        pytest.param("x[0]", 1, FormulaError, "Elem(f,m)", marks=mark.parity("F-31")),
        pytest.param("abs(x)", 0, UnknownOperation, "Abs(f)", marks=mark.parity("F-31")),
        pytest.param("[1,2]", 0, FormulaError, "not a list", marks=mark.parity("F-31")),
        pytest.param("(x,y)", 0, FormulaError, "not a list", marks=mark.parity("F-31")),
        pytest.param("x if s else y", 2, FormulaError, "IfElse", marks=mark.parity("F-34", "X-60")),
        pytest.param("sum([x,y])", 5, FormulaError, "int literal", marks=mark.parity("F-34", "X-60")),
        pytest.param("x.dim", 1, FormulaError, "no attributes", marks=mark.parity("F-34", "X-60")),
        pytest.param("(lambda: x)()", 7, FormulaError, "not part of the language", marks=mark.parity("F-34", "X-60")),
        pytest.param("__import__('os')", 11, FormulaError, "unexpected character", marks=mark.parity("X-60")),
        pytest.param("exec(x)", 0, UnknownOperation, "unknown operation", marks=mark.parity("X-60")),
        pytest.param("s*SqDist(x,z)", 2, DimensionError, "(x has dimension 3, z has dimension 4)", marks=mark.parity("F-35")),
        pytest.param("x+z", 1, DimensionError, "3 and 4", marks=mark.parity("F-35")),
        pytest.param("TensorDot(x,y,[2],[3],[0],[0])", 0, DimensionError, "shape [2]", marks=mark.parity("F-35", "E-33")),
        pytest.param("x/0", 2, FormulaError, "division by zero", marks=mark.parity("E-32")),
        pytest.param("IntInv(0)", 0, FormulaError, "division by zero", marks=mark.parity("O-03")),
        pytest.param("RatCst(1,0)", 0, FormulaError, "division by zero", marks=mark.parity("O-04")),
        pytest.param("Elem(x,y)", 7, FormulaError, "expected an int literal, not y"),
        pytest.param("Elem(x,-1)", 0, DimensionError, "-1", marks=mark.parity("X-18")),
        pytest.param("Var(4,3,3)", 0, FormulaError, "category 3", marks=mark.parity("F-16")),
        pytest.param("Var(0,2,0)", 0, FormulaError, "declared in two ways", marks=mark.parity("F-15")),
        pytest.param("Var(4,3,0)+Var(4,3,1)", 11, FormulaError, "declared in two ways", marks=mark.parity("F-15")),
        pytest.param("ComplexScal(x,y)", 0, UnknownOperation, "ComplexRealScal", marks=mark.parity("O-135", "X-67")),
        pytest.param("Tan(x)", 0, UnknownOperation, "Sin(f)/Cos(f)", marks=mark.parity("O-143")),
        pytest.param("x*Sum_Reduction(y,0)", 2, FormulaError, "outermost"),
        pytest.param("Nope_Reduction(y,0)", 0, UnknownOperation, "unknown reduction"),
        pytest.param("Grad_WithSavedForward(x,x,x,x)", 0, FormulaError, "Grad(f,v,e)"),
        pytest.param("Exp(x", 5, FormulaError, "found the end"),
        pytest.param("Exp(x))", 6, FormulaError, "expected an operator or the end"),
        pytest.param("", 0, FormulaError, "expected a formula, found the end"),
        pytest.param("x*é", 2, FormulaError, "unexpected character"),
        pytest.param("0x10*x", 1, FormulaError, "malformed number"),
        pytest.param("99999999999999999*x", 0, FormulaError, "16 digits"),
        pytest.param("2**60*x", 0, FormulaError, "2**53"),
        pytest.param("Exp(x,y)", 0, FormulaError, "expected Exp(f); Exp received 2"),
    ],
)  # fmt: skip
def test_mistakes_are_pointed_at(text: str, at: int, kind: type[FormulaError], words: str) -> None:
    with pytest.raises(FormulaError) as caught:
        parse(text, ALIASES)
    assert type(caught.value) is kind
    message, line, caret = str(caught.value).split("\n")
    assert words in message
    assert line == "  " + text
    assert caret == "  " + " " * at + "^"


@pytest.mark.parametrize(
    ("alias", "at", "words"),
    [
        pytest.param("é = Vi(3)", 0, "not a name", marks=mark.parity("F-07", "E-46")),
        pytest.param("1x = Vi(3)", 0, "not a name", marks=mark.parity("F-07", "E-46")),
        pytest.param("x-y = Vi(3)", 0, "not a name", marks=mark.parity("F-07", "E-46")),
        pytest.param("x = Vi", 4, "malformed alias", marks=mark.parity("F-07", "E-46")),
        pytest.param("x = Wi(3)", 4, "malformed alias", marks=mark.parity("F-03", "E-46")),
        pytest.param("x = Vi(2+1)", 7, "decimal number, not '2+1'", marks=mark.parity("F-10")),
        pytest.param("x = Vi(D)", 7, "decimal number, not 'D'", marks=mark.parity("F-10")),
        pytest.param("x = Vi()", 7, "decimal number, not ''", marks=mark.parity("F-10")),
        pytest.param("x = Vi(0, -3)", 10, "decimal number", marks=mark.parity("F-10")),
        pytest.param("x = Vi(1,2,3)", 4, "1 or 2 numbers"),
        pytest.param("x = Vi(0)", 4, "dimension 0"),
        pytest.param("x = Var(0,3,4)", 4, "category 4", marks=mark.parity("F-16")),
        pytest.param("y = Vj(3)", 0, "taken by y = Vi(0,3)", marks=mark.parity("F-11")),
        pytest.param("x = Vj(0,3)", 0, "declared in two ways", marks=mark.parity("F-15")),
    ],
)  # fmt: skip
def test_bad_aliases_are_pointed_at(alias: str, at: int, words: str) -> None:
    with pytest.raises(FormulaError) as caught:
        parse("IntCst(1)", ["y = Vi(3)", alias])
    message, line, caret = str(caught.value).split("\n")
    assert words in message
    assert (line, caret) == ("  " + alias, "  " + " " * at + "^")


@mark.parity("F-05")
def test_a_position_that_is_left_out() -> None:
    with pytest.raises(FormulaError, match="argument 0 is not declared"):
        parse("x", ["x=Vi(1,3)"])


# ── round trip ────────────────────────────────────────────────────────────────────────────────────

VARIABLES = [
    *(variable(k, d, c) for k, (d, c) in enumerate([(1, I), (3, I), (3, J), (1, P), (4, J), (2, P)]))
]
NUMBERS = st.one_of(
    st.integers(-(2**53), 2**53).map(constant),
    st.floats(allow_nan=False).filter(lambda v: v or str(v) == "0.0").map(constant),
    st.fractions(max_denominator=999).filter(lambda q: 0 < abs(q.numerator) < 1 << 50).map(rational),
    st.integers(1, 5).map(zero),
)
LITERALS = st.integers(-3, 9) | st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def formulas(draw) -> Expr:
    """A few nodes over variables and constants; operands that do not fit are drawn anew."""
    table = sorted(operations().items())
    pool: list[Expr] = [*VARIABLES, fictitious(-1, 3), draw(NUMBERS), draw(NUMBERS)]
    made: list[Expr] = []
    for _ in range(draw(st.integers(1, 12))):
        if made and draw(st.booleans()):
            pool.append(made[-1])
        name, op = draw(st.sampled_from(table))
        args = [draw(st.sampled_from(pool[-9:])) for _ in range(op.arity)]
        params = tuple(draw(LITERALS) for _ in range(op.params))
        made += _built(name, args, params)
    return made[-1] if made else draw(NUMBERS)


def _built(name: str, args: list[Expr], params: tuple) -> list[Expr]:
    if name in ("Var", "Const", "RatCst"):  # these come from VARIABLES and NUMBERS
        return []
    if name == "BasisSum" and (not all(type(p) is int for p in params) or not (params[0] < 0 < params[1])):
        return []
    try:
        return [node(name, *args, params=params)]
    except FormulaError:
        return []


@given(formulas())
@settings(max_examples=300)
def test_text_round_trips(formula: Expr) -> None:
    assert expression(str(formula)) is formula


@pytest.mark.parametrize("record", oracles.OPS, ids=lambda r: r.id)
def test_every_operation_round_trips(record: oracles.OpRecord) -> None:
    args = [variable(k, d, (I, J, P)[k]) for k, d in enumerate(record.dims)]
    formula = node(record.name, *args, params=record.params)
    assert expression(str(formula)) is formula


@pytest.mark.parametrize("depth", [255])
def test_the_deepest_formula_round_trips(depth: int) -> None:
    f = x
    for k in range(depth):
        f = node("Exp", f) if k % 2 else node("Add", y, f)
    assert expression(str(f)) is f


# ── hostile text ──────────────────────────────────────────────────────────────────────────────────

WORDS = [*"xysz()[],+-*/|<>=.0123456789 \n", "**", "<=", "Exp(", "Var(0,3,0)", "IntCst(2)", "Grad(", "[1,", "e",
         "TensorDot(", "Sum_Reduction(", "Const(", "BasisSum(", "Diff(", "1.5", "True", "Zero(", "SqDist(x,y)"]  # fmt: skip


@given(st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=25).map("".join), st.booleans())
@settings(max_examples=500)
def test_any_text_is_read_or_refused(text: str, as_alias: bool) -> None:
    try:
        parsed = parse("x", ["x = Vi(3)", text]) if as_alias else parse(text, ALIASES)
        assert parsed.nargs
    except FarsumError as error:
        assert re.search("expected|[a-z]", str(error))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 60_000,
        "-" * 60_000 + "x",
        "Exp(" * 16_000,
        "x" + "+x" * 30_000,
        "2**" * 20_000 + "2",
        "9" * 60_000,
        "9" * 30_000 + "." + "9" * 30_000,
        "a" * 60_000,
        "TensorDot(x,y,[" + "9," * 30_000,
        "SqDist(" + "x," * 30_000 + "x)",
        "x" * 1_000_000,
        " " * 60_000,
        "BasisSum(x,-1,1000000000)",
    ],
    ids=lambda t: t[:12],
)
def test_hostile_text_is_refused_fast(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(FarsumError) as caught:
        parse(text, ALIASES)
    assert time.perf_counter() - start < 2
    assert len(str(caught.value)) < 2000


def test_limits_are_errors_of_their_own() -> None:
    with pytest.raises(FormulaTooLarge, match="65536"):
        parse("x" * 65_537, ALIASES)
    with pytest.raises(FormulaTooLarge, match="nested too deeply"):
        parse("(" * 5000, ALIASES)
    with pytest.raises(FormulaTooLarge, match="1024"):
        parse("x", ["x = Vi(3)"] * 1025)
