"""What the CUDA engine is compared with on its card: pykeops, PyTorch and FAISS, each on arrays that lie there already.

A peer that is not installed, or has no such workload, is left out. All of it also runs on a CPU, for `--dry`.

    python -m benchmarks.gpu_peers NAME   compiles what pykeops needs for a workload, which it keeps on disk
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu_workloads import Row, rows

Peer = Callable[[], Any]  # computes the answer and waits for it

PAIRS_AT_ONCE = 2**28  # of a dense matrix in torch: 1 GiB of float32
MOST_PAIRS = 10**11  # that a dense matrix is asked for, piece by piece


def peer_of(library: str, row: Row, device: str) -> Peer | None:
    """A library on a workload; None where it is not installed or cannot do it. `device` is "cuda" or "cpu"."""
    make = {"pykeops": pykeops_peer, "torch": torch_peer, "faiss": faiss_peer}[library]
    try:
        return make(row, device)
    except ImportError:
        return None


def _tensors(row: Row, device: str) -> tuple[Any, dict[int, Any], Callable[[], None]]:
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    return torch, {n: torch.as_tensor(a, device=device) for n, a in row.arrays.items()}, wait


def pykeops_peer(row: Row, device: str) -> Peer | None:
    if row.formula is None:
        return None
    from pykeops.torch import Genred

    _, arrays, wait = _tensors(row, device)
    dim = arrays[0].shape[-1]
    letters = {0: f"x = Vi({dim})", 1: f"y = Vj({dim})", 2: "b = Vj(1)", 3: "e = Vi(1)"}
    more = {"opt_arg": row.spec.parts[0].k} if row.spec.parts[0].k else {}
    aliases = [letters[n] for n in sorted(arrays)]
    call = Genred(row.formula, aliases, reduction_op=row.spec.reduction, axis=1, **more)

    def run() -> Any:
        value = call(*(arrays[n] for n in sorted(arrays)))
        wait()
        return value

    return run


def torch_peer(row: Row, device: str) -> Peer | None:
    """A dense matrix, as many rows at once as fit."""
    kind = row.name.partition(" ")[0].partition("-")[0]
    if kind not in ("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W10", "W12") or row.pairs > MOST_PAIRS:
        return None
    torch, arrays, wait = _tensors(row, device)
    x, y, b = arrays[0], arrays[1], arrays.get(2)
    chunk = max(1, PAIRS_AT_ONCE // row.n)
    scale = 2.0 / x.shape[-1] if kind == "W4" else 1.0

    def part_of(part: Any) -> Any:
        distance = torch.cdist(part, y)
        if kind == "W3":
            return torch.exp(-distance) @ b
        if kind == "W5":
            return distance.argmin(-1, keepdim=True)
        if kind == "W6":
            return distance.topk(10, largest=False).indices
        if kind == "W7":
            return torch.logsumexp(-(distance**2), -1, keepdim=True)
        return torch.exp(-scale * distance**2) @ b

    def run() -> Any:
        whole = row.pairs // row.n <= chunk
        value = part_of(x) if whole or row.batch else torch.cat([part_of(part) for part in x.split(chunk)])
        wait()
        return value

    return run


def faiss_peer(row: Row, device: str) -> Peer | None:
    """The flat index, which is exact; only where FAISS was built for GPUs, or on the CPU for a dry run."""
    if not row.name.startswith(("W5", "W6")):
        return None
    import faiss

    if device == "cuda" and not hasattr(faiss, "GpuIndexFlatL2"):
        return None
    import faiss.contrib.torch_utils  # lets it take tensors where they lie

    _, arrays, wait = _tensors(row, device)
    x, y, k = arrays[0], arrays[1], max(1, row.spec.parts[0].k)
    dim = x.shape[-1]
    resources = faiss.StandardGpuResources() if device == "cuda" else None
    index = faiss.GpuIndexFlatL2(resources, dim) if resources else faiss.IndexFlatL2(dim)
    index.add(y)

    def run() -> Any:
        _, value = index.search(x, k)
        wait()
        return value

    return run


def differs(value: Any, ours: np.ndarray) -> float:
    """How far the answer of a peer is from ours: relative to the largest value; of indices, the share that differs."""
    theirs = np.asarray(value.cpu() if hasattr(value, "cpu") else value).reshape(ours.shape)
    if ours.dtype == np.int64:
        return float((theirs != ours).mean())
    return float(np.abs(theirs - ours).max() / np.abs(ours).max())


def prepare(name: str) -> None:
    """Have pykeops compile the formula of a workload."""
    (row,) = [row for row in rows(True) if row.name == name]
    if peer := peer_of("pykeops", row, "cuda"):
        peer()


if __name__ == "__main__":
    prepare(sys.argv[1])
