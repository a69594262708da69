"""The characters of a formula or an alias: tokens, and errors that point at one of them. Evaluates nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from farsum_kernels.errors import FormulaError, FormulaTooLarge

# Limits of one text. They keep the time of reading it small; what it means has limits of its own.
MAX_TEXT = 1 << 16
MAX_NAME = 64
MAX_DIGITS = 16
_SHOWN = 100

_TOKEN = re.compile(
    r"(?P<name>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<float>(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
    r"|(?P<int>[0-9]+)"
    r"|(?P<op>\*\*|<=|>=|==|!=|//|[-+*/|<>(),\[\]%&^@=.:])"
)
_BLANK = " \t\r\n\f\v"

# Signs of other languages, and what to write instead.
FOREIGN = {
    "//": "write Floor(f/g)",
    "%": "write Mod(f,n,o)",
    "&": "write f*g for two conditions of value 0 or 1",
    "^": "powers are written f**n",
    "@": "write MatVecMult(A,b) or f|g",
    "=": "write Equal(f,g) or f == g; names are given in the aliases",
    ".": "there are no attributes and no methods here",
    ":": "write Extract(f,start,length)",
}


@dataclass(frozen=True, slots=True)
class Token:
    """kind   "name", "int", "float", "op" or "end"; at   the place of its first character."""

    kind: str
    text: str
    at: int

    @property
    def end(self) -> int:
        return self.at + len(self.text)

    def __str__(self) -> str:
        return repr(self.text) if self.text else "the end"


class Source:
    """A text that a user wrote. Raises FormulaError or FormulaTooLarge if it can be none."""

    def __init__(self, text: str, what: str) -> None:
        if not isinstance(text, str):
            raise FormulaError(f"{what} is a string, not {type(text).__name__}")
        if len(text) > MAX_TEXT:
            raise FormulaTooLarge(f"{what} has {len(text)} characters; at most {MAX_TEXT} are allowed")
        self.text = text

    def pointed(self, at: int) -> str:
        """The text around a place, and a caret under it."""
        start = max(0, min(at - _SHOWN // 2, len(self.text) - _SHOWN))
        shown = self.text[start : start + _SHOWN]
        line = "".join(c if c.isprintable() else " " for c in shown)
        left, right = "…" if start else "", "…" if start + _SHOWN < len(self.text) else ""
        return f"  {left}{line}{right}\n  {' ' * (len(left) + at - start)}^"

    def error(self, message: str, at: int, kind: type[FormulaError] = FormulaError) -> FormulaError:
        """An error of that kind whose message shows the place."""
        return kind(f"{message}\n{self.pointed(at)}")

    def tokens(self) -> Iterator[Token]:
        """The tokens, the last one of kind "end"."""
        at = 0
        while True:
            while at < len(self.text) and self.text[at] in _BLANK:
                at += 1
            if at == len(self.text):
                yield Token("end", "", at)
                return
            token = self._token(at)
            yield token
            at = token.end

    def _token(self, at: int) -> Token:
        match = _TOKEN.match(self.text, at)
        if not match:
            raise self.error(f"unexpected character {self.text[at]!r}", at)
        token = Token(match.lastgroup or "", match.group(), at)
        if token.kind == "name" and len(token.text) > MAX_NAME:
            raise self.error(f"a name has at most {MAX_NAME} characters", at)
        if token.text in FOREIGN:
            raise self.error(f"{token.text!r} is not part of the language; {FOREIGN[token.text]}", at)
        if token.kind in ("int", "float"):
            self._check_number(token)
        return token

    def _check_number(self, token: Token) -> None:
        if token.kind == "float" and len(token.text) > MAX_NAME:
            raise self.error(f"a number has at most {MAX_NAME} characters", token.at)
        follows = self.text[token.end : token.end + 1]
        if follows == "_" or follows.isalnum():
            raise self.error(f"malformed number: {follows!r} follows {token.text[:MAX_DIGITS]!r}", token.end)
        if token.kind == "int" and len(token.text) > MAX_DIGITS:
            raise self.error(f"an int literal has at most {MAX_DIGITS} digits", token.at)
        if token.kind == "int" and token.text[0] == "0" != token.text:
            raise self.error(f"an int literal has no leading zeros; expected {int(token.text)}", token.at)
