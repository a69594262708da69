"""Errors as they cross the wire: in a message, or in the trailing metadata of a call. Raises none but ProtocolMismatch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from farsum_kernels.errors import FarsumError, ProtocolMismatch, QueueFull, error_named
from farsum_proto.v1 import farsum_pb2 as pb
from farsum_proto.wire.limits import (
    ERROR_KEY,
    MAX_ERROR_CHARS,
    MAX_RESIDUALS,
    NEWEST_PROTOCOL,
    OLDEST_PROTOCOL,
    RETRY_KEY,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that ends one request. `retry_after_s` is above 0 when trying again may help."""

    error: FarsumError
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why an iteration gave up, and the norms of its residuals. The values beside it are what it had reached."""

    error: FarsumError
    residuals: tuple[float, ...] = ()


def busy(error: QueueFull, retry_after_s: float) -> QueueFull:
    """The error with a hint when to try again."""
    error.retry_after_s = retry_after_s
    return error


def retry_after(error: FarsumError) -> float:
    return error.retry_after_s


def error_text(error: FarsumError) -> str:
    """The message as it crosses the wire: formulas in it may be long, metadata may not."""
    text = str(error)
    return text if len(text) <= MAX_ERROR_CHARS else text[:MAX_ERROR_CHARS] + "…"


def error_message(error: FarsumError) -> pb.Error:
    return pb.Error(name=type(error).__name__, message=error_text(error), retry_after_s=retry_after(error))


def error_metadata(error: FarsumError) -> tuple[tuple[str, str], ...]:
    """The trailing metadata from which the client rebuilds an error of a unary or bulk call."""
    return (ERROR_KEY, type(error).__name__), (RETRY_KEY, repr(retry_after(error)))


def decode_error(metadata: Iterable[tuple[str, Any]], details: str) -> Failure | None:
    """The inverse; None when the failure did not come from a farsum server."""
    found = {key: value for key, value in metadata if key in (ERROR_KEY, RETRY_KEY)}
    if ERROR_KEY not in found:
        return None
    try:
        pause = float(found.get(RETRY_KEY, 0.0))
    except ValueError:
        pause = 0.0
    return Failure(error_named(str(found[ERROR_KEY]), details), pause if math.isfinite(pause) else 0.0)


def fill_stopped(message: pb.Stopped, stopped: Stopped) -> None:
    message.error.CopyFrom(error_message(stopped.error))
    message.residuals.extend(stopped.residuals[-MAX_RESIDUALS:])


def read_stopped(message: pb.Stopped) -> Stopped:
    return Stopped(error_named(message.error.name, message.error.message), tuple(message.residuals))


def agree(oldest: int, newest: int) -> int:
    """The newest protocol that both sides speak.

    Raises ProtocolMismatch, which names both ranges and who should upgrade.
    """
    if oldest <= NEWEST_PROTOCOL and newest >= OLDEST_PROTOCOL:
        return min(newest, NEWEST_PROTOCOL)
    who = "client" if newest < OLDEST_PROTOCOL else "server"
    raise ProtocolMismatch(
        f"the client speaks protocol {_range(oldest, newest)}, the server {_range(OLDEST_PROTOCOL, NEWEST_PROTOCOL)}; "
        f"upgrade farsum on the {who}"
    )


def _range(oldest: int, newest: int) -> str:
    return str(oldest) if oldest == newest else f"{oldest} to {newest}"
