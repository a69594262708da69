"""A linear system whose matrix is a reduction, ready to be solved: what `KernelSolve` and `LazyTensor.solve` share.

Knows no text and no lazy tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from farsum.arrays import Array
from farsum.compute import Computation
from farsum.solve import conjugate_gradient, ridged, time_left
from farsum.tensors import among


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """(alpha·Id + A)·a = b, where A·p is a sum that is linear in one of its arrays, p.

    computation      the sum
    unknown          the number of that array: it takes b, and a is what stands there in the solution
    dtype            of all arrays
    eps, max_iterations
                     see `farsum.solve.conjugate_gradient`
    ranges           of the sum
    deadline_s       for all products together
    """

    computation: Computation
    unknown: int
    dtype: str
    eps: float = 1e-6
    max_iterations: int | None = None
    ranges: Sequence[Array] | None = None
    deadline_s: float | None = None

    def solved(self, arrays: Mapping[int, Any], alpha: Any) -> Any:
        """a, of the shape and dtype of b, which has every batch axis. Tensors are differentiated through.

        Raises SolverDidNotConverge, DeadlineExceeded.
        """
        if among(arrays.values()):
            from farsum.implicit import solved

            return solved(self, arrays, alpha)
        product = self.product(arrays, time_left(self.deadline_s))
        return conjugate_gradient(ridged(product, alpha), arrays[self.unknown], self.eps, self.max_iterations)

    def product(
        self, arrays: Mapping[int, Array], left: Callable[[], float | None]
    ) -> Callable[[Array], Array]:
        """p ↦ A·p. The arrays are made contiguous here once, so that no product copies them again."""
        held = {n: np.ascontiguousarray(a) for n, a in arrays.items()}

        def product(p: Array) -> Array:
            found: Array = self.computation.run(
                {**held, self.unknown: p}, self.dtype, None, self.ranges, None, left()
            )
            return found

        return product
