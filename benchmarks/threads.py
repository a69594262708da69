"""What more threads give: measured on the cores at hand, and what follows for more of them.

A job on t threads takes its serial part (binding arrays, gathering results), the start of t - 1 threads one after
the other, and its work divided by t. All three are measured here: the work of a Gaussian sum on one thread, the time
with all threads at hand, and the start of up to 64 threads that find nothing to do.

    python -m benchmarks.threads [--quick] [--json]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from benchmarks.measure import Others, interleaved, machine_line, median, save, timed, warn_if_disturbed
from farsum_kernels.backends.cpu.kernel import Kernel
from farsum_kernels.backends.cpu.native import machine, threads_available
from farsum_kernels.backends.cpu.threads import Pool
from farsum_kernels.formula.text import parse
from farsum_kernels.job import Spec, check_arrays
from farsum_kernels.plan import threads_for

FORMULA = "Exp(-g * SqDist(x, y)) * b"
SIZES = (2_000, 10_000, 40_000)
POOLS = (2, 4, 8, 16, 32, 64)
ROUNDS = 9


def start_us(threads: int, rounds: int) -> float:
    """Microseconds that an idle pool takes to start so many threads and to see them end."""
    pool, times = Pool(), []
    for _ in range(rounds):
        begun = time.perf_counter()
        pool.run(lambda: None, threads)
        times.append(1e6 * (time.perf_counter() - begun))
    return median(times[1:])  # the first makes the threads


def sizes_of(size: int, rounds: int) -> dict[str, Any]:
    """Milliseconds on one thread and on all, and what is not shared: the time beside the machine code."""
    rng = np.random.default_rng(0)
    arrays = {n: rng.random((size, d), dtype=np.float32) for n, d in ((0, 3), (1, 3), (2, 1))}
    arrays[3] = np.array([0.7], np.float32)
    spec = Spec(
        parse(FORMULA, ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "g = Pm(1)"]).root, "Sum", 1, "float32"
    )
    kernels = {f"{n} threads": Kernel(spec, machine(n)) for n in (1, threads_available())}
    serial: list[float] = []

    def job(kernel: Kernel) -> None:
        begun = time.perf_counter()
        launch = kernel.launch(arrays, check_arrays(spec, arrays))
        bound = time.perf_counter()
        while launch.step() < 1.0:
            pass
        done = time.perf_counter()
        launch.results()
        serial.append(1e6 * (bound - begun + time.perf_counter() - done))

    calls = {name: lambda kernel=kernel: timed(lambda: job(kernel)) for name, kernel in kernels.items()}
    runs = interleaved(calls, rounds)
    one, all_ = (1e3 * median([wall for wall, _ in runs[name]]) for name in kernels)
    work = size * size * kernels["1 threads"].work_per_pair
    return {
        "size": size,
        "one_ms": one,
        "all_ms": all_,
        "serial_us": median(serial),
        "work": work,
        "lanes": kernels["1 threads"].layout.lanes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What more threads give.")
    parser.add_argument("--quick", action="store_true", help="small: that it runs")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/threads.json")
    options = parser.parse_args()
    rounds, others = (3 if options.quick else ROUNDS), Others()
    print(f"a Gaussian sum, D=3, float32, and the start of threads\n  {machine_line()}")
    starts = {threads: start_us(threads, 10 * rounds) for threads in POOLS}
    each = starts[POOLS[-1]] / (POOLS[-1] - 1)
    for threads, took in starts.items():
        print(f"  {threads:3} threads start and end in {took:7.0f} µs, {took / (threads - 1):5.1f} each")
    rows = [sizes_of(size, rounds) for size in (SIZES[:1] if options.quick else SIZES)]
    for row in rows:
        many = machine(64)
        row["threads_of_64"] = threads_for(row["work"], row["lanes"], many)
        shared = 1e3 * row["one_ms"] - row["serial_us"]
        row["speedup_of_64"] = (
            1e3
            * row["one_ms"]
            / (row["serial_us"] + each * row["threads_of_64"] + shared / row["threads_of_64"])
        )
        print(
            f"  {row['size']:,} × {row['size']:,}: {row['one_ms']:.2f} ms on one thread, {row['all_ms']:.2f} on "
            f"{threads_available()}: {row['one_ms'] / row['all_ms']:.2f} times as fast; {row['serial_us']:.0f} µs serial; "
            f"of 64 cores {row['threads_of_64']} would be used, {row['speedup_of_64']:.0f} times as fast"
        )
    warn_if_disturbed(cores := others.cores())
    if options.json:
        figures = {"workload": "threads", "threads": threads_available(), "starts_us": starts, "rows": rows}
        print(f"  wrote {save('threads', figures | {'others_cores': cores})}")


if __name__ == "__main__":
    main()
