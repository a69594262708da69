"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# cli and __main__ modules do things when run; generated code is not ours to document.
MODULES = sorted(
    ".".join(path.relative_to(ROOT / base).with_suffix("").parts).removesuffix(".__init__")
    for base in ("client", "kernels", "server", "proto")
    for path in (ROOT / base).rglob("*.py")
    if "farsum" in path.relative_to(ROOT / base).parts[0]
    and "_pb2" not in path.name
    and path.stem != "__main__"
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert tried and not failed
