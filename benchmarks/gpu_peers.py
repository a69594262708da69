"""What the CUDA engine is compared with on its card: pykeops, PyTorch and FAISS, each on arrays that lie there already.

A peer that is not installed, or has no such workload, is left out. All of it also runs on a CPU, for `--dry`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda.cases import Case

Peer = Callable[[], Any]  # computes the answer and waits for it

PAIRS_AT_ONCE = 2**28  # of a dense matrix in torch: 1 GiB of float32
FORMULAS = {
    "W1": "Exp(-SqDist(x,y))*b", "W2": "Exp(-SqDist(x,y))*b", "W3": "Exp(-Norm2(x-y))*b",
    "W4-10": "Exp(-SqDist(x,y))*b", "W4-100": "Exp(-SqDist(x,y))*b", "W4-1000": "Exp(-SqDist(x,y))*b",
    "W12": "Exp(-SqDist(x,y))*b", "W10": "Exp(-SqDist(x,y))*b",
    "W5-3": "SqDist(x,y)", "W5-100": "SqDist(x,y)", "W6-3": "SqDist(x,y)", "W6-100": "SqDist(x,y)",
    "W7": "-SqDist(x,y)", "W8": "Grad(Exp(-SqDist(x,y))*b, x, e)",
}  # fmt: skip


def peers(name: str, case: Case, device: str) -> dict[str, Peer]:
    """Those that are installed and can do this workload; `device` is "cuda" or "cpu"."""
    made = {"pykeops": pykeops_peer, "torch": torch_peer, "faiss": faiss_peer}
    found = {}
    for library, make in made.items():
        try:
            peer = make(name, case, device)
        except ImportError:
            continue
        if peer is not None:
            found[library] = peer
    return found


def _tensors(case: Case, device: str) -> tuple[Any, dict[int, Any], Callable[[], None]]:
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    return torch, {n: torch.as_tensor(a, device=device) for n, a in case.arrays().items()}, wait


def pykeops_peer(name: str, case: Case, device: str) -> Peer | None:
    if name not in FORMULAS:
        return None
    from pykeops.torch import Genred

    _, arrays, wait = _tensors(case, device)
    dim = arrays[0].shape[-1]
    letters = {0: f"x = Vi({dim})", 1: f"y = Vj({dim})", 2: "b = Vj(1)", 3: "e = Vi(1)"}
    more = {"opt_arg": 10} if name.startswith("W6") else {}
    aliases = [letters[n] for n in sorted(arrays)]
    call = Genred(FORMULAS[name], aliases, reduction_op=case.spec.reduction, axis=1, **more)

    def run() -> Any:
        value = call(*(arrays[n] for n in sorted(arrays)))
        wait()
        return value

    return run


def torch_peer(name: str, case: Case, device: str) -> Peer | None:
    """A dense matrix, as many rows at once as fit."""
    kind = name.partition("-")[0]
    if kind not in ("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W10", "W12"):
        return None
    torch, arrays, wait = _tensors(case, device)
    x, y, b = arrays[0], arrays[1], arrays.get(2)
    chunk = max(1, PAIRS_AT_ONCE // case.n)

    def rows(part: Any) -> Any:
        distance = torch.cdist(part, y)
        if kind == "W3":
            return torch.exp(-distance) @ b
        if kind == "W5":
            return distance.argmin(-1, keepdim=True)
        if kind == "W6":
            return distance.topk(10, largest=False).indices
        if kind == "W7":
            return torch.logsumexp(-(distance**2), -1, keepdim=True)
        return torch.exp(-(distance**2)) @ b

    def run() -> Any:
        whole = case.m * int(np.prod(case.batch or (1,))) <= chunk
        value = rows(x) if whole or case.batch else torch.cat([rows(part) for part in x.split(chunk)])
        wait()
        return value

    return run


def faiss_peer(name: str, case: Case, device: str) -> Peer | None:
    """The flat index, which is exact; only where FAISS was built for GPUs, or on the CPU for a dry run."""
    if not name.startswith(("W5", "W6")):
        return None
    import faiss

    if device == "cuda" and not hasattr(faiss, "GpuIndexFlatL2"):
        return None
    import faiss.contrib.torch_utils  # lets it take tensors where they lie

    _, arrays, wait = _tensors(case, device)
    x, y, k = arrays[0], arrays[1], 10 if name.startswith("W6") else 1
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
