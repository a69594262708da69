"""The gRPC surface: decode, call the daemon, encode. Nothing else happens here.

All methods take and give raw bytes: a message that does not decode must become a typed error, and the
library would answer it by itself with another one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from farsum_kernels.errors import FarsumError, WireError
from farsum_proto import wire
from farsum_server.clients import Client
from farsum_server.daemon import Daemon, internal
from farsum_server.jobs import Begun, Slot

Context = grpc.aio.ServicerContext[bytes, bytes]
Handler = Callable[[Any, Any], Awaitable[Any]]

OPTIONS = (
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
    # Without this a second server silently shares the port.
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 128),
)

# A client that does not read gets no progress while so many messages wait for it, and is not read from either.
MAX_OUTBOX = 64
# How many jobs a session has numbers for; the number that was given first is forgotten first.
MAX_NUMBERS = 64


class Session:
    """One kept stream. Reads on one task, writes on another; jobs answer into the outbox."""

    def __init__(self, daemon: Daemon, context: Context, holder: bytes) -> None:
        self._daemon = daemon
        self._context = context
        self._client = Client(holder=holder, on_idle=self._idle)
        self._jobs: dict[int, int] = {}  # the client's id -> the daemon's
        # Of the jobs that can be asked again, by the numbers that the client knows.
        self._slots: dict[int, Slot] = {}
        self._outbox: deque[bytes] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._eof = False
        self._writing = False  # one task writes at a time
        self._said = asyncio.Event()  # nothing waits to be written
        self._taking = False  # what is put now is written by the reader

    async def run(self) -> None:
        self._daemon.arrive(self._client)
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        try:
            done, _ = await asyncio.wait((reader, writer), return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            reader.cancel()
            writer.cancel()
            self._daemon.leave(self._client)
            await asyncio.gather(reader, writer, return_exceptions=True)

    def tell_draining(self) -> None:
        self._put(wire.encode_draining())

    async def _read(self) -> None:
        while isinstance(data := await self._context.read(), bytes):
            self._taking = True
            try:
                self._take(data)
            finally:
                self._taking = False
            if self._outbox and not self._writing:
                await self._say()  # answered already: this saves waking the writer
            elif len(self._outbox) >= MAX_OUTBOX:
                await self._said.wait()
        self._eof = True
        self._poke()

    def _take(self, data: bytes) -> None:
        if wire.is_numbers(data):
            self._again(data)
            return
        id_, message = wire.decode_client(data)
        match message:
            case wire.Request():
                self._ask(id_, message)
            case wire.Residency():
                self._claim(id_, message)
            case wire.Cancel():
                if id_ in self._jobs:
                    self._daemon.cancel(self._jobs[id_])
            case wire.Refused(error):
                self._put(wire.encode_failure(id_, error))
            case _:
                raise WireError("a session says hello once")

    def _again(self, packet: bytes) -> None:
        """A small job that this session was given a number for."""
        started = time.perf_counter()
        id_, number = wire.decode_head(packet)
        slot = self._slots.get(number)
        if slot is None:
            self._put(wire.encode_answer(id_, wire.Need(())))
            return
        try:
            slot.rooms.check(packet)
        except FarsumError as error:
            self._put(wire.encode_failure(id_, error))
            return
        found = self._daemon.express(self._client, slot, packet)
        if isinstance(found, bytes):
            self._put(wire.headed(found, number, id_))
            self._daemon.metrics.answered("Reduce", "OK", time.perf_counter() - started)
        else:
            self._ask(id_, wire.Request(slot.form, slot.rooms.contents(packet)), found)

    def _numbered(self, form: bytes) -> int:
        """The number by which a job can be asked again; 0 if it cannot."""
        slot = self._daemon.slot(form)
        if slot is None:
            return 0
        if slot.number not in self._slots:
            self._slots = {n: held for n, held in self._slots.items() if not held.lost}
            if len(self._slots) == MAX_NUMBERS:
                del self._slots[next(iter(self._slots))]
            self._slots[slot.number] = slot
        return slot.number

    def _ask(self, id_: int, request: wire.Request, begun: Begun | None = None) -> None:
        started = time.perf_counter()
        metrics = self._daemon.metrics

        def answer(outcome: wire.Reply | FarsumError) -> None:
            self._jobs.pop(id_, None)
            if isinstance(outcome, FarsumError):
                code, data = outcome.status.grpc, wire.encode_failure(id_, outcome)
            else:
                if isinstance(outcome, wire.Outputs):
                    outcome = replace(outcome, again=self._numbered(request.form))
                code, data = "OK", wire.encode_answer(id_, outcome)
            self._put(data)
            metrics.answered("Reduce", code, time.perf_counter() - started)

        def progress(share: float, values: tuple[bytes, ...]) -> None:
            if len(self._outbox) < MAX_OUTBOX:
                self._put(wire.encode_progress(id_, share, values))

        if id_ in self._jobs:
            raise WireError(f"request {id_} is under way already")
        try:
            job = self._daemon.ask(self._client, request, answer, progress, begun)
        except FarsumError as error:
            answer(error)
        except Exception as error:  # A bug of ours must not end the other jobs of the session.
            answer(internal(error, "Session"))
        else:
            if job is not None and job in self._client.jobs:
                self._jobs[id_] = job

    def _claim(self, id_: int, residency: wire.Residency) -> None:
        try:
            data = wire.encode_answer(id_, self._daemon.settle_claims(self._client, residency))
        except FarsumError as error:
            data = wire.encode_failure(id_, error)
        if id_:
            self._put(data)

    def _put(self, data: bytes) -> None:
        self._outbox.append(data)
        if not self._taking:
            self._poke()

    def _idle(self) -> None:
        """Nothing of this client is left; if nothing can follow either, the writer ends the stream."""
        if self._eof or self._daemon.draining:
            self._poke()

    def _poke(self) -> None:
        if self._wake and not self._wake.done():
            self._wake.set_result(None)

    async def _write(self) -> None:
        """Send what is in the outbox; return, which ends the stream, when nothing can follow."""
        loop = asyncio.get_running_loop()
        while True:
            if self._outbox and not self._writing:
                await self._say()
            over = self._eof or self._daemon.draining
            if over and self._client.idle and not self._outbox and not self._writing:
                raise _Done
            self._wake = loop.create_future()
            await self._wake

    async def _say(self) -> None:
        """Send what is in the outbox. One task at a time: a stream takes one message after the other."""
        self._writing = True
        self._said.clear()
        try:
            while self._outbox:
                await self._context.write(self._outbox.popleft())
        finally:
            self._writing = False
            self._said.set()
        self._idle()


class _Done(Exception):
    """The session has said all it had to say."""


class Api:
    """The handlers. Each is a coroutine over bytes; `Guard` stands around all of them."""

    def __init__(self, daemon: Daemon, version: str, passage: wire.Passage | None = None) -> None:
        self._daemon = daemon
        self._version = version
        self._passage = passage  # what sessions are offered beside gRPC
        self._sessions: set[Session] = set()

    def tell_draining(self) -> None:
        for session in self._sessions:
            session.tell_draining()

    def info(self) -> wire.Info:
        return wire.Info(self._version, self._daemon.ready, tuple(self._daemon.devices))

    async def get_info(self, data: bytes, context: Context) -> bytes:
        return wire.encode_info(self.info())

    async def reduce(self, data: bytes, context: Context) -> bytes:
        request = wire.decode_request(data)
        client = Client()
        answer: asyncio.Future[wire.Reply | FarsumError] = asyncio.get_running_loop().create_future()
        try:
            self._daemon.ask(
                client, request, lambda outcome: None if answer.done() else answer.set_result(outcome)
            )
            outcome = await answer
        except asyncio.CancelledError:
            self._daemon.leave(client)
            raise
        if isinstance(outcome, FarsumError):
            raise outcome
        return wire.encode_reply(outcome)

    async def session(self, messages: AsyncIterator[bytes], context: Context) -> None:
        first = await context.read()
        if not isinstance(first, bytes):
            return  # the client said nothing
        _, hello = wire.decode_client(first)
        if not isinstance(hello, wire.Hello):
            raise WireError("a session starts with hello")
        protocol = wire.agree(hello.oldest, hello.newest)
        await context.write(wire.encode_welcome(protocol, self._version, self._passage))
        session = Session(self._daemon, context, hello.holder)
        self._sessions.add(session)
        try:
            await session.run()
        except _Done:
            pass
        finally:
            self._sessions.discard(session)

    async def upload(self, chunks: AsyncIterator[bytes], context: Context) -> bytes:
        stream = aiter(chunks)
        first = await anext(stream, None)
        if first is None:
            raise WireError("the upload is empty")
        upload = wire.decode_upload(first)
        return wire.encode_stored(await self._daemon.upload(Client().tenant, upload, stream))

    async def download(self, data: bytes, context: Context) -> None:
        from farsum_proto.tensor import chunks_of

        what, offset = wire.decode_download(data)
        async with self._daemon.download(what) as (header, body):
            for chunk in chunks_of(header, body, offset):
                await context.write(chunk)


class Guard:
    """The one place where an exception becomes a status. Outermost, so nothing escapes it."""

    def __init__(self, daemon: Daemon) -> None:
        self._metrics = daemon.metrics

    def __call__(self, method: str, handler: Handler) -> Handler:
        counted = method != "Session"  # whose jobs are counted one by one

        async def guarded(request: Any, context: Any) -> Any:
            started = time.perf_counter()
            error: FarsumError | None = None
            try:
                return await handler(request, context)
            except FarsumError as found:
                error = found
            except Exception as found:
                error = internal(found, method)
            finally:
                if counted or error:
                    code = error.status.grpc if error else "OK"
                    self._metrics.answered(method, code, time.perf_counter() - started)
            await context.abort(
                grpc.StatusCode[error.status.grpc], wire.error_text(error), wire.error_metadata(error)
            )

        return guarded


class GrpcServer:
    """A grpc.aio server with the API, the health service and, if wanted, reflection."""

    def __init__(
        self, daemon: Daemon, version: str, *, passage: wire.Passage | None = None, reflection: bool = False
    ) -> None:
        self.api = Api(daemon, version, passage)
        self._health = health.aio.HealthServicer()
        others = set(threading.enumerate())
        self._server = grpc.aio.server(options=OPTIONS)
        # Those that gRPC has started for it carry its messages.
        daemon.affinity.carriers = [
            t.native_id for t in threading.enumerate() if t not in others and t.native_id
        ]
        guard = Guard(daemon)
        api = self.api
        self._server.add_generic_rpc_handlers((
            grpc.method_handlers_generic_handler(wire.SERVICE, {
                "Info": grpc.unary_unary_rpc_method_handler(guard("Info", api.get_info)),
                "Reduce": grpc.unary_unary_rpc_method_handler(guard("Reduce", api.reduce)),
                "Session": grpc.stream_stream_rpc_method_handler(guard("Session", api.session)),
            }),
            grpc.method_handlers_generic_handler(wire.BULK, {
                "Upload": grpc.stream_unary_rpc_method_handler(guard("Upload", api.upload)),
                "Download": grpc.unary_stream_rpc_method_handler(guard("Download", api.download)),
            }),
        ))  # fmt: skip
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflection:
            from grpc_reflection.v1alpha.reflection import SERVICE_NAME, enable_server_reflection

            enable_server_reflection((wire.SERVICE, health.SERVICE_NAME, SERVICE_NAME), self._server)

    async def start(self, address: str) -> int:
        """Listen; gives the port. Raises RuntimeError when the address is taken."""
        port = self._server.add_insecure_port(address)
        await self._server.start()
        await self._health.set(wire.SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        return port

    async def set_serving(self) -> None:
        await self._health.set(wire.SERVICE, health_pb2.HealthCheckResponse.SERVING)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    async def announce_drain(self) -> None:
        await self._health.enter_graceful_shutdown()
        self.api.tell_draining()

    async def stop(self, grace_s: float) -> None:
        with suppress(asyncio.CancelledError):
            await self._server.stop(grace_s)
