"""The words of the Makefile, and that CI calls those and no others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WORDS = ("demo", "test", "test-all", "check", "fmt", "bench", "gpu-check", "emu-asan", "docs")


def make(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # Without the flags of a make that may be running these tests.
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    command = ["make", *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=environment)


def test_help_lists_every_word(root: Path) -> None:
    assert shutil.which("make")
    done = make(root, "help")
    assert done.returncode == 0
    listed = re.findall(r"^  make (\S+) +\S", done.stdout, re.MULTILINE)
    assert set(listed) == {"help", *WORDS}


@pytest.mark.parametrize("word", WORDS)
def test_every_word_has_a_recipe(root: Path, word: str) -> None:
    done = make(root, "--dry-run", word)
    assert done.returncode == 0, done.stderr


def test_the_gpu_word_never_pretends(root: Path) -> None:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "MAKEFLAGS": ""}
    done = subprocess.run(
        ["make", f"GPU_PYTHON={sys.executable}", "gpu-check"],
        cwd=root, capture_output=True, text=True, check=False, env=hidden,
    )  # fmt: skip
    assert done.returncode != 0
    assert "DeviceMissing" in done.stderr


def test_ci_calls_words_of_the_makefile(root: Path) -> None:
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make check test" in script.read_text().splitlines()
