"""The composition root: the only place of the daemon that constructs anything.

One process, one event loop: grpc.aio and uvicorn side by side, worker processes apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import structlog
import uvicorn

from farsum_kernels.errors import InternalError, ServerUnreachable
from farsum_proto.tensor import keep_freed_memory
from farsum_server.daemon import Daemon
from farsum_server.grpc_api import GrpcServer
from farsum_server.http_api import http_app
from farsum_server.local_socket import check_path
from farsum_server.memory import MemoryServer
from farsum_server.metrics import Metrics
from farsum_server.process import WORKER
from farsum_server.settings import Settings, check_bind

log = structlog.get_logger("farsum")

WORKER_START_S = 120.0
# Calls that are still open after all jobs are done: downloads that just ended, health watchers.
LAST_CALLS_S = 2.0


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, which would re-raise what they caught when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def package_version() -> str:
    try:
        return version("farsum")
    except PackageNotFoundError:
        return "unknown"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ServerUnreachable(
            f"cannot listen on {host}:{port} for HTTP: {error.strerror}; see --http-port"
        ) from error
    return listener


class App:
    """A daemon with its two surfaces.

    Raises UnsafeBind for an address that others can reach, or a socket that others could take the place of, before
    anything is opened.
    """

    def __init__(self, settings: Settings, *, worker: str = WORKER) -> None:
        check_bind(settings.host)
        self._memory_path = check_path(settings.memory_socket) if settings.memory_socket else None
        self._settings = settings
        self._worker = worker
        self._signals = 0
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain. A second signal ends at once.

        Raises ServerUnreachable when an address is taken, InternalError when no worker comes up.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        keep_freed_memory()
        listener = _listen(self._settings.http_host, self._settings.http_port)
        metrics = Metrics(package_version())
        daemon = Daemon(
            self._settings.limits,
            metrics,
            threads=self._settings.threads or None,
            devices=self._settings.device.split(","),
            worker=self._worker,
        )
        memory = (
            MemoryServer(daemon, self._memory_path, self._settings.upload_idle_s)
            if self._memory_path
            else None
        )
        grpc_server = GrpcServer(
            daemon,
            package_version(),
            passage=memory.offer if memory else None,
            reflection=self._settings.reflection,
        )
        http = _Uvicorn(uvicorn.Config(
            http_app(grpc_server.api.info, lambda: daemon.draining, metrics),
            log_config=None, access_log=False, timeout_graceful_shutdown=2, lifespan="off",
        ))  # fmt: skip
        http_task: asyncio.Task[None] | None = None
        try:
            address = await self._listen_grpc(grpc_server)
            if memory:
                memory.open()
            http_task = asyncio.create_task(http.serve(sockets=[listener]))
            daemon.start()
            await self._wait_for_workers(daemon)
            # What was imported stays; the collector need not look at it again between two calls.
            gc.freeze()
            if not self._stop.is_set():
                await grpc_server.set_serving()
                host, port = listener.getsockname()[:2]
                log.info("serving", grpc=address, http=f"http://{host}:{port}", version=package_version())
            await self._stop.wait()
            await self._drain(daemon, grpc_server)
        finally:
            daemon.stop()
            await grpc_server.stop(LAST_CALLS_S)
            if memory:
                await memory.close()
            http.should_exit = True
            if http_task:
                await http_task
            daemon.close()
            listener.close()
        log.info("stopped")

    async def _listen_grpc(self, grpc_server: GrpcServer) -> str:
        address = self._settings.grpc_address
        try:
            port = await grpc_server.start(address)
        except RuntimeError as error:
            raise ServerUnreachable(
                f"cannot listen on {address} for gRPC: is it taken? see --port"
            ) from error
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def _wait_for_workers(self, daemon: Daemon) -> None:
        up = asyncio.create_task(daemon.wait_ready(WORKER_START_S))
        stop = asyncio.create_task(self._stop.wait())
        done, pending = await asyncio.wait((up, stop), return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if up in done and not up.result():
            raise InternalError("no worker process came up; its own message is above")

    async def _drain(self, daemon: Daemon, grpc_server: GrpcServer) -> None:
        log.info("draining")
        daemon.refuse_new_work()
        await grpc_server.announce_drain()
        drained = asyncio.create_task(daemon.drain())
        hurry = asyncio.create_task(self._hurry.wait())
        _, pending = await asyncio.wait((drained, hurry), return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()


def serve(settings: Settings, *, worker: str = WORKER) -> None:
    """Run a daemon until it is told to stop."""

    async def run() -> None:
        await App(settings, worker=worker).run()

    asyncio.run(run())
