"""One server for all tests that leave it as they found it; the others start their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from farsum.remote import RemoteEngine
from tests.service.server import Server, engine_on, running


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running() as shared:
        yield shared


@pytest.fixture(scope="session")
def near(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that hands over arrays through memory too."""
    with running("--memory-socket", str(tmp_path_factory.mktemp("near") / "socket")) as shared:
        yield shared


@pytest.fixture
def engine(server: Server) -> Iterator[RemoteEngine]:
    with engine_on(server) as opened:
        yield opened
