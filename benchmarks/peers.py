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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from benchmarks.peers_blocks import (
    CORES,
    FEW_ROWS,
    Call,
    numpy_peer,
    torch_attention,
    torch_autograd,
    torch_compiled,
    torch_peer,
)
from benchmarks.peers_jax import jax_peer
from benchmarks.workloads import Array, K, Points, Workload, lines

# ── libraries that are called as they are, and numba ────────────────────────────────────────────────


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
