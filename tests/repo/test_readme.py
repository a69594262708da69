"""The code of the README and of the quickstart runs, as a newcomer would run it: with the embedded engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("page", "prints"),
    [
        ("README.md", "(10000, 1) (10000, 5)\n"),
        ("docs/quickstart.md", ""),
        ("docs/lazytensor.md", "350000 0\n"),
    ],
)
def test_python_blocks_run(root: Path, page: str, prints: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = blocks(root / page, "python")
    assert found
    names: dict[str, Any] = {}
    for block in found:
        exec(compile(block, page, "exec"), names)
    assert capsys.readouterr().out == prints


@pytest.mark.parametrize("page", ["quickstart.md", "lazytensor.md"])
def test_pages_say_the_shapes_that_come_out(root: Path, page: str) -> None:
    names: dict[str, Any] = {}
    for block in blocks(root / "docs" / page, "python"):
        exec(compile(block, page, "exec"), names)
        for name, shape in re.findall(r"^(\w+) = .*# (\(\d[\d, ]*\))", block, re.MULTILINE):
            assert str(names[name].shape) == shape, name


def test_commands_exist(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    words = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(blocks(root / "README.md", "bash"))))
    assert {"demo", "test"} <= words
    for word in words:
        assert re.search(rf"^{word}:.*## ", makefile, re.MULTILINE), word
