"""JAX as a peer: a map over blocks inside one compiled function, for each thread's share of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.peers_blocks import CORES, FEW_ROWS, Call, factors, finished, right_side
from benchmarks.workloads import K, Points, Workload


def divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most this."""
    return next(c for c in range(min(n, most), 0, -1) if n % c == 0)


def jax_peer(w: Workload, p: Points, *, differences: bool = False, by_grad: bool = False) -> Call:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    def finish(scores: Any, side: Any) -> Any:
        if w.family == "argmin":  # 5 times faster than argmin, which XLA does not vectorise
            least = scores.min(1, keepdims=True)
            return jnp.where(scores == least, jnp.arange(w.n, dtype=jnp.int32), w.n).min(1)
        if w.family == "argkmin":
            return jax.lax.top_k(-scores, K)[1]
        if w.family == "logsumexp":
            return jax.nn.logsumexp(scores, 1, keepdims=True)
        if w.family in ("softmax", "attention"):
            scores = scores - scores.max(1, keepdims=True)
        if w.family == "laplacian":
            scores = -jnp.sqrt(jnp.maximum(scores, 0)) / w.sigma
        return jnp.exp(scores) @ side

    def by_differences(x: Any, y: Any) -> Any:
        squares = sum((x[:, c : c + 1] - y[:, c]) ** 2 for c in range(w.d))
        return squares if w.family == "laplacian" else squares * (-0.5 / w.sigma**2)

    def of_share(x: Any, y: Any, b: Any) -> Any:
        left, right = factors(jnp, w, x, y)
        side = right_side(jnp, w, y, b)
        if w.batch:
            total = jax.lax.map(lambda each: finish(each[0] @ each[1].T, each[2]), (left, right, side))
        elif w.m < FEW_ROWS:
            columns = divisor(len(right), 16_384)
            blocks = tuple(a.reshape(-1, columns, a.shape[1]) for a in (right, side))
            total = jax.lax.map(lambda each: finish(left @ each[0].T, each[1]), blocks).sum(0)
        else:
            rows = x if differences else left
            scores = (
                (lambda block: by_differences(block, y)) if differences else lambda block: block @ right.T
            )
            blocks = rows.reshape(-1, divisor(len(x), 128), rows.shape[1])
            total = jax.lax.map(lambda block: finish(scores(block), side), blocks)
            total = total.reshape(len(x), *total.shape[2:])
        return finished(w, total, x)

    def of_share_by_grad(x: Any, y: Any, b: Any) -> Any:
        def value(x: Any) -> Any:
            return (jnp.exp(by_differences(x, y)) @ b).sum()

        return jax.lax.map(jax.grad(value), x.reshape(-1, divisor(len(x), 128), w.d)).reshape(x.shape)

    compiled = jax.jit(of_share_by_grad if by_grad else of_share)
    pool = ThreadPoolExecutor(CORES)
    shares = [tuple(map(jnp.asarray, share)) for share in _shares(w, p)]

    def call() -> Any:
        parts = list(pool.map(lambda share: np.asarray(compiled(*share)), shares))
        return sum(parts) if not w.batch and w.m < FEW_ROWS else np.concatenate(parts)

    return call


def _shares(w: Workload, p: Points) -> Iterator[Points]:
    """The points of each thread: its rows, or its columns where the rows are few, or its problems of a batch."""
    for k in range(CORES):
        if w.batch:
            yield Points(*(a[k * w.batch // CORES : (k + 1) * w.batch // CORES] for a in p))
        elif w.m < FEW_ROWS:
            mine = slice(k * w.n // CORES, (k + 1) * w.n // CORES)
            yield Points(p.x, p.y[mine], p.b[mine])
        else:
            yield Points(p.x[k * w.m // CORES : (k + 1) * w.m // CORES], p.y, p.b)
