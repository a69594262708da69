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
_embedded: dict[str, Engine] = {}


def connect(target: str, memory: bool | None = None, **options: float) -> RemoteEngine:
    """Open the target, check that somebody answers, and make it the default. FARSUM_MEMORY says what is not said."""
    global _connected
    from farsum.remote import RemoteEngine

    if memory is None:
        memory = os.environ.get("FARSUM_MEMORY", "0").lower() not in ("0", "false", "no", "off", "")
    engine = RemoteEngine(target, memory=memory, **options)
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


def embedded(device: str | None = None) -> Engine:
    """The engine of this process on a device, by default that of FARSUM_DEVICE, else the CPU; made on first use.

    Raises EngineMissing, and DeviceMissing where there is no such device.
    """
    device = device or own_device()
    with _lock:
        if device not in _embedded:
            try:
                # The one place where the client reaches for the server's code: the same engine, in process.
                from farsum_server.engine import LocalEngine
            except ImportError as error:
                raise EngineMissing(
                    f"the engine cannot be imported: {error}; pip install 'farsum[cpu]'"
                ) from error
            _embedded[device] = LocalEngine(device=device)
        return _embedded[device]


def own_device() -> str:
    """Where this process computes unless it is asked for another device."""
    return os.environ.get("FARSUM_DEVICE") or "cpu"


def prepared(spec: Spec | Program, device: str | None = None) -> Prepared:
    """The reduction or program, ready on the engine that work goes to now, or on a device of this process."""
    return (embedded(device) if device else engine()).prepare(spec)


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
