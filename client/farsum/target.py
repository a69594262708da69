"""Which engine answers: the one connected to, else FARSUM_TARGET, else the one in this process."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from farsum_kernels.errors import EngineMissing
from farsum_kernels.job import Engine, Prepared, Spec
from farsum_kernels.program import Program

if TYPE_CHECKING:
    from farsum.remote import RemoteEngine

_lock = threading.RLock()
_connected: RemoteEngine | None = None
_embedded: Engine | None = None


def connect(target: str, **options: float) -> RemoteEngine:
    """Open the target, check that somebody answers, and make it the default."""
    global _connected
    from farsum.remote import RemoteEngine

    engine = RemoteEngine(target, **options)
    engine.ping()
    with _lock:
        old, _connected = _connected, engine
    if old:
        old.close()
    return engine


def disconnect() -> None:
    global _connected
    with _lock:
        old, _connected = _connected, None
    if old:
        old.close()


def engine() -> Engine:
    """The engine that work goes to now.

    Raises EngineMissing when no target is set and no backend is installed: never a silent fallback.
    """
    if _connected is not None and not _connected.closed:
        return _connected
    if target := os.environ.get("FARSUM_TARGET"):
        return connect(target)
    return embedded()


def remote() -> RemoteEngine | None:
    """The server that work goes to now; None for the engine in this process."""
    return _connected if engine() is _connected else None


def embedded() -> Engine:
    """The engine of this process, made on first use."""
    global _embedded
    with _lock:
        if _embedded is None:
            try:
                # The one place where the client reaches for the server's code: the same engine, in process.
                from farsum_server.engine import LocalEngine
            except ImportError as error:
                raise EngineMissing(
                    f"the engine cannot be imported: {error}; pip install 'farsum[cpu]'"
                ) from error
            _embedded = LocalEngine()
        return _embedded


def prepared(spec: Spec | Program) -> Prepared:
    """The reduction or program, ready on the engine that work goes to now."""
    return engine().prepare(spec)


def ping(target: str | None = None) -> dict[str, Any]:
    if target is None and _connected is not None:
        return _connected.ping()
    target = target or os.environ.get("FARSUM_TARGET")
    if target is None:
        raise EngineMissing("nothing to ping: pass a target such as 'grpc://localhost:50051'")
    from farsum.remote import RemoteEngine

    engine = RemoteEngine(target)
    try:
        return engine.ping()
    finally:
        engine.close()
