"""Two point clouds, a vector and their Gaussian kernel, for tests and for the processes that they start."""

from __future__ import annotations

from typing import Any

import numpy as np

from farsum.numpy import Vi, Vj

RNG = np.random.default_rng(0)
X, Y, B = (RNG.random(shape).astype("float32") for shape in ((4000, 3), (5000, 3), (5000, 1)))


def kernel(x: Any, y: Any) -> Any:
    return (-Vi(x).sqdist(Vj(y))).exp()
