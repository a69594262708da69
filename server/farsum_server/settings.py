"""What an operator can set: by flag, by FARSUM_* in the environment, or in a TOML file, in this order.

Values only; nothing is opened, started or constructed here.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

import psutil
from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from farsum_kernels.errors import UnsafeBind
from farsum_server.jobs import Limits

MIB = 1 << 20


def check_bind(host: str) -> str:
    """The host, if only this machine can reach it.

    Raises UnsafeBind.

    >>> check_bind("127.0.0.1"), check_bind("unix:/run/farsum.sock")
    ('127.0.0.1', 'unix:/run/farsum.sock')
    """
    if host == "localhost" or (host.startswith("unix:") and len(host) > len("unix:")):
        return host
    try:
        if ipaddress.ip_address(host.strip("[]")).is_loopback:
            return host
    except ValueError:
        pass
    raise UnsafeBind(
        f"refusing to listen on {host!r}: farsum has no TLS and no tokens yet, so everyone who can reach that "
        f"address could use this machine and read its arrays. Keep the loopback address and reach it from another "
        f"machine through SSH: ssh -N -L 50051:localhost:50051 user@this-machine"
    )


class Settings(BaseSettings):
    """Serve reductions on this machine. Stops cleanly on Ctrl-C or SIGTERM, when running jobs are done."""

    model_config = SettingsConfigDict(env_prefix="FARSUM_", extra="forbid", validate_default=True)

    host: str = Field(
        default="127.0.0.1", description="loopback address, or unix:/path/of/socket, to listen on"
    )
    port: int = Field(default=50051, ge=0, le=65535, description="port of gRPC; 0 takes a free one")
    http_port: int = Field(
        default=8080, ge=0, le=65535, description="port of health, metrics and info; 0 takes a free one"
    )
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda(:\d+)?(\+cuda:\d+)*)(,(cpu|cuda(:\d+)?(\+cuda:\d+)*))*$",
        description="what computes: cpu, cuda:0, or several with commas between them, one worker each; "
        "cuda:0+cuda:1 is one worker that shares each job out between two GPUs",
    )
    threads: int = Field(default=0, ge=0, description="threads of one job; 0: all cores")
    store_bytes: int = Field(
        default=0, ge=0, description="memory for arrays and results; 0: two fifths of the machine's"
    )
    store_warm_bytes: int = Field(
        default=512 * MIB,
        ge=0,
        description="how much of it is kept ready beyond the most that was ever in use",
    )
    queue_limit: int = Field(
        default=256, ge=1, description="jobs that may wait or run; more are refused with a hint to retry"
    )
    compile_deadline_s: float = Field(
        default=30.0, gt=0, description="longest time for compiling and starting one formula"
    )
    upload_idle_s: float = Field(
        default=60.0, gt=0, description="an upload that brings nothing for so long is dropped"
    )
    ticket_ttl_s: float = Field(
        default=120.0, gt=0, description="a large result that is not fetched for so long is dropped"
    )
    tenant_bytes: int = Field(
        default=0, ge=0, description="how much of the store one tenant may take; 0: all of it"
    )
    handle_ttl_s: float = Field(
        default=3600.0, gt=0, description="handles to an array that nobody has used for so long are void"
    )
    memory_socket: str = Field(
        default="",
        description="path of a Unix socket by which clients of the same user on this machine may hand over large "
        "arrays through memory; its directory must be closed to others; empty: none",
    )
    reflection: bool = Field(default=False, description="let gRPC tools list the services")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="what is logged"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def grpc_address(self) -> str:
        if self.host.startswith("unix:"):
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host.strip("[]") else f"{self.host}:{self.port}"

    @property
    def http_host(self) -> str:
        return "127.0.0.1" if self.host.startswith("unix:") else self.host.strip("[]")

    @property
    def limits(self) -> Limits:
        # Warming takes real memory: never more than an eighth of what is free.
        memory = psutil.virtual_memory()
        store_bytes = self.store_bytes or memory.total * 2 // 5
        return Limits(
            store_bytes=store_bytes,
            store_warm_bytes=min(self.store_warm_bytes, store_bytes, memory.available // 8),
            queue_limit=self.queue_limit,
            compile_deadline_s=self.compile_deadline_s,
            upload_idle_s=self.upload_idle_s,
            ticket_ttl_s=self.ticket_ttl_s,
            tenant_bytes=self.tenant_bytes or None,
            handle_ttl_s=self.handle_ttl_s,
        )


def settings_from(file: Path | None) -> type[Settings]:
    """The settings class that also reads this TOML file."""
    if file is None:
        return Settings

    class FileSettings(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    FileSettings.__doc__ = Settings.__doc__
    return FileSettings
