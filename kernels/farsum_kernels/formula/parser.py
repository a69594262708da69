"""The grammar of the string language: recursive descent, without Python's stack and without evaluating anything."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from fractions import Fraction
from typing import Any

from farsum_kernels.errors import DimensionError, FormulaError, FormulaTooLarge, UnknownOperation
from farsum_kernels.formula.aliases import KINDS, Arguments
from farsum_kernels.formula.calls import SPECIAL, Call, Reduced, Term
from farsum_kernels.formula.expr import OPS, Expr, constant, node, operations
from farsum_kernels.formula.rewrite import rational
from farsum_kernels.formula.tokens import Source, Token

# Brackets and signs around one operand: more than any formula of the allowed depth prints.
MAX_NESTING = 4096
MAX_LIST = 64
MAX_LITERAL = 1 << 53

# How tightly each infix operator binds, and its operation. Those with > are < with the sides exchanged.
# fmt: off
INFIX = {
    "<": (1, "LessThan"), "<=": (1, "LessOrEqual"), ">": (1, "LessThan"), ">=": (1, "LessOrEqual"),
    "==": (1, "Equal"), "!=": (1, "NotEqual"),
    "|": (2, "Scalprod"),
    "+": (3, "Add"), "-": (3, "Subtract"),
    "*": (4, "Mult"), "/": (4, "Divide"),
}
FOLDS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
}
# fmt: on

_WORDS = {"and", "or", "not", "if", "else", "in", "is", "lambda", "for"}


_Steps = Generator[Any, Term, Term]


def _driven(first: _Steps, too_deep: Callable[[], FormulaError]) -> Term:
    """Run a recursive-descent parser written as generators: it calls by `yield`, so that the depth of the
    text is not limited by Python's stack.
    """
    stack: list[_Steps] = [first]
    value: Term | None = None
    while True:
        try:
            # The first value that a generator is sent is None.
            stack.append(stack[-1].send(value))  # type: ignore[arg-type]
            value = None
        except StopIteration as done:
            stack.pop()
            value = done.value
            if not stack:
                assert isinstance(value, Term)
                return value
        if len(stack) > MAX_NESTING:
            raise too_deep()


class Parser:
    """One text. Each method whose name is a part of the grammar reads that part and leaves the rest."""

    def __init__(self, source: Source, arguments: Arguments) -> None:
        operations()
        self.source, self.arguments = source, arguments
        self._tokens = source.tokens()
        self.token = next(self._tokens)

    def whole(self) -> Expr | Reduced:
        """The formula or reduction that the whole text is."""
        term = _driven(self._expression(0), self._too_deep)
        if self.token.kind != "end":
            raise self._unexpected("an operator or the end")
        if isinstance(term.value, Fraction):
            how = (
                f"IntCst({term.value})"
                if term.value.denominator == 1
                else f"RatCst({str(term.value).replace('/', ',')})"
            )
            raise self._error(f"a formula that is only a number is written {how}", term)
        return term.value if isinstance(term.value, Reduced) else self.lifted(term)

    def formula(self) -> Expr:
        """The formula that the whole text is."""
        found = self.whole()
        if isinstance(found, Reduced):
            raise self.source.error("expected a formula, not a reduction", 0)
        return found

    # ── tokens and errors ──

    def _next(self) -> Token:
        token = self.token
        if token.kind != "end":
            self.token = next(self._tokens)
        return token

    def _expect(self, text: str) -> Token:
        if self.token.text != text:
            raise self._unexpected(repr(text))
        return self._next()

    def _unexpected(self, wanted: str) -> FormulaError:
        hint = ""
        if self.token.text in _WORDS:
            hint = "; conditions have value 0 or 1: write f*g, f+g-f*g, 1-f or IfElse(f,a,b)"
        elif self.token.text == "[":
            hint = "; an entry of a vector is written Elem(f,m)"
        return self.source.error(f"expected {wanted}, found {self.token}{hint}", self.token.at)

    def _error(
        self, message: str, term: Term | Token, kind: type[FormulaError] = FormulaError
    ) -> FormulaError:
        return self.source.error(message, term.at if isinstance(term, Token) else term.start, kind)

    def _too_deep(self) -> FormulaError:
        return self._error("the formula is nested too deeply", self.token, FormulaTooLarge)

    def shown(self, term: Term) -> str:
        """The user's words, shortened."""
        text = " ".join(self.source.text[term.start : term.end].split())
        return text if len(text) <= 40 else text[:39] + "…"

    # ── grammar ──

    def _expression(self, floor: int) -> _Steps:
        """Operands joined by operators that bind at least as tightly as `floor`."""
        left = yield self._operand()
        compared = False
        while self.token.kind == "op" and self.token.text in INFIX and INFIX[self.token.text][0] >= floor:
            power = INFIX[self.token.text][0]
            if power == 1 and compared:
                raise self._error("comparisons cannot be chained; write (a<b)*(b<c)", self.token)
            sign = self._next()
            right = yield self._expression(power + 1)
            left = self._combined(sign, left, right)
            compared = power == 1
        return left

    def _operand(self) -> _Steps:
        """An atom, perhaps with a power after it or signs before it."""
        first = self.token
        if first.text == "-":
            self._next()
            inner = yield self._operand()
            value = (
                -inner.value if isinstance(inner.value, Fraction) else self.node("Minus", [inner], first.at)
            )
            return Term(value, first.at, inner.end)
        if first.text == "+":
            raise self._error("there is no unary +; leave it out", first)
        base = yield self._atom()
        if self.token.text != "**":
            return base
        self._next()
        exponent = yield self._operand()
        return Term(self._power(base, exponent), base.start, exponent.end)

    def _atom(self) -> _Steps:
        token = self._next()
        if token.kind == "int":
            return Term(self._small(Fraction(int(token.text)), token), token.at, token.end)
        if token.kind == "float":
            raise self._error(
                f'{token.text} is not part of the language: pass it as a parameter, with an alias such as "c = Pm(1)"'
                f" (a literal is written Const({token.text}))",
                token,
            )
        if token.kind == "name":
            return (yield self._call(token)) if self.token.text == "(" else self._name(token)
        if token.text in ("(", "["):
            parts = yield self._parts(token, ")" if token.text == "(" else "]")
            return self._list(parts) if token.text == "[" else self._group(parts)
        self.token = token
        raise self._unexpected("a formula")

    def _parts(self, opening: Token, closing: str) -> _Steps:
        """What stands between brackets, comma by comma: a tuple of terms."""
        parts: list[Term] = []
        while self.token.text != closing:
            parts.append((yield self._expression(0)))
            if self.token.text not in (",", closing):
                raise self._unexpected(f"an operator, ',' or {closing!r}")
            if self.token.text == ",":
                self._next()
                if self.token.text == closing and closing == ")":
                    raise self._unexpected("a formula")
            if len(parts) > MAX_LIST:
                raise self._error(f"at most {MAX_LIST} entries are allowed between brackets", opening)
        return Term(tuple(parts), opening.at, self._expect(closing).end)

    def _list(self, parts: Term) -> Term:
        assert isinstance(parts.value, tuple)
        return Term(tuple(self.whole_number(p) for p in parts.value), parts.start, parts.end)

    def _group(self, parts: Term) -> Term:
        assert isinstance(parts.value, tuple)
        if not parts.value:
            raise self._error("expected a formula between the parentheses", parts)
        if len(parts.value) == 1:
            return Term(parts.value[0].value, parts.start, parts.end)
        return Term(tuple(self.lifted(p) for p in parts.value), parts.start, parts.end)

    def _name(self, token: Token) -> Term:
        if argument := self.arguments.named.get(token.text):
            return Term(argument.variable, token.at, token.end)
        if token.text in ("True", "False"):
            return Term(Fraction(token.text == "True"), token.at, token.end)
        if token.text in OPS or token.text in SPECIAL:
            raise self._error(f"{token.text} is an operation; expected '(' after it", token)
        if token.text in _WORDS:
            self.token = token
            raise self._unexpected("a formula")
        known = ", ".join(self.arguments.named) or "none"
        message = f"{token.text!r} is neither an alias nor an operation; the aliases are {known[:400]}"
        raise self._error(message, token, UnknownOperation)

    def _call(self, name: Token) -> _Steps:
        if name.text in self.arguments.named:
            raise self._error(f"{name.text!r} is an alias here and cannot be called", name)
        if name.text in KINDS:
            raise self._error(
                f"{name.text}(…) declares an argument and belongs in the aliases; expected a formula, such as "
                f"Var(index,dimension,category)",
                name,
                UnknownOperation,
            )
        opening = self._next()
        if name.text == "Const":
            return self._const(name)
        parts = yield self._parts(opening, ")")
        assert isinstance(parts.value, tuple)
        call = Call(self, name, list(parts.value))
        return Term(call.meaning(), name.at, parts.end)

    def _const(self, name: Token) -> Term:
        """Const(value): any number, as formulas print it."""
        sign = self._next().text if self.token.text == "-" else ""
        number = self._next()
        if number.kind not in ("int", "float") and number.text not in ("inf", "nan"):
            raise self._error(f"expected a number, found {number}", number)
        value = int(sign + number.text) if number.kind == "int" else float(sign + number.text)
        try:
            made = constant(value)
        except FormulaError as error:
            raise self._error(str(error), number, type(error)) from None
        return Term(made, name.at, self._expect(")").end)

    # ── meaning ──

    def lifted(self, term: Term) -> Expr:
        """The formula that a term is; literals become constants."""
        match term.value:
            case Expr():
                return term.value
            case Fraction():
                return node("Zero", params=(1,)) if term.value == 0 else rational(term.value)
            case Reduced():
                raise self._error("a reduction can only be the outermost operation; expected a formula", term)
            case _:
                raise self._error("expected one formula, not a list", term)

    def whole_number(self, term: Term) -> int:
        """The int that a term is."""
        if isinstance(term.value, Fraction) and term.value.denominator == 1:
            return int(term.value)
        raise self._error(f"expected an int literal, not {self.shown(term)}", term)

    def literal(self, term: Term) -> int | tuple[int, ...]:
        """The int or list of ints that a term is."""
        if isinstance(term.value, tuple) and all(isinstance(v, int) for v in term.value):
            return term.value
        return self.whole_number(term)

    def node(self, op: str, operands: Sequence[Term], at: int, params: tuple[Any, ...] = ()) -> Expr:
        """op(*operands, *params), with errors that show the place and the operands."""
        exprs = [self.lifted(o) for o in operands]
        try:
            return node(op, *exprs, params=params)
        except FormulaError as error:
            message = str(error)
            if isinstance(error, DimensionError):
                words = (
                    f"{self.shown(o)} has dimension {e.dim}" for o, e in zip(operands, exprs, strict=True)
                )
                message += f" ({', '.join(words)})"
            raise self.source.error(message, at, type(error)) from None

    def _small(self, value: Fraction, at: Term | Token) -> Fraction:
        if max(abs(value.numerator), value.denominator) > MAX_LITERAL:
            raise self._error(f"an int literal is at most 2**53 in size, not {value}", at)
        return value

    def _combined(self, sign: Token, left: Term, right: Term) -> Term:
        if sign.text == "/" and right.value == 0:
            raise self._error("division by zero", right)
        if isinstance(left.value, Fraction) and isinstance(right.value, Fraction) and sign.text in FOLDS:
            value = self._small(FOLDS[sign.text](left.value, right.value), left)
            return Term(value, left.start, right.end)
        return Term(self._infix(sign, left, right), left.start, right.end)

    def _infix(self, sign: Token, left: Term, right: Term) -> Expr:
        if sign.text == "/" and left.value == 1:
            return self.node("Inv", [right], sign.at)
        if sign.text == "/" and left.value == 0:
            return node("Zero", params=(self.lifted(right).dim,))
        operands = [right, left] if sign.text in (">", ">=") else [left, right]
        return self.node(INFIX[sign.text][1], operands, sign.at)

    def _power(self, base: Term, exponent: Term) -> Expr | Fraction:
        if not isinstance(exponent.value, Fraction) or exponent.value.denominator != 1:
            raise self._error("the exponent of ** is an int literal; for others write Powf(f,g)", exponent)
        n = int(exponent.value)
        if isinstance(base.value, Fraction):
            if abs(n) > 64 or (n < 0 and base.value == 0):
                raise self._error(f"{base.value}**{n} is out of range", base)
            return self._small(base.value**n, base)
        if n == 1:
            return self.lifted(base)
        if n == 2:
            return self.node("Square", [base], base.start)
        return self.node("Pow", [base], base.start, (n,))
