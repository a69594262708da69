"""Who asks: one session, or one unary call. A value that the daemon and its parts share; decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Client:
    """Its jobs and tickets end with it; `holder` is the start of the tokens by which it holds arrays."""

    tenant: str = "default"
    holder: bytes = b""
    jobs: set[int] = field(default_factory=set)
    tickets: set[bytes] = field(default_factory=set)
    on_idle: Callable[[], None] | None = None

    @property
    def idle(self) -> bool:
        return not self.jobs and not self.tickets

    def tell_if_idle(self) -> None:
        if self.on_idle and self.idle:
            self.on_idle()
