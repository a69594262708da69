"""The fixed workloads W1 to W12: what is computed, at which sizes, the exact answer, the unit of work, the bars.

Points are uniform in the unit cube, seed 0; sigma = 0.5 sqrt(D). `lines` is what a user writes, the same for
farsum and for pykeops. `exact` is dense float64 on the same data, for rows spread over the answer. A workload
is plain data, so that a process of another library can be told to run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

K = 10
ROWS_CHECKED, PAIRS_CHECKED = 2048, 100_000_000
BEST = 1.2  # the bar against the best peer of any kind, unless a workload says otherwise
# What exp costs on the multiply-add pipes: reduction of the argument, polynomial, scaling by 2^n.
EXP_FMA = {"float32": 7, "float64": 12}


@dataclass(frozen=True)
class Workload:
    """One row of the table.

    m, n, d, e   rows of x, rows of y, their dimension, the width of the right-hand side
    batch        how many such problems there are; 0 means one, without a batch dimension
    bars         the least ratio of the wall time of a peer to ours, by peer; "best" is the best of any kind
    quick        sizes of --quick that differ; its peers are torch, and pykeops where `quick_pykeops` says so
    """

    id: str
    title: str
    family: str
    m: int
    n: int
    d: int
    e: int = 1
    batch: int = 0
    dtype: str = "float32"
    bars: Mapping[str, float] = field(default_factory=dict)
    quick: Mapping[str, int] = field(default_factory=lambda: {"m": 2048, "n": 2048})
    quick_pykeops: bool = False

    @property
    def sigma(self) -> float:
        return 0.5 * float(self.d) ** 0.5

    @property
    def pairs(self) -> int:
        return max(1, self.batch) * self.m * self.n

    @property
    def fma_per_pair(self) -> int:
        """Multiply-adds, or what else must run on their pipes, for a pair: the least, by differences."""
        exp = EXP_FMA[self.dtype]
        return self.d + {"argmin": 0, "argkmin": 0, "logsumexp": exp, "gradient": exp + 1 + self.d}.get(
            self.family, exp + self.e
        )

    @property
    def sizes(self) -> str:
        shape = f"{self.m:,} × {self.n:,}"
        return f"{self.batch} × ({shape})" if self.batch else shape

    def smaller(self) -> Workload:
        return replace(self, **self.quick)  # type: ignore[arg-type]

    def rows_checked(self) -> Array:
        """Rows of the answer that are compared with the exact one, the first and the last among them."""
        rows = max(1, self.batch) * self.m
        count = min(rows, ROWS_CHECKED, max(8, PAIRS_CHECKED // self.n))
        return np.linspace(0, rows - 1, count).astype(np.int64)


WORKLOADS = (
    Workload(
        "W1", "Gaussian sum, D=3", "gaussian", 10_240, 10_240, 3, bars={"pykeops": 35}, quick_pykeops=True
    ),
    Workload(
        "W2", "Gaussian sum, D=3", "gaussian", 7_168, 7_168, 3, dtype="float64", bars={"pykeops": 10}
    ),
    Workload("W3", "Laplacian sum, D=3", "laplacian", 10_240, 10_240, 3, bars={"pykeops": 33}),
    Workload("W4-10", "Gaussian sum, D=10", "gaussian", 10_240, 10_240, 10, bars={"pykeops": 35}),
    Workload("W4-100", "Gaussian sum, D=100", "gaussian", 5_120, 5_120, 100, bars={"pykeops": 48}),
    Workload("W4-1000", "Gaussian sum, D=1000", "gaussian", 2_048, 2_048, 1_000, quick={"m": 512, "n": 512}),
    Workload(
        "W5-3", "argmin, D=3", "argmin", 10_240, 10_240, 3,
        bars={"pykeops": 20, "faiss": 0.95, "best": 0.0}, quick_pykeops=True,
    ),
    Workload(
        "W5-100", "argmin, D=100", "argmin", 5_120, 5_120, 100, bars={"pykeops": 40}, quick_pykeops=True
    ),
    Workload("W6-3", "argKmin, K=10, D=3", "argkmin", 10_240, 10_240, 3, bars={"pykeops": 10}),
    Workload("W6-100", "argKmin, K=10, D=100", "argkmin", 5_120, 5_120, 100, bars={"pykeops": 33}),
    Workload(
        "W7", "LogSumExp, D=3", "logsumexp", 10_240, 10_240, 3, bars={"pykeops": 33}, quick_pykeops=True
    ),
    Workload("W8", "gradient of W1 in x", "gradient", 10_240, 10_240, 3, bars={"pykeops": 32}),
    Workload("W9", "softmax, D=3, Dv=3", "softmax", 10_240, 10_240, 3, e=3, bars={"pykeops": 36}),
    Workload("W9-64", "attention, D=Dv=64", "attention", 10_240, 10_240, 64, e=64),
    Workload(
        "W10", "batch of Gaussian sums, D=3", "gaussian", 500, 500, 3, batch=100,
        bars={"pykeops": 28}, quick={"batch": 20},
    ),
    Workload("W12-m", "Gaussian sum, D=3, few rows", "gaussian", 100, 10_000_000, 3, quick={"n": 1_000_000}),
    *(
        Workload(f"W12-e{e}", f"Gaussian sum, D=3, {e} wide", "gaussian", 4_096, 4_096, 3, e=e)
        for e in (1, 16, 64, 256)
    ),
)  # fmt: skip


def named(names: list[str]) -> list[Workload]:
    """The workloads of these names; W4 means all of W4. Raises SystemExit for a name that is none."""
    chosen = [w for w in WORKLOADS if not names or {w.id, w.id.split("-")[0]} & set(names)]
    known = {w.id for w in WORKLOADS} | {w.id.split("-")[0] for w in WORKLOADS}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(
            f"no workload {', '.join(unknown)}: there are {', '.join(w.id for w in WORKLOADS)}, W11"
        )
    return chosen


class Points(NamedTuple):
    x: Array
    y: Array
    b: Array


def points(w: Workload) -> Points:
    rng = np.random.default_rng(0)
    batch = (w.batch,) if w.batch else ()
    shapes = ((*batch, w.m, w.d), (*batch, w.n, w.d), (*batch, w.n, w.e))
    return Points(*(rng.random(shape, dtype=np.dtype(w.dtype)) for shape in shapes))


# ── what a user writes ────────────────────────────────────────────────────────────────────────────


def lines(library: Any, w: Workload, p: Points) -> Any:
    """The answer of farsum.numpy or of pykeops.numpy."""
    if w.family == "gradient":
        formula = "Grad(Exp(-g*SqDist(x,y))*b,x,e)"
        aliases = [f"x=Vi({w.d})", f"y=Vj({w.d})", "b=Vj(1)", "e=Vi(1)", "g=Pm(1)"]
        gradient = library.Genred(formula, aliases, reduction_op="Sum", axis=1)
        ones, g = np.ones((w.m, 1), w.dtype), np.array([0.5 / w.sigma**2], w.dtype)
        return gradient(p.x, p.y, p.b, ones, g)
    x_i, y_j = library.LazyTensor(p.x[..., None, :]), library.LazyTensor(p.y[..., None, :, :])
    if w.family == "attention":
        b_j = library.LazyTensor(p.b[None])
        return ((x_i | y_j) / float(w.d) ** 0.5).sumsoftmaxweight(b_j, axis=1)
    distance = ((x_i - y_j) ** 2).sum(-1)
    if w.family == "argmin":
        return distance.argmin(axis=1)
    if w.family == "argkmin":
        return distance.argKmin(K, axis=1)
    if w.family == "laplacian":
        return (-distance.sqrt() / w.sigma).exp() @ p.b
    logits = -distance / (2 * w.sigma**2)
    if w.family == "logsumexp":
        return logits.logsumexp(axis=1)
    if w.family == "softmax":
        return logits.sumsoftmaxweight(library.LazyTensor(p.b[None]), axis=1)
    return logits.exp() @ p.b


# ── the exact answer ──────────────────────────────────────────────────────────────────────────────


class Exact(NamedTuple):
    """Values at the rows that are checked, and what an error is relative to."""

    value: Array
    scale: Array


def rows_of(w: Workload, answer: Any) -> Array:
    """The rows of an answer that are checked, in the layout of `exact`."""
    found = np.asarray(answer)
    return found.reshape(max(1, w.batch) * w.m, -1)[w.rows_checked()]


def exact(w: Workload, p: Points) -> Exact:
    """Dense, in float64, a few rows at a time."""
    batches, rows = max(1, w.batch), w.rows_checked()
    x, y, b = (a.reshape(batches, -1, a.shape[-1]) for a in p)
    parts = []
    for k in range(batches):
        mine = rows[rows // w.m == k] - k * w.m
        y_k, b_k = y[k].astype(np.float64), b[k].astype(np.float64)
        step = max(1, 4_000_000 // w.n)
        for start in range(0, len(mine), step):
            parts.append(_exact_rows(w, x[k][mine[start : start + step]].astype(np.float64), y_k, b_k))
    return Exact(*(np.concatenate([np.atleast_2d(part[s]) for part in parts]) for s in (0, 1)))


def _exact_rows(w: Workload, x: Array, y: Array, b: Array) -> tuple[Array, Array]:
    if w.family == "attention":
        return _averaged(x @ y.T / float(w.d) ** 0.5, b)
    distance = _square_distance(x, y)
    if w.family in ("argmin", "argkmin"):
        k = 1 if w.family == "argmin" else K
        least = np.sort(np.partition(distance, k - 1, axis=1)[:, :k], axis=1)
        return least, np.full_like(least, w.d / 6)  # the mean of all: what rounding is relative to
    if w.family == "laplacian":
        value = np.exp(-np.sqrt(distance) / w.sigma) @ b
        return value, value
    logits = -distance / (2 * w.sigma**2)
    if w.family == "logsumexp":
        value = np.log(np.exp(logits).sum(1, keepdims=True))
        return value, abs(value)
    if w.family == "softmax":
        return _averaged(logits, b)
    weights = np.exp(logits)
    if w.family == "gradient":
        weights *= b[:, 0] / w.sigma**2
        terms = [weights * (y[:, c] - x[:, c : c + 1]) for c in range(w.d)]
        return tuple(np.stack([f(t).sum(1) for t in terms], 1) for f in (np.asarray, np.abs))  # type: ignore[return-value]
    return weights @ b, weights @ b


def _averaged(logits: Array, b: Array) -> tuple[Array, Array]:
    weights = np.exp(logits - logits.max(1, keepdims=True))
    value = weights @ b / weights.sum(1, keepdims=True)
    return value, value


def _square_distance(x: Array, y: Array) -> Array:
    """By differences; in many dimensions by products of centred points, which float64 can afford."""
    if x.shape[1] <= 16:
        total = np.zeros((len(x), len(y)))
        for c in range(x.shape[1]):
            difference = x[:, c : c + 1] - y[:, c]
            difference *= difference
            total += difference
        return total
    x, y = x - 0.5, y - 0.5
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * (x @ y.T)
    return np.maximum(squares, 0.0)


def largest_error(w: Workload, p: Points, found: Array, truth: Exact) -> float:
    """Of the checked rows; of neighbours by how much farther than the true ones they are."""
    if w.family in ("argmin", "argkmin"):
        x, y = p.x[w.rows_checked()].astype(np.float64), p.y.astype(np.float64)
        neighbours = found.astype(np.int64)
        if neighbours.min() < 0 or neighbours.max() >= w.n:
            return float("inf")
        if any(len(set(row)) < len(row) for row in neighbours):
            return float("inf")  # one neighbour twice
        # One after another, since (rows, K, D) numbers at once would be much.
        columns = [((x - y[neighbours[:, k]]) ** 2).sum(1) for k in range(neighbours.shape[1])]
        found = np.sort(np.stack(columns, 1), axis=1)
    return float(np.max(np.abs(found - truth.value) / truth.scale))
