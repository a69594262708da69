"""farsum: reductions a_i = Reduce_j F(x_i, y_j, p) on a machine that is not yours.

Importing this module compiles nothing, prints nothing, opens no socket and loads no array library.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "connect", "disconnect", "errors", "ping", "show_progress"]


def connect(target: str) -> Any:
    """Send all further work to a server; gives the engine, which can be closed or used in a `with`.

    target   "grpc://localhost:50051" or "unix:///run/farsum.sock"; other hosts are reached through an
             SSH tunnel to their loopback address

    Raises ServerUnreachable when nobody answers there, ProtocolMismatch when versions do not fit.
    """
    from farsum import target as module

    return module.connect(target)


def disconnect() -> None:
    """Close the connection; work goes to FARSUM_TARGET again, or to the engine in this process."""
    from farsum import target as module

    module.disconnect()


def ping(target: str | None = None) -> dict[str, Any]:
    """What answers at the target (default: the current one): version, devices, round-trip time in seconds."""
    from farsum import target as module

    return module.ping(target)


def show_progress(on: bool) -> None:
    """Whether work of more than a second draws a bar on the terminal; FARSUM_PROGRESS=0 says no from the start."""
    from farsum import progress

    progress.enabled = on


def __getattr__(name: str) -> Any:
    if name == "errors":
        from farsum_kernels import errors

        return errors
    raise AttributeError(f"module 'farsum' has no attribute {name!r}")
