"""What `gpu_check` measures on a card: workloads with their sizes, the way each is forced to go, ceilings and bars. Data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from farsum_kernels.backends.cuda.layout import DIRECT, FILTER, TENSOR
from farsum_kernels.formula.expr import constant, node
from farsum_kernels.job import Spec
from tests.cuda.cases import WORKLOADS, Case, gauss, points, summed, times


@dataclass(frozen=True)
class Row:
    """One line of the report.

    name      the workload, and the way where it has more than one
    formula   as pykeops reads it; None where it has no such workload
    path      that is forced; None leaves it to the cost model
    ceiling   pairs per clock of one processor at which the first unit is full, by the units' rates
    bar       the ratio to pykeops that is asked for
    """

    name: str
    spec: Spec
    m: int
    n: int
    formula: str | None = None
    path: str | None = None
    ceiling: float | None = None
    bar: float | None = None
    batch: tuple[int, ...] = ()

    @property
    def pairs(self) -> int:
        return self.m * self.n * int(np.prod(self.batch or (1,)))

    @cached_property
    def arrays(self) -> dict[int, np.ndarray]:
        return Case(self.name, self.spec, self.m, self.n, self.batch).arrays()


def _scaled(dim: int) -> Spec:
    """exp(-2 |x - y|² / D) b: in many dimensions as wide as the data."""
    return summed(
        times(node("Exp", node("Minus", node("Mult", constant(2.0 / dim), node("SqDist", *points(dim))))))
    )


GAUSS = "Exp(-SqDist(x,y))*b"
MILLION, HALF = 10**6, 10**5


def rows(dry: bool) -> list[Row]:
    """All of them, in the order in which they are measured; at sizes for the emulator in a dry run."""
    scaled = {dim: (_scaled(dim), f"Exp(-SqDist(x,y)*IntInv({dim // 2}))*b") for dim in (10, 100, 1000)}
    made = [
        Row("W1", WORKLOADS["W1"], MILLION, MILLION, GAUSS, DIRECT, 14.2, 1.3),
        Row("W1 certified", WORKLOADS["W1"], MILLION, MILLION, GAUSS, TENSOR, 24.0),
        Row("W2", WORKLOADS["W2"], 300_000, 300_000, GAUSS, None, 4.57, 1.6),
        Row("W3", WORKLOADS["W3"], MILLION, MILLION, "Exp(-Norm2(x-y))*b", None, 9.7, 1.0),
        Row("W4-10", scaled[10][0], MILLION, MILLION, scaled[10][1], DIRECT, 5.6, 1.25),
        Row("W4-10 certified", scaled[10][0], MILLION, MILLION, scaled[10][1], TENSOR, 23.0, 4.0),
        Row("W4-100", scaled[100][0], HALF, HALF, scaled[100][1], DIRECT, 0.63, 2.0),
        Row("W4-100 certified", scaled[100][0], HALF, HALF, scaled[100][1], TENSOR, 6.4, 10.0),
        Row("W4-1000", scaled[1000][0], 20_000, 20_000, scaled[1000][1], DIRECT, 0.064),
        Row("W4-1000 certified", scaled[1000][0], 20_000, 20_000, scaled[1000][1], TENSOR, 0.68),
        Row("W5-3", WORKLOADS["W5-3"], MILLION, MILLION, "SqDist(x,y)", DIRECT, 16.4),
        Row("W5-3 filtered", WORKLOADS["W5-3"], MILLION, MILLION, "SqDist(x,y)", FILTER, 64.0, 5.0),
        Row("W5-3 by itself", WORKLOADS["W5-3"], MILLION, MILLION, "SqDist(x,y)"),
        Row("W5-100", WORKLOADS["W5-100"], HALF, HALF, "SqDist(x,y)", FILTER, 18.3, 15.0),
        Row("W6-3", WORKLOADS["W6-3"], MILLION, MILLION, "SqDist(x,y)"),
        Row("W6-100", WORKLOADS["W6-100"], HALF, HALF, "SqDist(x,y)", FILTER, 18.3, 12.0),
        Row("W7", WORKLOADS["W7"], MILLION, MILLION, "-SqDist(x,y)", DIRECT, 12.8, 1.8),
        Row("W8", WORKLOADS["W8"], MILLION, MILLION, f"Grad({GAUSS}, x, e)", DIRECT, 10.7, 1.8),
        Row("W8 certified", WORKLOADS["W8"], MILLION, MILLION, f"Grad({GAUSS}, x, e)", TENSOR, 17.7),
        Row("W9", WORKLOADS["W9"], HALF, HALF),
        Row("W9-64", WORKLOADS["W9-64"], HALF, HALF),
        Row("W10", WORKLOADS["W1"], 1000, 1000, GAUSS, DIRECT, None, 2.0, (1000,)),
        Row("W12", WORKLOADS["W1"], 100, 10**7, GAUSS, DIRECT, None, 300.0),
        Row("gradient-100", WORKLOADS["gradient-100"], 20_000, 20_000),
        Row("wide", summed(times(gauss(3), 64)), HALF, HALF),
    ]
    if not dry:
        return made
    small = {"m": 70, "n": 150, "batch": ()}
    return [Row(**{**vars(row), **small}) for row in made if row.name != "W4-1000"]
