"""The arguments of a formula: aliases such as "x = Vi(3)", and variables written inline as Var(0,3,0)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from farsum_kernels.errors import FormulaError, FormulaTooLarge
from farsum_kernels.formula.expr import CATEGORIES, Expr, I, J, P, variable
from farsum_kernels.formula.tokens import MAX_NAME, Source

# Vx and Vy are the old names of Vi and Vj.
KINDS = {"Vi": I, "Vj": J, "Pm": P, "Vx": I, "Vy": J}
MAX_ARGUMENTS = 1024

_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_KIND = re.compile(r"(Vi|Vj|Pm|Vx|Vy|Var)\((.*)\)")
_NUMBER = re.compile(r"[0-9]{1,9}")
EXPECTED = "expected name = Vi(D), Vj(D) or Pm(D), with D a decimal number, or Vi(position,D)"


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: its position, its dimension, its category (0: i, 1: j, 2: parameter), perhaps a name."""

    index: int
    dim: int
    category: int
    name: str | None = None

    @property
    def variable(self) -> Expr:
        return variable(self.index, self.dim, self.category)

    @property
    def label(self) -> str:
        """The user's word for it."""
        return self.name or f"argument {self.index}"

    def __str__(self) -> str:
        if self.name is None:
            return f"Var({self.index},{self.dim},{self.category})"
        return f"{self.name} = {CATEGORIES[self.category]}({self.index},{self.dim})"

    def agrees(self, other: Argument) -> bool:
        return (self.index, self.dim, self.category) == (other.index, other.dim, other.category)


def read_alias(text: str, position: int) -> Argument:
    """The argument that an alias declares; `position` is its place in the list, used if it names none.

    >>> read_alias("x = Vi(3)", 1)
    Argument(index=1, dim=3, category=0, name='x')
    >>> str(read_alias("Pm(0, 1)", 1))
    'Var(0,1,2)'

    Raises FormulaError, with a caret under the character that does not fit.
    """
    source = Source(text, "an alias")
    # Blanks are ignored wherever they stand, so places are kept to point back at the text.
    places = [n for n, c in enumerate(source.text) if not c.isspace()] + [len(source.text)]
    bare = "".join(source.text.split())
    before, equals, after = bare.partition("=")
    name, declared, start = (before, after, len(before) + 1) if equals else (None, bare, 0)
    if name is not None and not (_NAME.fullmatch(name) and len(name) <= MAX_NAME):
        raise source.error(f"{name[:MAX_NAME]!r} is not a name (ASCII letters, digits and _); {EXPECTED}", 0)
    match = _KIND.fullmatch(declared)
    if not match:
        raise source.error(f"malformed alias: {EXPECTED}", places[start])
    kind, numbers = match[1], []
    at = start + len(kind) + 1
    for part in match[2].split(","):
        if not _NUMBER.fullmatch(part):
            raise source.error(f"expected a decimal number, not {part[:40]!r}", places[at])
        numbers.append(int(part))
        at += len(part) + 1
    if len(numbers) not in ((3,) if kind == "Var" else (1, 2)):
        raise source.error(
            f"{kind} takes {'3' if kind == 'Var' else '1 or 2'} numbers; {EXPECTED}", places[start]
        )
    if kind != "Var":
        numbers = [*(numbers if len(numbers) == 2 else (position, *numbers)), KINDS[kind]]
    argument = Argument(numbers[0], numbers[1], numbers[2], name)
    try:
        assert argument.variable
    except FormulaError as error:
        raise source.error(str(error), places[start], type(error)) from None
    return argument


class Arguments:
    """The arguments declared so far, by position and by name."""

    def __init__(self, aliases: Sequence[str]) -> None:
        if isinstance(aliases, str) or not isinstance(aliases, Sequence):
            raise FormulaError(f'aliases is a list of strings such as ["x = Vi(3)"], not {aliases!r:.80}')
        if len(aliases) > MAX_ARGUMENTS:
            raise FormulaTooLarge(f"{len(aliases)} aliases were given; at most {MAX_ARGUMENTS} are allowed")
        self._places: dict[int, Argument] = {}
        self.named: dict[str, Argument] = {}
        for position, text in enumerate(aliases):
            argument = read_alias(text, position)
            source = Source(text, "an alias")
            if argument.name in self.named:
                raise source.error(f"the name {argument.name!r} is taken by {self.named[argument.name]}", 0)
            if argument.name:
                self.named[argument.name] = argument
            try:
                self.add(argument)
            except FormulaError as error:
                raise source.error(str(error), 0) from None

    def add(self, argument: Argument) -> Expr:
        """The variable of an argument, now declared. Raises FormulaError if its position is something else."""
        held = self._places.setdefault(argument.index, argument)
        if not held.agrees(argument):
            raise FormulaError(f"argument {argument.index} is declared in two ways: {held} and {argument}")
        return argument.variable

    def in_order(self) -> tuple[Argument, ...]:
        """All of them by position. Raises FormulaError when a position is left out."""
        for position in range(len(self._places)):
            if position not in self._places:
                held = ", ".join(str(self._places[n]) for n in sorted(self._places))
                raise FormulaError(f"argument {position} is not declared; there are {held[:400]}")
        return tuple(self._places[n] for n in sorted(self._places))
