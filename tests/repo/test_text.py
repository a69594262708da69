"""What the repository says: no stray words, no broken links, a table of parity rows that parses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TEXT = {".py", ".pyi", ".md", ".toml", ".yml", ".yaml", ".proto", ".cfg", ".txt", ""}
SKIP = {".git", ".venv", ".hypothesis", "site", "dist", "build", "demo-output", "__pycache__"}
# Places that mean something on one machine only, and hosts that a user's own configuration chooses.
# Brackets keep this file from matching itself.
STRAY = re.compile(r"(?<![\w.~-])/(?:w[o]rk|ho[m]e|Us[e]rs|ro[o]t)/|\.\./sh[a]red|pyp[i]\.org|pythonhost[e]d")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if any(p in SKIP or p.endswith("_cache") for p in parts):
            continue
        if path.is_file() and path.suffix in TEXT:
            yield path


def test_no_stray_words(root: Path) -> None:
    for path in files(root):
        found = STRAY.search(path.read_text())
        assert not found, f"{path.relative_to(root)} says {found[0]!r}" if found else ""


def test_links_between_our_pages_lead_somewhere(root: Path) -> None:
    for page in (p for p in files(root) if p.suffix == ".md"):
        for target in LINK.findall(page.read_text()):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{page.relative_to(root)} links to {target}"


@pytest.fixture(scope="module")
def parity_rows(root: Path) -> set[str]:
    text = (root / "docs" / "parity.md").read_text()
    return set(re.findall(r"^\| *[*`]*([A-Z]{1,2}-\d{1,3}[a-z]?)\b", text, re.MULTILINE))


def test_parity_markers_name_rows_that_exist(root: Path, parity_rows: set[str]) -> None:
    assert len(parity_rows) > 500
    for path in sorted((root / "tests").rglob("*.py")):
        for call in re.findall(r"mark\.parity\(([^)]*)\)", path.read_text()):
            named = re.findall(r"\"([^\"]+)\"", call)
            assert len(named) <= 6, f"{path.name}: a test says what it proves in at most six rows"
            assert set(named) <= parity_rows, f"{path.name}: {sorted(set(named) - parity_rows)}"
