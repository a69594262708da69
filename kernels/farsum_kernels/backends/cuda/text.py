"""A writer of CUDA C++ text: lines, blocks, literals. It knows no arithmetic and no formula."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

LARGEST = {"float": 3.4028234663852886e38, "double": 1.7976931348623157e308}


class Value(NamedTuple):
    """A value in the text: an expression that may be repeated, and "f" number, "i" integer or "m" mask."""

    text: str
    kind: str


class Source:
    """The text of a kernel while it grows."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0
        self._count = 0

    def do(self, *lines: str) -> None:
        self._lines += ["    " * self._depth + line if line else "" for line in lines]

    @contextmanager
    def block(self, head: str, end: str = "}") -> Iterator[None]:
        """`head {` … `}` around what is written inside."""
        self.do(f"{head} {{" if head else "{")
        self._depth += 1
        yield
        self._depth -= 1
        self.do(end)

    @contextmanager
    def loop(self, counter: str, extent: int | str, start: int | str = 0, unroll: int = 0) -> Iterator[None]:
        """A counted loop; `unroll` 0 writes it out whole when the compiler knows its extent."""
        self.do("#pragma unroll" if unroll == 0 else f"#pragma unroll {unroll}")
        with self.block(f"for (int {counter} = {start}; {counter} < {extent}; ++{counter})"):
            yield

    def name(self, hint: str = "v") -> str:
        self._count += 1
        return f"{hint}{self._count}"

    def text(self) -> str:
        return "\n".join([*self._lines, ""])


def literal(value: float, scalar: str) -> str:
    """A floating-point constant, exactly; infinities and NaN by name."""
    if math.isnan(value):
        return f"fs_nan<{scalar}>()"
    if abs(value) > LARGEST[scalar]:
        return f"fs_inf<{scalar}>()" if value > 0 else f"-fs_inf<{scalar}>()"
    return value.hex() + ("f" if scalar == "float" else "")
