"""`backend="GPU"` and `device_id`: a call goes to that device of this process. The devices are emulated, all else is real."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from farsum import target
from farsum.numpy import Genred, KernelSolve, Vi, Vj
from farsum.torch import Vi as TorchVi
from farsum.torch import Vj as TorchVj
from farsum_kernels import compile as compiling
from farsum_kernels.backends.cuda.backend import CudaBackend
from farsum_kernels.errors import DeviceMissing
from tests.cuda.driver import EmulatedDriver
from tests.service.server import Server, running

pytestmark = pytest.mark.emulated

rng = np.random.default_rng(0)
x, y, b = (rng.random((n, d)).astype(np.float32) for n, d in ((40, 3), (50, 3), (50, 1)))
GAUSS, ALIASES = "Exp(-SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)"]
E = np.exp(-((x[:, None].astype(np.float64) - y) ** 2).sum(-1))


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, EmulatedDriver]]:
    """Two GPUs, by name."""
    made = {"cuda:0": EmulatedDriver(), "cuda:1": EmulatedDriver()}
    known = compiling.backend_for

    def backend(device: str, threads: int | None = None) -> compiling.Backend:
        if not device.startswith("cuda"):
            return known(device, threads)
        if device not in made:
            raise DeviceMissing(f"{device} does not exist: this machine has 2 GPUs")
        return CudaBackend(int(device[5:]), made[device])

    monkeypatch.setattr("farsum_server.worker.backend_for", backend)
    monkeypatch.setattr(target, "_embedded", {})
    yield made


def used(devices: dict[str, EmulatedDriver]) -> list[str]:
    """The devices that have computed since this was asked last."""
    found = [name for name, driver in devices.items() if driver.launches]
    for driver in devices.values():
        driver.launches.clear()
    return found


@pytest.mark.parity("L-171", "L-172", "G-90", "G-91", "G-92")
def test_the_word_and_the_number_choose_the_device(devices: dict[str, EmulatedDriver]) -> None:
    f = Genred(GAUSS, ALIASES, axis=1)
    for word in ("GPU", "GPU_1D", "GPU_2D", "GPU_1D_host", "GPU_2D_device"):
        assert_allclose(f(x, y, b, backend=word), E @ b, rtol=1e-5)
        assert used(devices) == ["cuda:0"]
    f(x, y, b, backend="GPU", device_id=1)
    assert used(devices) == ["cuda:1"]
    asked: list[dict[str, Any]] = [
        {},
        {"backend": "auto", "device_id": 1},
        {"backend": "CPU", "device_id": 1},
    ]
    for own in asked:
        f(x, y, b, **own)
        assert used(devices) == []
    with pytest.raises(
        DeviceMissing, match="backend='GPU' needs a CUDA engine: cuda:7 does not exist"
    ) as caught:
        f(x, y, b, backend="GPU", device_id=7)
    assert isinstance(caught.value, KeyError)


@pytest.mark.parity("L-50", "L-171")
def test_lazy_tensors_solvers_and_futures(devices: dict[str, EmulatedDriver]) -> None:
    K = (-Vi(x).sqdist(Vj(y))).exp()
    made = K.sum(axis=1, backend="GPU", call=False)
    assert used(devices) == []
    assert_allclose(made(), E.sum(1)[:, None], rtol=1e-5)
    assert used(devices) == ["cuda:0"]
    assert_allclose(made.submit().result(), E.sum(1)[:, None], rtol=1e-5)
    assert used(devices) == ["cuda:0"]
    K.backend = "GPU"
    (2 * K).sum(axis=0, device_id=1)
    assert used(devices) == ["cuda:1"]
    assert "emulated" in K.sum(axis=1, call=False).explain().where
    solve = KernelSolve(GAUSS, ALIASES, "b", axis=1)
    v = b[:40]
    assert_allclose(
        solve(x, x, v, alpha=0.5, backend="CPU"), solve(x, x, v, alpha=0.5, backend="GPU"), rtol=1e-3
    )
    assert used(devices) == ["cuda:0"]


def test_the_backward_pass_runs_where_the_forward_pass_did(devices: dict[str, EmulatedDriver]) -> None:
    xt, yt = torch.tensor(x, requires_grad=True), torch.tensor(y)
    total = (-TorchVi(xt).sqdist(TorchVj(yt))).exp().sum(axis=1, backend="GPU", device_id=1).sum()
    assert used(devices) == ["cuda:1"]
    total.backward()
    assert used(devices) == ["cuda:1"]
    want = (-2 * (x[:, None].astype(np.float64) - y) * E[..., None]).sum(1)
    assert xt.grad is not None
    assert_allclose(xt.grad.numpy(), want, rtol=1e-4, atol=1e-5)


def test_in_a_process_that_computes_on_a_gpu(
    devices: dict[str, EmulatedDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARSUM_DEVICE", "cuda:0")
    f = Genred(GAUSS, ALIASES, axis=1)
    asked: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["cuda:0"]),
        ({"device_id": 1}, ["cuda:1"]),
        ({"backend": "CPU"}, []),
    ]
    for own, where in asked:
        f(x, y, b, **own)
        assert used(devices) == where


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as shared:
        yield shared


@pytest.mark.parity("X-81", "E-28")
def test_a_server_without_a_gpu(server: Server) -> None:
    f = Genred(GAUSS, ALIASES, axis=1)
    target.connect(server.target)
    try:
        with pytest.raises(
            DeviceMissing, match="computes on cpu: use 'auto' or 'CPU', or start it with"
        ) as caught:
            f(x, y, b, backend="GPU")
        assert isinstance(caught.value, KeyError)
        assert_allclose(f(x, y, b, backend="CPU"), E @ b, rtol=1e-5)
    finally:
        target.disconnect()
