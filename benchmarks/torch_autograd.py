"""What autograd costs: W8 forward and backward beside the two bare reductions, and small calls beside pykeops.torch.

A Gaussian sum in D = 3, float32. The bare reductions are the sum and its derivative in x, each prepared by
itself; autograd does both and may share what they have in common. Medians over interleaved rounds.

    python -m benchmarks.torch_autograd [--rounds 9] [--points 10000] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.measure import (
    Others,
    interleaved,
    machine_line,
    median,
    save,
    timed,
    warn_if_disturbed,
)

D, M, N = 3, 50, 30
BURST = 100
FORMULA = "Exp(-SqDist(x,y))*b"
ALIASES = [f"x = Vi({D})", f"y = Vj({D})", "b = Vj(1)"]
BAR = 1.15  # forward and backward, beside the two bare reductions


def inputs(m: int, n: int) -> tuple[torch.Tensor, ...]:
    made = torch.Generator().manual_seed(0)
    x, y, b = (torch.rand(*shape, generator=made) for shape in ((m, D), (n, D), (n, 1)))
    return x.requires_grad_(), y, b


def both(call: Callable[..., torch.Tensor], arrays: tuple[torch.Tensor, ...]) -> None:
    """Forward, and backward to x."""
    arrays[0].grad = None
    call(*arrays).sum().backward()


def large(points: int, rounds: int) -> dict[str, Any]:
    """Seconds of W8 by autograd, and of its two reductions by themselves."""
    genred = importlib.import_module("farsum.torch").Genred
    x, y, b = inputs(points, points)
    value = genred(FORMULA, ALIASES, reduction_op="Sum", axis=1)
    slope = genred(f"Grad({FORMULA},x,e)", [*ALIASES, "e = Vi(1)"], reduction_op="Sum", axis=1)
    ones, bare = torch.ones(points, 1), x.detach()

    def two() -> None:
        value(bare, y, b)
        slope(bare, y, b, ones)

    calls: dict[str, Callable[[], Any]] = {
        "autograd": partial(both, value, (x, y, b)),
        "two reductions": two,
    }
    for call in calls.values():
        call()
    times = interleaved({name: partial(timed, call) for name, call in calls.items()}, rounds)
    found = {name: median([wall for wall, _ in t]) for name, t in times.items()}
    return found | {"points": points, "ratio": found["autograd"] / found["two reductions"], "bar": BAR}


def small(rounds: int) -> dict[str, Any]:
    """Microseconds of a call at M = 50, N = 30: forward, and forward with backward, for each library."""
    libraries = {"farsum": "farsum.torch"}
    if importlib.util.find_spec("pykeops"):
        libraries["pykeops"] = "pykeops.torch"
    calls: dict[str, Callable[[], Any]] = {}
    for name, module in libraries.items():
        call = importlib.import_module(module).Genred(FORMULA, ALIASES, reduction_op="Sum", axis=1)
        arrays = inputs(M, N)
        plain = tuple(a.detach() for a in arrays)
        calls[f"{name} forward"] = partial(call, *plain)
        calls[f"{name} forward and backward"] = partial(both, call, arrays)

    def burst(call: Callable[[], Any]) -> tuple[float, float]:
        begun = time.perf_counter()
        for _ in range(BURST):
            call()
        return (time.perf_counter() - begun) / BURST, 0.0

    for call in calls.values():
        burst(call)
    times = interleaved({name: partial(burst, call) for name, call in calls.items()}, rounds)
    return {name: median([wall for wall, _ in t]) * 1e6 for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="What autograd costs.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="few: only that it runs")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/torch_autograd.json")
    options = parser.parse_args()
    rounds, points = (3, 1000) if options.quick else (max(7, options.rounds), options.points)
    print(f"autograd, {rounds} rounds\n  {machine_line()}")
    others = Others()
    w8, calls = large(points, rounds), small(rounds)
    print(
        f"  W8, M = N = {points:,}: {w8['autograd'] * 1e3:.1f} ms by autograd, "
        f"{w8['two reductions'] * 1e3:.1f} ms for the two reductions: {w8['ratio']:.2f} (bar {BAR})"
    )
    for name, us in calls.items():
        print(f"  M = {M}, N = {N}: {name} {us:.0f} µs")
    busy = others.cores()
    warn_if_disturbed(busy)
    if options.json:
        print(save("torch_autograd", {"others_cores": busy, "w8": w8, "small_us": calls}))


if __name__ == "__main__":
    main()
