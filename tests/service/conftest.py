"""One server for all tests that leave it as they found it; the others start their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from farsum import stream as stream_module
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


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What clients of this process send over their kept streams and want answered."""
    sent: list[bytes] = []
    send = stream_module.Stream.send

    def counted(stream: Any, data: bytes, pending: Any) -> None:
        sent.append(data)
        send(stream, data, pending)

    monkeypatch.setattr(stream_module.Stream, "send", counted)
    return sent
