"""The least that a call can cost: a sync client in ping-pong with a grpc.aio server that echoes.

python -m benchmarks.echo          serve on a free loopback port, which is printed
"""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from benchmarks.measure import median, timed


async def serve() -> None:
    async def echo(messages: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for message in messages:
            yield message

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(
        "Echo", {"Stream": grpc.stream_stream_rpc_method_handler(echo)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def ping_pong(size: int, calls: int) -> float:
    """The median seconds of a message of so many bytes there and back, on one kept stream."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.echo"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        with grpc.insecure_channel(f"127.0.0.1:{int(process.stdout.readline())}") as channel:
            out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            stream: Any = channel.stream_stream("/Echo/Stream")
            answers = stream(iter(out.get, None))
            message = bytes(size)

            def call() -> None:
                out.put(message)
                next(answers)

            for _ in range(20):
                call()
            times = [timed(call)[0] for _ in range(calls)]
            out.put(None)
            return median(times)
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


if __name__ == "__main__":
    asyncio.run(serve())
