"""A writer of textual LLVM IR for one function: names, blocks, loops. It knows no arithmetic."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence


class Function:
    """The text of a function while it grows. `block` is the label that the next line lands in."""

    def __init__(self, name: str, parameters: str) -> None:
        self._head = f"define void @{name}({parameters}) nounwind {{"
        self._lines: list[str] = ["entry:"]
        self._count = 0
        self.declarations: set[str] = set()
        self.block = "entry"

    def name(self, hint: str = "v") -> str:
        self._count += 1
        return f"%{hint}{self._count}"

    def do(self, text: str) -> None:
        self._lines.append("  " + text)

    def let(self, text: str, hint: str = "v") -> str:
        """Append `%new = text` and give the new name."""
        made = self.name(hint)
        self._lines.append(f"  {made} = {text}")
        return made

    def call(self, returns: str, function: str, *typed: tuple[str, str]) -> str:
        """Call a declared function with (type, value) arguments."""
        self.declarations.add(f"declare {returns} @{function}({', '.join(kind for kind, _ in typed)})")
        return self.let(
            f"call {returns} @{function}({', '.join(f'{kind} {value}' for kind, value in typed)})"
        )

    def run(self, function: str, *typed: tuple[str, str]) -> None:
        """Call a declared function that gives nothing."""
        self.declarations.add(f"declare void @{function}({', '.join(kind for kind, _ in typed)})")
        self.do(f"call void @{function}({', '.join(f'{kind} {value}' for kind, value in typed)})")

    def label(self, hint: str) -> str:
        self._count += 1
        return f"{hint}{self._count}"

    def at(self, label: str) -> None:
        self._lines.append(f"{label}:")
        self.block = label

    def jump(self, label: str) -> None:
        self.do(f"br label %{label}")

    def branch(self, condition: str, then: str, otherwise: str) -> None:
        self.do(f"br i1 {condition}, label %{then}, label %{otherwise}")

    def loop(
        self,
        start: str,
        end: str,
        step: int,
        state: Sequence[tuple[str, str]],
        body: Callable[[str, list[str]], Sequence[str]],
    ) -> list[str]:
        """`for j = start; j < end; j += step` carrying (type, initial value) pairs; gives the last values."""
        before = self.block
        head, done = self.label("loop"), self.label("done")
        counter, nexts = self.name("j"), [self.name("s") for _ in state]
        self.branch(self.let(f"icmp slt i64 {start}, {end}"), head, done)
        self.at(head)
        place = len(self._lines)
        values = body(counter, nexts)
        last = self.block
        after = self.let(f"add nuw nsw i64 {counter}, {step}")
        self.branch(self.let(f"icmp slt i64 {after}, {end}"), head, done)
        phis = [f"  {counter} = phi i64 [ {start}, %{before} ], [ {after}, %{last} ]"]
        for (kind, initial), carried, value in zip(state, nexts, values, strict=True):
            phis.append(f"  {carried} = phi {kind} [ {initial}, %{before} ], [ {value}, %{last} ]")
        self._lines[place:place] = phis
        self.at(done)
        return [
            self.let(f"phi {kind} [ {initial}, %{before} ], [ {value}, %{last} ]")
            for (kind, initial), value in zip(state, values, strict=True)
        ]

    def when(
        self, condition: str, state: Sequence[tuple[str, str]], body: Callable[[], Sequence[str]]
    ) -> list[str]:
        """Run the body only if the condition holds; gives its values, or the (type, value) pairs of `state`."""
        before, inside, out = self.block, self.label("then"), self.label("join")
        self.branch(condition, inside, out)
        self.at(inside)
        values = body()
        last = self.block
        self.jump(out)
        self.at(out)
        return [
            self.let(f"phi {kind} [ {old}, %{before} ], [ {new}, %{last} ]")
            for (kind, old), new in zip(state, values, strict=True)
        ]

    def text(self) -> str:
        return "\n".join([self._head, *self._lines, "  ret void", "}"])


def literal(value: float, kind: str) -> str:
    """A floating-point constant in the spelling that LLVM reads exactly: the bits of a double."""
    if kind == "float":
        value = _as_float32(value)
    return "0x{:016X}".format(*struct.unpack("<Q", struct.pack("<d", value)))


def _as_float32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
