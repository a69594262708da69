"""The libraries that farsum is measured against, each as its own best user would write it.

What all share: scores of blocks of rows as one matrix product, |x - y|² by expansion with the squares as
further columns, then what the library does fastest; two Python threads over the rows with one thread in the
library beat the library's own threads for blocks that fit the caches (NumPy, PyTorch and JAX were measured both
ways). Expansion is less exact than differences away from the origin; the clouds of the workloads are at it.
scikit-learn and faiss are called as they are, brute force. numba is the loop as one writes it, with fastmath
and parallel, not a kernel with an exponential of one's own.

A peer is a library, a family of workloads and a maker: given a workload and its points it makes what is
timed. Conversions between array types are set-up, not timed. Each library runs in one process of its own that
imports nothing but it.
"""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measure import Times, timed
from benchmarks.workloads import Array, K, Points, Workload, lines, points, rows_of

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


# ── JAX: a map over blocks inside one compiled function, for each thread's share of the rows ─────────


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


# ── the others ──────────────────────────────────────────────────────────────────────────────────────


def pykeops_peer(w: Workload, p: Points) -> Call:
    import pykeops.numpy

    return lambda: lines(pykeops.numpy, w, p)


def pykeops_loops(w: Workload, p: Points) -> Call:
    import pykeops.numpy

    from benchmarks.loops import alone

    return lambda: alone(pykeops.numpy, w, p)


def sklearn_peer(w: Workload, p: Points) -> Call:
    from sklearn.metrics import pairwise_distances_argmin
    from sklearn.neighbors import NearestNeighbors

    if w.family == "argmin":
        return lambda: pairwise_distances_argmin(p.x, p.y)
    fitted = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(p.y)
    return lambda: fitted.kneighbors(p.x, return_distance=False)


def faiss_peer(w: Workload, p: Points) -> Call:
    import faiss

    faiss.omp_set_num_threads(CORES)
    # Its blocks, with the fused kernel for k = 1: 40 times faster for D=3 than the loop 1.15 takes by default.
    faiss.cvar.distance_compute_blas_threshold = 20
    index = faiss.IndexFlatL2(w.d)
    index.add(p.y)
    return lambda: index.search(p.x, 1 if w.family == "argmin" else K)[1]


def numba_peer(w: Workload, p: Points) -> Call:
    import numba

    number, d = p.x.dtype.type, w.d
    factor, root = (
        number(-1 / w.sigma if w.family == "laplacian" else -0.5 / w.sigma**2),
        w.family == "laplacian",
    )

    @numba.njit(parallel=True, fastmath=True)
    def sums(x: Array, y: Array, b: Array) -> Array:
        out = np.empty((len(x), 1), x.dtype)
        for i in numba.prange(len(x)):
            total = number(0)
            for j in range(len(y)):
                s = number(0)
                for c in range(d):
                    t = x[i, c] - y[j, c]
                    s += t * t
                if root:
                    s = np.sqrt(s)
                total += np.exp(factor * s) * b[j, 0]
            out[i, 0] = total
        return out

    @numba.njit(parallel=True, fastmath=True)
    def nearest(x: Array, y: Array, b: Array) -> Array:
        out = np.empty(len(x), np.int64)
        for i in numba.prange(len(x)):
            least, place = number(np.inf), 0
            for j in range(len(y)):
                s = number(0)
                for c in range(d):
                    t = x[i, c] - y[j, c]
                    s += t * t
                if s < least:
                    least, place = s, j
            out[i] = place
        return out

    function = nearest if w.family == "argmin" else sums
    return lambda: function(*p)


# ── the table ───────────────────────────────────────────────────────────────────────────────────────

ALL = ("gaussian", "laplacian", "argmin", "argkmin", "logsumexp", "gradient", "softmax", "attention")


@dataclass(frozen=True)
class Library:
    """A process of its own: the package that must be there, what its environment must say."""

    package: str
    environment: Mapping[str, str] = field(default_factory=dict)


class Peer(NamedTuple):
    name: str
    library: str
    families: tuple[str, ...]
    make: Callable[[Workload, Points], Call]
    fits: Callable[[Workload], bool] = lambda w: True


LIBRARIES: Mapping[str, Library] = {
    # Both settings are read when pykeops is imported; empty flags are what it installs with.
    "pykeops": Library("pykeops", {"CXXFLAGS": "", "PYKEOPS_VERBOSE": "0"}),
    "pykeops, native": Library("pykeops", {"CXXFLAGS": "-march=native -ffast-math", "PYKEOPS_VERBOSE": "0"}),
    "numpy": Library("numpy", {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}),
    "torch": Library("torch"),
    "torch, its threads": Library("torch"),
    "jax": Library("jax", {"JAX_PLATFORMS": "cpu"}),
    "scikit-learn": Library("sklearn"),
    "faiss": Library("faiss"),
    "numba": Library("numba"),
}
FUSED = ("gaussian", "laplacian")


def is_plain(w: Workload) -> bool:
    """One problem of few dimensions: where a fused loop over differences can be the fastest."""
    return w.d <= 10 and w.e <= 3 and not w.batch and w.m >= FEW_ROWS


PEERS = (
    Peer("pykeops", "pykeops", ALL, pykeops_peer),
    Peer("pykeops, native", "pykeops, native", ALL, pykeops_peer),
    Peer("pykeops loops", "pykeops", ("sinkhorn", "conjugate"), pykeops_loops),
    Peer("numpy", "numpy", ALL, numpy_peer),
    Peer("torch", "torch", ALL, torch_peer),
    Peer("torch autograd", "torch", ("gradient",), torch_autograd),
    Peer("torch SDPA", "torch, its threads", ("softmax", "attention"), torch_attention),
    Peer("torch.compile", "torch, its threads", FUSED, torch_compiled, is_plain),
    Peer("jax", "jax", ALL, jax_peer),
    Peer(
        "jax, differences", "jax", (*FUSED, "logsumexp", "softmax"),
        functools.partial(jax_peer, differences=True), is_plain,
    ),
    Peer("jax.grad", "jax", ("gradient",), functools.partial(jax_peer, by_grad=True)),
    Peer("scikit-learn", "scikit-learn", ("argmin", "argkmin"), sklearn_peer),
    Peer("faiss", "faiss", ("argmin", "argkmin"), faiss_peer),
    Peer(
        "numba", "numba", (*FUSED, "argmin"), numba_peer,
        lambda w: w.d <= 100 and not w.batch and w.e == 1 and w.m >= FEW_ROWS,
    ),
)  # fmt: skip


def peers_of(w: Workload) -> list[Peer]:
    return [peer for peer in PEERS if w.family in peer.families and peer.fits(w)]


def is_there(library: str) -> bool:
    return importlib.util.find_spec(LIBRARIES[library].package) is not None


# ── a process per library ───────────────────────────────────────────────────────────────────────────


class Made(NamedTuple):
    """What a peer did when it was made ready: seconds of its first call, and rows of its answer."""

    first_s: float
    rows: Array


class Failed(Exception):
    """A peer that is installed and does not do the workload here. The message says why."""


class Child:
    """A library in a process of its own, with an empty cache of compiled code."""

    def __init__(self, library: str) -> None:
        self._cache = tempfile.TemporaryDirectory()
        folder = self._cache.name
        caches = {
            name: folder for name in ("KEOPS_CACHE_FOLDER", "TORCHINDUCTOR_CACHE_DIR", "NUMBA_CACHE_DIR")
        }
        # Threads that spin while they wait would be billed as CPU time, and disturb whoever is next.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **caches, **LIBRARIES[library].environment}
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs,), daemon=False
        )
        with _environment(environment):
            self._process.start()
        theirs.close()

    def make(self, name: str, w: Workload) -> Made:
        made: Made = self._ask("make", name, w)
        return made

    def call(self, name: str) -> Times:
        times: Times = self._ask("call", name, None)
        return times

    def forget(self) -> None:
        self._ask("forget", "", None)

    def _ask(self, *request: Any) -> Any:
        try:
            self._pipe.send(request)
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise Failed("its process ended") from None
        if isinstance(answer, str):
            raise Failed(answer)
        return answer

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()
        self._cache.cleanup()


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """For what a child must find already when its interpreter starts."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(pipe: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what compilers say is no part of the table
    makers = {peer.name: peer.make for peer in PEERS}
    calls: dict[str, Call] = {}
    while True:
        try:
            what, name, w = pipe.recv()
        except EOFError:
            return
        answer: Any
        try:
            if what == "make":
                calls[name] = makers[name](w, points(w))
                first_s, _ = timed(calls[name])
                answer = Made(first_s, rows_of(w, calls[name]()))
            elif what == "call":
                answer = timed(calls[name])
            else:
                calls.clear()
                answer = None
        except Exception as error:
            answer = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        pipe.send(answer)
