"""JAX for many small programs: what is compiled here runs once, so little is done to make it fast."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def float64() -> Iterator[None]:
    """JAX with 64 bits, in every thread."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
