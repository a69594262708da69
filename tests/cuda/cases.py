"""The jobs that stand for all others on a GPU: the fixed workloads, and shapes that kernels stumble over."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from farsum_kernels.formula.expr import Expr, I, J, node, variable
from farsum_kernels.job import Part, Spec


def points(dim: int) -> tuple[Expr, Expr]:
    return variable(0, dim, I), variable(1, dim, J)


def gauss(dim: int) -> Expr:
    return node("Exp", node("Minus", node("SqDist", *points(dim))))


def laplace(dim: int) -> Expr:
    return node("Exp", node("Minus", node("Norm2", node("Subtract", *points(dim)))))


def times(kernel: Expr, width: int = 1) -> Expr:
    return node("Mult", kernel, variable(2, width, J))


def gradient(dim: int) -> Expr:
    """The derivative of a Gaussian sum in x."""
    return node("Grad", times(gauss(dim)), variable(0, dim, I), variable(3, 1, I))


def summed(formula: Expr, dtype: str = "float32", **more: Any) -> Spec:
    return Spec(formula, "Sum", 1, dtype, **more)


def over_distances(reduction: str, dim: int, dtype: str = "float32", **more: Any) -> Spec:
    return Spec(node("SqDist", *points(dim)), reduction, 1, dtype, **more)


WORKLOADS: dict[str, Spec] = {
    "W1": summed(times(gauss(3))),
    "W2": summed(times(gauss(3)), "float64"),
    "W3": summed(times(laplace(3))),
    "W4-10": summed(times(gauss(10))),
    "W4-100": summed(times(gauss(100))),
    "W4-1000": summed(times(gauss(1000))),
    "W5-3": over_distances("ArgMin", 3),
    "W5-100": over_distances("ArgMin", 100),
    "W6-3": over_distances("ArgKMin", 3, k=10),
    "W6-100": over_distances("ArgKMin", 100, k=10),
    "W7": Spec(node("Minus", node("SqDist", *points(3))), "LogSumExp", 1, "float32"),
    "W8": summed(gradient(3)),
    "W9": Spec(
        node("Minus", node("SqDist", *points(3))), "SumSoftMaxWeight", 1, "float32", variable(2, 3, J)
    ),
    "W9-64": Spec(node("Scalprod", *points(64)), "SumSoftMaxWeight", 1, "float32", variable(2, 64, J)),
    "wide": summed(times(gauss(3), 64)),
    "gradient-100": summed(gradient(100)),
}
"""By their names in the benchmarks."""


@dataclass(frozen=True)
class Case:
    """A job with sizes."""

    name: str
    spec: Spec
    m: int = 131
    n: int = 277
    batch: tuple[int, ...] = ()
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)  # of inputs whose batch axes broadcast

    def arrays(self, seed: int = 0) -> dict[int, np.ndarray]:
        """Random inputs in the dtype of the job."""
        rng = np.random.default_rng(seed)
        m, n = self.m, self.n
        made = {}
        for index, variable_ in self.spec.inputs.items():
            _, dim, category = variable_.params
            own = ((m, dim), (n, dim), (dim,))[category]
            values = rng.random(self.shapes.get(index, (*self.batch, *own)))
            if self.spec.dtype == "bfloat16":
                made[index] = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            else:
                made[index] = values.astype(self.spec.dtype)
        return made


def wide(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array of a job in float64, whatever it is held as."""
    if dtype == "bfloat16" and array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array if array.dtype == np.int64 else array.astype(np.float64)


def many_columns(pairs: int, dim: int) -> Expr:
    """Distances of many pairs of vectors: more numbers of a column than shared memory holds."""
    distances = [node("SqDist", variable(k, dim, I), variable(k + pairs, dim, J)) for k in range(pairs)]
    return reduce(lambda a, b: node("Add", a, b), distances)


def many_long(count: int, dim: int) -> Expr:
    """A long F of many long vectors of a column."""
    terms = [node("Mult", variable(0, 1, I), variable(k + 1, dim, J)) for k in range(count)]
    return reduce(lambda a, b: node("Add", a, node("Exp", b)), terms)


D3 = node("SqDist", *points(3))
VECTOR = node("Subtract", *points(50))
CASES = [
    *(Case(f"{name}", spec) for name, spec in WORKLOADS.items() if name != "W4-1000"),
    *(Case(f"gauss-{d}-{t}", summed(times(gauss(d)), t)) for d in (3, 20) for t in ("float16", "bfloat16")),
    Case("gauss-20-float64", summed(times(gauss(20)), "float64")),
    Case("one row", WORKLOADS["W1"], 1, 1500),
    Case("one column", WORKLOADS["W1"], 300, 1),
    Case("no column", WORKLOADS["W1"], 40, 0),
    Case("no column, argmin", WORKLOADS["W5-3"], 40, 0),
    Case("many rows", WORKLOADS["W1"], 2500, 129),
    Case("splits", WORKLOADS["W1"], 33, 4000),
    Case("splits, argmin", WORKLOADS["W5-3"], 33, 4000),
    Case("splits, lists", WORKLOADS["W6-3"], 33, 4000),
    Case("splits, logsumexp", WORKLOADS["W7"], 33, 4000),
    Case("splits, panels", WORKLOADS["W4-100"], 40, 2100),
    Case("axis 0", Spec(times(gauss(3)), "Sum", 0, "float32")),
    Case("batch", WORKLOADS["W1"], 67, 300, (3,)),
    Case("batch that broadcasts", WORKLOADS["W1"], 67, 200, (2, 3), {1: (3, 200, 3), 2: (2, 1, 200, 1)}),
    Case("panels in a batch", WORKLOADS["W4-100"], 37, 150, (2,)),
    Case("min", over_distances("Min", 3)),
    Case("max of long vectors", Spec(VECTOR, "Max", 1, "float32"), 67, 300),
    Case("lists of long vectors", Spec(VECTOR, "ArgKMin", 1, "float32", k=2), 67, 100),
    Case("lists in memory", over_distances("KMin_ArgKMin", 3, k=40), 67, 900),
    Case("lists longer than the columns", over_distances("KMin_ArgKMin", 3, k=12), 20, 5),
    Case("lists at D=40", over_distances("KMin_ArgKMin", 40, k=5), 67, 300),
    Case("maximum and sums", over_distances("Max_SumShiftExp", 3)),
    Case("wide weights", over_distances("SumSoftMaxWeight", 3, weight=variable(2, 20, J)), 67, 300),
    Case("wide weights, logsumexp", over_distances("LogSumExp", 3, weight=variable(2, 30, J)), 67, 300),
    Case("wide weights, splits", WORKLOADS["W9-64"], 20, 2500),
    Case("three at once", summed(times(gauss(3)), also=(Part(D3, "Min"), Part(D3, "ArgKMin", k=3))), 67, 300),
    Case("sum of long and short", summed(VECTOR, also=(Part(node("SqNorm2", VECTOR), "Min"),)), 67, 200),
    Case("parameter", summed(node("Mult", node("Exp", node("Mult", variable(3, 1, 2), D3)), variable(2, 1, J)))),
    Case("many columns", summed(many_columns(6, 16), "float64"), 40, 150),
    Case("many long columns", summed(many_long(8, 20), "float64"), 40, 150),
    Case("many panels", summed(many_columns(6, 40)), 40, 150),
    Case("many panels in float64", summed(many_columns(6, 40), "float64"), 40, 150),
    Case("only columns", summed(variable(2, 5, J)), 20, 300),
    Case("only rows", summed(variable(0, 3, I)), 300, 1),
]  # fmt: skip
