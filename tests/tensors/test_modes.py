"""Reductions under the modes of torch: no gradients, inference, autocast, compile, checkpoints, other processes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from farsum.torch import Genred, Vi, Vj

mark = pytest.mark
close = torch.testing.assert_close
generator = torch.Generator().manual_seed(0)
x, y, b = (torch.rand(n, d, generator=generator, dtype=torch.float64) for n, d in ((5, 3), (7, 3), (7, 2)))


def ours(x: Any, y: Any, b: Any) -> Any:
    return ((-Vi(x).sqdist(Vj(y))).exp() * Vj(b)).sum(axis=1)


def dense(x: Any, y: Any, b: Any) -> Any:
    return torch.exp(-(x[:, None] - y).square().sum(-1)) @ b


@mark.parity("G-74")
def test_without_gradients() -> None:
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        assert not ours(leaf, y, b).requires_grad
    with torch.inference_mode():
        found = ours(leaf, y, b)
        assert found.is_inference()
        made = x.clone()
    close(found.clone(), dense(x, y, b))
    close(ours(made, y, b), dense(x, y, b))


def test_under_autocast_dtypes_promote() -> None:
    layer = torch.nn.Linear(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = layer(x.float())
        found = ours(rows, y.float(), b.float())
    assert (rows.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    found.sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_a_checkpoint_computes_it_again() -> None:
    from torch.utils.checkpoint import checkpoint

    leaf = x.clone().requires_grad_()
    checkpoint(ours, leaf, y, b, use_reentrant=False).sum().backward()
    again = x.clone().requires_grad_()
    dense(again, y, b).sum().backward()
    close(leaf.grad, again.grad)


def fresh(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


SETUP = """
import torch
from farsum.torch import Genred, Vi, Vj
torch.manual_seed(0)
x, y, b = torch.rand(5, 3), torch.rand(7, 3), torch.rand(7, 2)
def ours(x, y, b): return ((-Vi(x).sqdist(Vj(y))).exp() * Vj(b)).sum(axis=1)
def dense(x, y, b): return torch.exp(-(x[:, None] - y).square().sum(-1)) @ b
by_name = Genred("Exp(-SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)"], axis=1)
"""


def test_a_compiled_function_breaks_its_graph_around_them() -> None:
    said = fresh(
        SETUP
        + """
for reduce in (ours, by_name):
    x = x.detach().requires_grad_()
    def loss(x): return (reduce(x.sin(), y, b).cos() ** 2).sum()
    found = torch.compile(loss, backend="aot_eager")(x)
    found.backward()
    want = (dense(x.sin(), y, b).cos() ** 2).sum()
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(x.grad, torch.autograd.grad(want, x)[0])
"""
    )
    assert "farsum" not in said, "the compiler traced our code"


def test_workers_of_a_loader_and_processes_that_fork() -> None:
    fresh(
        SETUP
        + """
import os
from torch.utils.data import DataLoader, Dataset
ours(x, y, b)  # the engine is up before the processes fork
class Rows(Dataset):
    def __len__(self): return 6
    def __getitem__(self, i): return ours(x * i, y, b)
found = torch.cat(list(DataLoader(Rows(), batch_size=2, num_workers=2)))
torch.testing.assert_close(found, torch.stack([dense(x * i, y, b) for i in range(6)]))
"""
    )


def test_processes_that_train_together() -> None:
    fresh(
        SETUP
        + """
import torch.distributed as dist, torch.multiprocessing as mp, tempfile
def train(rank, file):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    layer = torch.nn.Linear(3, 3)
    with torch.no_grad(): layer.weight.fill_(0.1); layer.bias.fill_(0.0)
    model = torch.nn.parallel.DistributedDataParallel(layer)
    rows = x * (rank + 1)
    ours(model(rows), y, b).sum().backward()
    want = sum(torch.autograd.grad(dense(torch.nn.functional.linear(x * k, w, layer.bias), y, b).sum(), w)[0]
               for k in (1, 2) for w in [layer.weight]) / 2
    torch.testing.assert_close(layer.weight.grad, want)
    dist.destroy_process_group()
mp.start_processes(train, args=(tempfile.mktemp(),), nprocs=2, start_method="fork")
"""
    )


def test_threads_share_a_reduction() -> None:
    from concurrent.futures import ThreadPoolExecutor

    red = Genred("Exp(-SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)"], axis=1)

    def gradient(k: int) -> torch.Tensor:
        leaf = (x * k).requires_grad_()
        return torch.autograd.grad(red(leaf, y, b).sum(), leaf)[0]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(gradient, range(1, 17)))
    for k, have in enumerate(found, 1):
        leaf = (x * k).requires_grad_()
        close(have, torch.autograd.grad(dense(leaf, y, b).sum(), leaf)[0])
