"""Solvers on a real server: a whole iteration is one message, and one that gives up brings what it had reached."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import farsum
from farsum.numpy import KernelSolve, LazyTensor, Vi, Vj
from farsum_kernels.errors import DeadlineExceeded, SolverDidNotConverge
from tests.service.server import Server, running
from tests.service.test_faults import until

rng = np.random.default_rng(0)
x, b = rng.random((400, 3)), rng.standard_normal((400, 2))
K = np.exp(-4 * ((x[:, None] - x) ** 2).sum(-1))


@pytest.fixture
def there(server: Server) -> Iterator[Any]:
    """The server as what work goes to."""
    farsum.connect(server.target)
    yield server
    farsum.disconnect()


def kernel() -> LazyTensor:
    return (-4 * Vi(x).sqdist(Vj(x))).exp()


def test_a_solve_is_one_message_and_the_numbers_of_the_engine_here(
    there: Server, messages: list[bytes]
) -> None:
    solve = KernelSolve("Exp(-SqDist(x,y)*IntCst(4))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)"], "b", axis=1)
    found = [solve(x, x, b, alpha=0.01, eps=1e-9), kernel().solve(b, alpha=0.01, method="minres", eps=1e-9)]
    messages.clear()
    again = solve(x, x, b, alpha=0.01, eps=1e-9)
    assert len(messages) == 1 and len(messages[0]) < 2048
    assert_array_equal(again, found[0])
    farsum.disconnect()
    assert_array_equal(again, solve(x, x, b, alpha=0.01, eps=1e-9))
    for each in found:
        assert_allclose(each, np.linalg.solve(K + 0.01 * np.eye(400), b), atol=1e-5)


def test_eigenvalues_are_one_message(there: Server, messages: list[bytes]) -> None:
    kernel().eigsh(4)
    messages.clear()
    values, vectors = kernel().eigsh(4)
    assert len(messages) == 1
    assert_allclose(values, np.linalg.eigvalsh(K)[-4:], rtol=1e-9)
    assert_allclose(K @ vectors, vectors * values, atol=1e-8)


@pytest.mark.parametrize("n", [400, 9000])
def test_what_does_not_converge_brings_the_iterate_and_the_residuals(there: Server, n: int) -> None:
    points, rhs = rng.random((n, 3)), rng.standard_normal((n, 1))
    near = (-0.01 * Vi(points).sqdist(Vj(points))).exp()
    with pytest.raises(SolverDidNotConverge, match="10 iterations are over") as raised:
        near.solve(rhs, alpha=1e-9, eps=1e-10, max_iterations=10)
    assert raised.value.iterate.shape == (n, 1) and np.isfinite(raised.value.iterate).all()
    assert len(raised.value.residuals) == 11 and np.isfinite(raised.value.residuals).all()


def test_numbers_that_are_not_finite(there: Server) -> None:
    bad = b.copy()
    bad[3, 1] = np.nan
    with pytest.raises(
        SolverDidNotConverge, match="right-hand side holds numbers that are not finite"
    ) as raised:
        kernel().solve(bad, alpha=0.1)
    assert_array_equal(raised.value.iterate, np.zeros_like(b))
    assert len(raised.value.residuals) == 1


def test_servers_killed_in_the_middle_of_solvers() -> None:
    """The client asks the server that takes its place, which begins anew."""
    points, rhs = rng.random((4000, 3)), rng.standard_normal((4000, 1))
    near = (-4 * Vi(points).sqdist(Vj(points))).exp()
    with ExitStack() as opened, ThreadPoolExecutor(1) as pool:
        servers = [opened.enter_context(running())]
        opened.enter_context(farsum.connect(servers[0].target, away_s=60.0))

        def kill() -> None:
            server = servers[-1]
            until(lambda: server.metric("farsum_inflight_requests") == 1, "the solver never came")
            time.sleep(0.2)
            assert server.metric("farsum_inflight_requests") == 1, "the solver was done too soon"
            server.process.kill()
            server.process.wait()
            servers.append(opened.enter_context(running("--port", server.address.rpartition(":")[2])))

        near @ rhs  # compiles, so that what is killed iterates
        killed = pool.submit(kill)
        found = near.solve(rhs, alpha=0.1, method="minres", eps=1e-5)
        killed.result()
        near @ rhs
        killed = pool.submit(kill)
        values, vectors = near.eigsh(20, tol=1e-9)
        killed.result()
        assert len(servers) == 3
        assert_allclose(near @ found + 0.1 * found, rhs, atol=1e-2)
        assert_allclose(near @ vectors, vectors * values, atol=1e-6 * values[-1])
    farsum.disconnect()


def test_a_deadline_ends_the_iteration_on_the_server(there: Server) -> None:
    points, rhs = rng.random((20_000, 3)), rng.standard_normal((20_000, 1))
    near = (-0.01 * Vi(points).sqdist(Vj(points))).exp()
    with pytest.raises(DeadlineExceeded):
        near.solve(rhs, alpha=1e-12, eps=1e-13, deadline_s=1.0)
    until(lambda: there.metric("farsum_inflight_requests") == 0, "the solver still runs")
