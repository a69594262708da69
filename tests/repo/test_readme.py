"""The code of the README and of the documentation runs, as a newcomer would run it: with the embedded engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


# The page on pykeops replaces a module of the process: its lines are those of tests/client/test_pykeops_alias.py.
PAGES = ["README.md", *(f"docs/{p.name}" for p in sorted(DOCS.glob("*.md")) if blocks(p, "python"))]
PAGES.remove("docs/pykeops.md")


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run_and_give_what_they_say(
    root: Path, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shapes that a comment names are those of what its line defines; a comment after `print` is what it prints."""
    names: dict[str, Any] = {}
    printed: list[str] = []
    for block in blocks(root / page, "python"):
        exec(compile(block, page, "exec"), names)
        for name, shape in re.findall(r"^(\w+) = .*# (\(\d[\d, ]*\))", block, re.MULTILINE):
            assert str(names[name].shape) == shape, name
        printed += re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == printed


def test_commands_exist(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    words = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(blocks(root / "README.md", "bash"))))
    assert {"demo", "test"} <= words
    for word in words:
        assert re.search(rf"^{word}:.*## ", makefile, re.MULTILINE), word
