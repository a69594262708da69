"""Peers that multiply matrices: NumPy and PyTorch, one operation after another on blocks that fit the caches.

The scores of blocks of rows are one matrix product, for any library with the array functions of NumPy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.workloads import Array, K, Points, Workload

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
FEW_ROWS = 256  # below so many, the blocks are of columns
Call = Callable[[], Any]

# ── the scores of a family, for any library with the array functions of NumPy ────────────────────────


def factors(xp: Any, w: Workload, x: Any, y: Any) -> tuple[Any, Any]:
    """Two matrices whose product is the scores of all pairs: exponents, or distances to be compared."""
    if w.family == "attention":
        return x / float(w.d) ** 0.5, y
    xx, yy = (x * x).sum(-1, keepdims=True), (y * y).sum(-1, keepdims=True)
    one_x, one_y = xp.ones_like(xx), xp.ones_like(yy)
    if w.family in ("argmin", "argkmin"):
        parts = [x * -2, one_x], [y, yy]
    elif w.family == "laplacian":
        parts = [x * -2, xx, one_x], [y, one_y, yy]
    else:
        s = 1 / w.sigma**2
        parts = [x * s, xx * (-s / 2), one_x], [y, one_y, yy * (-s / 2)]
    left, right = (xp.concatenate(part, axis=-1) for part in parts)
    return left, right


def right_side(xp: Any, w: Workload, y: Any, b: Any) -> Any:
    """What the weights of the pairs are multiplied with."""
    if w.family == "gradient":
        return xp.concatenate([b * y, b], axis=-1)
    if w.family in ("softmax", "attention"):
        return xp.concatenate([b, xp.ones_like(b[..., :1])], axis=-1)
    return b


def finished(w: Workload, total: Any, x: Any) -> Any:
    """The answer from the products with the right side."""
    if w.family == "gradient":
        return (total[..., : w.d] - x * total[..., w.d :]) / w.sigma**2
    if w.family in ("softmax", "attention"):
        return total[..., : w.e] / total[..., w.e :]
    return total


# ── NumPy and PyTorch: one operation after another, on blocks that fit the cache ────────────────────


def shared(starts: Sequence[int], block: Callable[[int], Any], pool: ThreadPoolExecutor) -> list[Any]:
    """The blocks in order, each thread taking one run of them."""
    share = -(-len(starts) // CORES)
    runs = [starts[k * share : (k + 1) * share] for k in range(CORES)]
    return [part for run in pool.map(lambda run: [block(s) for s in run], runs) for part in run]


def eager(xp: Any, w: Workload, p: Iterable[Any], finish: Callable[..., Any], rows: int) -> Call:
    """`finish` turns a block of scores and the right side into the answer's part, or into its factors."""
    pool = ThreadPoolExecutor(CORES)
    x, y, b = p

    def call() -> Any:
        left, right = factors(xp, w, x, y)
        side = right_side(xp, w, y, b)
        if w.batch:
            one = lambda k: finish(left[k] @ right[k].T, side[k])
            total = xp.stack(shared(range(w.batch), one, pool))
        elif w.m < FEW_ROWS:
            columns = rows * 10_240 // w.m
            one = lambda j: finish(left @ right[j : j + columns].T, side[j : j + columns])
            total = sum(shared(range(0, w.n, columns), one, pool))
        else:
            across = right.T
            one = lambda i: finish(left[i : i + rows] @ across, side)
            total = xp.concatenate(shared(range(0, w.m, rows), one, pool))
        return finished(w, total, x)

    return call


def rows_at_once(w: Workload) -> int:
    """Rows of a block: few numbers per row fit the cache; long dot products want the rows."""
    return 16 if w.d < 32 and w.e < 16 else 64


def numpy_peer(w: Workload, p: Points) -> Call:
    def weights(scores: Array) -> Array:
        if w.family == "laplacian":
            np.maximum(scores, 0, out=scores)
            np.sqrt(scores, out=scores)
            scores *= -1 / w.sigma
        if w.family in ("softmax", "attention"):
            scores -= scores.max(1, keepdims=True)
        return np.exp(scores, out=scores)

    def finish(scores: Array, side: Array) -> Array:
        if w.family == "argmin":
            return scores.argmin(1)
        if w.family == "argkmin":
            return least(scores)
        if w.family == "logsumexp":
            top = scores.max(1, keepdims=True)
            scores -= top
            return top + np.log(np.exp(scores, out=scores).sum(1, keepdims=True))
        return weights(scores) @ side

    return eager(np, w, p, finish, rows_at_once(w))


def least(scores: Array, group: int = 64) -> Array:
    """Columns of the K least of each row, the least first: 3 times faster than argpartition for D=3.

    The K-th least of the minima of groups of columns bounds the K-th least of all; few columns are below it.
    """
    rows, n = scores.shape
    whole = n // group * group
    if whole < K * group:
        return np.argsort(scores, axis=1)[:, :K]
    minima = scores[:, :whole].reshape(rows, group, -1).min(1)
    bound = np.partition(minima, K - 1, axis=1)[:, K - 1 : K]
    places = np.flatnonzero(scores <= bound)
    row, column = np.divmod(places, n)
    order = np.lexsort((scores.ravel()[places], row))
    starts = np.searchsorted(row, np.arange(rows))  # rows come in order, so sorting keeps their places
    return column[order][starts[:, None] + np.arange(K)]


def torch_peer(w: Workload, p: Points) -> Call:
    import torch

    torch.set_num_threads(1)

    def finish(scores: Any, side: Any) -> Any:
        if w.family == "argmin":
            return scores.argmin(1)
        if w.family == "argkmin":
            return scores.topk(K, dim=1, largest=False).indices
        if w.family == "logsumexp":
            return scores.logsumexp(1, keepdim=True)
        if w.family in ("softmax", "attention"):
            return scores.softmax(1) @ side
        if w.family == "laplacian":
            scores = scores.clamp_min_(0).sqrt_().mul_(-1 / w.sigma)
        return scores.exp_() @ side

    return eager(torch, w, map(torch.from_numpy, p), finish, rows_at_once(w))


def torch_autograd(w: Workload, p: Points) -> Call:
    import torch

    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(CORES)
    x, y, b = map(torch.from_numpy, p)

    def block(i: int) -> Any:
        mine = x[i : i + 16].requires_grad_()
        left, right = factors(torch, w, mine, y)
        total = ((left @ right.T).exp() @ b).sum()
        return torch.autograd.grad(total, mine)[0]

    return lambda: torch.cat(shared(range(0, w.m, 16), block, pool))


def torch_attention(w: Workload, p: Points) -> Call:
    """scaled_dot_product_attention; of Gaussian weights with the squares as further coordinates."""
    import torch
    from torch.nn.functional import pad, scaled_dot_product_attention

    torch.set_num_threads(CORES)
    x, y, b = map(torch.from_numpy, p)

    def call() -> Any:
        queries, keys = factors(torch, w, x, y)
        values = pad(b, (0, keys.shape[1] - b.shape[1]))  # of equal widths, as its fused kernel wants them
        found = scaled_dot_product_attention(
            queries[None, None], keys[None, None], values[None, None], scale=1.0
        )
        return found[0, 0, :, : w.e]

    return call


def torch_compiled(w: Workload, p: Points) -> Call:
    """The formula as one writes it, fused by inductor: no array of all pairs is made. Needs a C++ compiler."""
    import torch

    torch.set_num_threads(CORES)
    x, y, b = map(torch.from_numpy, p)

    def formula(x: Any, y: Any, b: Any) -> Any:
        distance = ((x[:, None] - y[None]) ** 2).sum(-1)
        if w.family == "laplacian":
            return ((-distance.sqrt() / w.sigma).exp() * b[:, 0]).sum(1, keepdim=True)
        return ((-distance / (2 * w.sigma**2)).exp() * b[:, 0]).sum(1, keepdim=True)

    compiled = torch.compile(formula, dynamic=False)
    return lambda: compiled(x, y, b)
