"""The guard that keeps CI from being green by skipping."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
from tests.skips import Allowed, SkipGuard

def pytest_configure(config):
    config.pluginmanager.register(SkipGuard({allowed}, strict={strict}))
"""
TESTS = """
import pytest

def test_green(): pass

def test_away(): pytest.skip("no such machine")

@pytest.mark.xfail(reason="known")
def test_known(): assert False
"""
AWAY = "import pytest\n\npytest.skip('no such library', allow_module_level=True)\n"
LISTED = "[Allowed('*::test_away', 'no such', 'x'), Allowed('*::test_known', 'xfail: known', 'x')]"


def run(folder: Path, root: Path, allowed: str, strict: bool, *how: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST.format(allowed=allowed, strict=strict))
    (folder / "test_it.py").write_text(TESTS)
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {root}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *how, str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("how", [(), ("-n", "2", "--dist", "loadfile")], ids=["alone", "two processes"])
def test_an_unlisted_skip_or_xfail_fails_a_strict_run(
    tmp_path: Path, root: Path, how: tuple[str, ...]
) -> None:
    (tmp_path / "test_all_away.py").write_text(AWAY)
    done = run(tmp_path, root, "[]", True, *how)
    assert done.returncode == 1
    assert "test_all_away.py: Skipped: no such library" in done.stdout
    assert "test_away: Skipped: no such machine" in done.stdout
    assert "test_known: xfail: known" in done.stdout
    assert "1 passed, 2 skipped, 1 xfailed" in done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(("allowed", "strict"), [(LISTED, True), ("[]", False)])
def test_a_listed_skip_and_a_run_outside_ci_pass(
    tmp_path: Path, root: Path, allowed: str, strict: bool
) -> None:
    done = run(tmp_path, root, allowed, strict)
    assert done.returncode == 0, done.stdout


def test_words_of_the_reason_must_match(tmp_path: Path, root: Path) -> None:
    done = run(tmp_path, root, LISTED.replace("no such", "another reason"), strict=True)
    assert done.returncode == 1
    assert "test_away" in done.stdout and "test_known:" not in done.stdout
