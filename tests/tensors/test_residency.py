"""Tensors on a real server: what is sent and hashed once, and what is looked at again at every call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import farsum
import farsum.call
from farsum.torch import Vi, Vj
from tests.service.server import Server, running

N = 3000  # rows of three float32: too many to go with a message untold


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        farsum.connect(started.target)
        yield started
        farsum.disconnect()


@pytest.fixture
def hashed(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The addresses of the arrays that are hashed, as it happens."""
    seen: list[int] = []
    real = farsum.call.digest_of

    def counted(array: object) -> bytes:
        seen.append(array.__array_interface__["data"][0])  # type: ignore[attr-defined]
        return real(array)  # type: ignore[arg-type]

    monkeypatch.setattr(farsum.call, "digest_of", counted)
    return seen


def points(seed: int) -> torch.Tensor:
    return torch.rand(N, 3, generator=torch.Generator().manual_seed(seed))


def value(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (-Vi(x).sqdist(Vj(y))).exp().sum(axis=1)


def dense(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.exp(-(x[:, None] - y).square().sum(-1)).sum(1, keepdim=True)


def test_values_and_gradients_are_those_of_this_process(server: Server) -> None:
    x, y = points(0).requires_grad_(), points(1).requires_grad_()
    value(x, y).sum().backward()
    found = x.grad, y.grad
    wanted = torch.autograd.grad(dense(x, y).sum(), (x, y))
    for have, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-2)


def test_forward_and_its_own_backward_hash_a_tensor_once(hashed: list[int]) -> None:
    x, y = points(2).requires_grad_(), points(3)
    value(x, y).sum().backward()
    assert [hashed.count(a.data_ptr()) for a in (x, y)] == [1, 1]
    value(x, y).sum().backward()  # another forward: nothing says that they are what they were
    assert [hashed.count(a.data_ptr()) for a in (x, y)] == [2, 2]


def test_a_second_derivative_hashes_no_tensor_again(hashed: list[int]) -> None:
    x, y = points(4).requires_grad_(), points(5)
    (first,) = torch.autograd.grad(value(x, y).sum(), x, create_graph=True)
    first.square().sum().backward()
    assert [hashed.count(a.data_ptr()) for a in (x, y)] == [1, 1]


def test_a_step_sends_the_bytes_of_what_changed(server: Server) -> None:
    x, y = points(6).requires_grad_(), points(7)
    value(x, y).sum().backward()
    before = received(server)
    with torch.no_grad():
        x += 1e-3
    value(x, y).sum().backward()
    # x, which changed, and the cotangent of the sum, which did not: of y, nothing.
    assert 0 < received(server) - before < 1.1 * x.nbytes


def received(server: Server) -> float:
    return server.metric("farsum_ingest_bytes_total")  # all of it with the messages: no array here is large


@pytest.mark.parametrize("how", ["data", "numpy", "inference"])
def test_writes_that_leave_no_trace_are_seen(server: Server, how: str) -> None:
    with torch.inference_mode(how == "inference"):
        x, y = points(8), points(9)
    with torch.inference_mode(how == "inference"):
        first = value(x, y)
        if how == "data":
            x.data.add_(1)
        elif how == "numpy":
            x.numpy()[...] += 1
        else:
            x.add_(1)
        again = value(x, y)
    torch.testing.assert_close(again, dense(x, y), rtol=1e-4, atol=1e-2)
    assert not torch.allclose(first, again)


def test_a_write_through_data_before_backward_is_of_no_harm(server: Server) -> None:
    """Autograd cannot see it; the gradient is that of the values that the forward pass saw."""
    x, y = points(10).requires_grad_(), points(11)
    (want,) = torch.autograd.grad(dense(x, y).sum(), x)
    found = value(x, y)
    x.data.add_(1)
    (have,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-2)
