"""What it costs to bring 256 MiB from one process's memory into another's, by the ways that Linux has; in one process here.

warm       from memory to memory, both touched before: the ceiling
fresh      into a memfd made for it, through a map, and by pwrite
window     through four places of 1 MiB, used again and again, into warm memory: the way that arrays go
stream     through a Unix stream socket, sent by another thread
result     into a fresh NumPy array, and the same array mapped privately and read once

    python -m benchmarks.copies [--rounds 7] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import mmap
import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing

import numpy as np

from benchmarks.measure import (
    Others,
    interleaved,
    machine_line,
    median,
    save,
    table,
    timed,
    warn_if_disturbed,
)
from farsum_proto.window import PLACE_BYTES, PLACES

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description="Copies between processes of one machine.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small and few: only that it runs")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/copies.json")
    options = parser.parse_args()
    rounds, size = (2, 16 * MIB) if options.quick else (max(2, options.rounds), 256 * MIB)
    print(f"copies: {size // MIB} MiB, {rounds} rounds\n  {machine_line()}")
    others = Others()
    with ExitStack() as opened:
        ways = ways_of(size, opened)
        times = interleaved({name: lambda way=way: timed(way) for name, way in ways.items()}, rounds + 1)  # type: ignore[misc]
    disturbed = others.cores()
    found = {name: size / median([wall for wall, _ in taken[1:]]) / 1e9 for name, taken in times.items()}
    table([(name, f"{gb_s:.2f} GB/s", "") for name, gb_s in found.items()])
    warn_if_disturbed(disturbed)
    if options.json:
        print(f"  wrote {save('copies', {'bytes': size, 'others_cores': disturbed, 'gb_s': found})}")


def ways_of(size: int, opened: ExitStack) -> dict[str, Callable[[], object]]:
    source = memoryview(np.random.default_rng(0).bytes(size))
    arena, store = memory(size, opened)
    store[:] = source
    _, window = memory(PLACES * PLACE_BYTES, opened)
    window[:] = source[: len(window)]

    def warm() -> None:
        store[:] = source

    def fresh_map() -> None:
        with ExitStack() as short:
            memory(size, short)[1][:] = source

    def fresh_pwrite() -> None:
        with ExitStack() as short:
            fd = memfd(size, short)
            for at in range(0, size, PLACE_BYTES):
                os.pwrite(fd, source[at : at + PLACE_BYTES], at)

    def through_window() -> None:
        for at in range(0, size, PLACE_BYTES):
            start = at % len(window)
            window[start : start + PLACE_BYTES] = source[at : at + PLACE_BYTES]
            store[at : at + PLACE_BYTES] = window[start : start + PLACE_BYTES]

    def stream() -> None:
        near, far = socket.socketpair()
        with near, far:
            sender = threading.Thread(target=near.sendall, args=(source,))
            sender.start()
            at = 0
            while at < size:
                at += far.recv_into(store[at:])
            sender.join()

    def result() -> None:
        memoryview(np.empty(size, np.uint8))[:] = store  # type: ignore[arg-type]

    def private() -> None:
        with closing(mmap.mmap(arena, size, mmap.MAP_PRIVATE)) as view:
            np.frombuffer(view, np.int64).sum()

    return {
        "warm": warm,
        "fresh, map": fresh_map,
        "fresh, pwrite": fresh_pwrite,
        "window": through_window,
        "stream": stream,
        "result": result,
        "result, mapped": private,
    }


def memfd(size: int, opened: ExitStack) -> int:
    fd = os.memfd_create("copies")
    opened.callback(os.close, fd)
    os.ftruncate(fd, size)
    return fd


def memory(size: int, opened: ExitStack) -> tuple[int, memoryview]:
    fd = memfd(size, opened)
    view = memoryview(opened.enter_context(closing(mmap.mmap(fd, size))))
    opened.callback(view.release)
    return fd, view


if __name__ == "__main__":
    main()
