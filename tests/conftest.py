"""What every test gets: a cache of its own, no target from outside, examples that repeat under CI."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.skips import SkipGuard, read_allowed

# Compilation is slow once, so an example has no deadline; each test has one, from pytest-timeout.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=1000)


def pytest_configure(config: pytest.Config) -> None:
    in_ci = bool(os.environ.get("CI"))
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if in_ci else "default"))
    config.pluginmanager.register(SkipGuard(read_allowed(), strict=in_ci), "skip-guard")

    # Set here and not in a fixture: a daemon or a worker that a test starts must inherit it.
    os.environ.pop("FARSUM_TARGET", None)
    cache = tempfile.mkdtemp(prefix="farsum-tests-")
    os.environ["FARSUM_CACHE"] = cache
    config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent
