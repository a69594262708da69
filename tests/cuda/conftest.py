"""Tests marked `emulated` need g++; where a machine has none they skip and say so."""

from __future__ import annotations

import pytest

from tests.cuda import emulate


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("emulated") and emulate.compiler() is None:
        pytest.skip("the emulator of CUDA needs g++ on x86-64 or aarch64")
