"""The least that the wire can cost: a sync client with a bare grpc.aio server that echoes, takes and gives bytes.

python -m benchmarks.echo          serve on a free loopback port, which is printed
"""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

CHUNK = bytes(1 << 20)


async def serve() -> None:
    async def echo(messages: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for message in messages:
            yield message

    async def take(messages: AsyncIterator[bytes], _: Any) -> bytes:
        async for _message in messages:
            pass
        return b""

    async def give(count: bytes, context: Any) -> None:
        for _ in range(int(count)):
            await context.write(CHUNK)

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(
        "Echo",
        {
            "Stream": grpc.stream_stream_rpc_method_handler(echo),
            "Take": grpc.stream_unary_rpc_method_handler(take),
            "Give": grpc.unary_stream_rpc_method_handler(give),
        },
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


class Echo:
    """A client of the bare server, over one connection."""

    def __init__(self, channel: grpc.Channel, size: int) -> None:
        self._channel = channel
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        stream: Any = channel.stream_stream("/Echo/Stream")
        self._answers = stream(iter(self._out.get, None))
        self._message = bytes(size)

    def ping_pong(self) -> None:
        """One message there and back, on the kept stream."""
        self._out.put(self._message)
        next(self._answers)

    def up(self, chunks: int) -> float:
        """The seconds that so many chunks of 1 MiB take to the server."""
        take: Any = self._channel.stream_unary("/Echo/Take")
        begun = time.perf_counter()
        take(iter([CHUNK] * chunks))
        return time.perf_counter() - begun

    def down(self, chunks: int) -> float:
        """The seconds that so many chunks of 1 MiB take from the server."""
        give: Any = self._channel.unary_stream("/Echo/Give")
        begun = time.perf_counter()
        for _ in give(str(chunks).encode()):
            pass
        return time.perf_counter() - begun

    def hang_up(self) -> None:
        self._out.put(None)


@contextmanager
def bare_server(size: int = 300) -> Iterator[Echo]:
    """The bare server in a process of its own, and a client whose messages have so many bytes."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.echo"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        with grpc.insecure_channel(f"127.0.0.1:{int(process.stdout.readline())}") as channel:
            echo = Echo(channel, size)
            yield echo
            echo.hang_up()
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


if __name__ == "__main__":
    asyncio.run(serve())
