"""Arrays of JAX on a real server: the numbers of this process, arrays sent once, a server that goes away."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import farsum
from farsum.jax import Vi, Vj
from farsum_kernels.errors import ServerUnreachable
from tests.jax.pairs import close
from tests.service.server import running

N = 3000  # rows of three float32: too many to go with a message untold


def points(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).random((N, 3), np.float32))


def value(x: Any, y: Any) -> Any:
    return (-Vi(x).sqdist(Vj(y))).exp().sum(axis=1)


def test_a_server_gives_the_numbers_of_this_process() -> None:
    x, y = points(0), points(1)

    def found() -> Any:
        return value(x, y), descent(x), Vi(x).sqdist(Vj(y)).argmin(axis=1)

    @jax.jit
    def descent(x: Any) -> Any:
        loss = jax.grad(lambda x: value(x, y).sum())
        return jax.lax.scan(lambda x, _: (x - 1e-4 * loss(x), None), x, length=3)[0]

    here = found()
    with running() as server:
        farsum.connect(server.target, away_s=0.1)
        close(found(), here, 1e-5)
        held = server.metric("farsum_store_used_bytes")
        assert held > 0
        again = jax.jit(value)
        close(again(x, y), here[0], 1e-5)
        assert server.metric("farsum_store_used_bytes") == held  # the same numbers are sent once
        server.process.terminate()
        server.process.wait(30)
        with pytest.raises(ServerUnreachable):
            value(x, y)
        # A function that was called before raises JAX's error as a ValueError.
        with pytest.raises(
            (jax.errors.JaxRuntimeError, ValueError), match="ServerUnreachable: no farsum server"
        ):
            jax.block_until_ready(again(x, y))
    farsum.disconnect()
    close(again(x, y), here[0], 1e-6)
