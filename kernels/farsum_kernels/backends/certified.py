"""The certificate under which a job takes its squared distances from norms and a scalar product.

Rounding of |x|² + |y|² − 2 x·y comes to about GROWTH ulps of |x|² + |y|² (docs/decisions/0007), whatever the
dimension, where scalar products are added up in pieces, and to about √D of them where they are not; to no more than
TENSOR_GROWTH where tensor cores compute them from float16 halves (docs/decisions/0012). Times the scale in
the exponent it is the relative error of a term, and that must be below ALLOWED. Points that lie far from the origin are
moved to their centre first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import sqrt
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends.reference import run
from farsum_kernels.formula.expanded import MIN_DIM, Expanded, expanded
from farsum_kernels.formula.expr import Expr
from farsum_kernels.formula.rewrite import simplified
from farsum_kernels.job import RANGES, Extent, Part, Spec

Array = NDArray[Any]
K = TypeVar("K")

ALLOWED = 2.0**-20  # 1e-6 in float32; in float64 as many ulps
GROWTH = 4.0
TENSOR_GROWTH = 4.0
MIN_ROWS = 512
CENTRED = 1024  # points whose mean is taken for the centre
MOVED_BYTES = 1 << 30  # points of more bytes than this are not copied to be moved


class Certified(Generic[K]):
    """A job by norms and scalar products, and what it asks of its points."""

    def __init__(self, spec: Spec, found: Expanded, compiled: Callable[[Spec], K], growth: float) -> None:
        self._spec, self._found, self._compiled, self._growth = spec, found, compiled, growth
        first, *others = (Part(scale, "Sum") for scale in found.scales)
        self._scales = Spec(first.formula, "Sum", 1, "float64", also=tuple(others))

    @cached_property
    def kernel(self) -> K:
        roots = iter(self._found.roots)
        parts = [_part(part, [next(roots) for _ in part.roots]) for part in self._spec.parts]
        first = parts[0]
        spec = replace(self._spec, formula=first.formula, weight=first.weight, also=tuple(parts[1:]))
        return self._compiled(spec)

    @property
    def places(self) -> dict[int, tuple[int, ...]]:
        """The inputs that stand for moved points, and what they are made of: points, and those that the centre is of."""
        (x, y), moved = (self._found.x, self._found.y), self._found.moved
        own, other = x.params[0], y.params[0]
        return {moved[0].params[0]: (own, other), moved[1].params[0]: (other, other)}

    def points(self, arrays: Mapping[int, Array]) -> dict[int, Array]:
        """The points as they are, as the inputs that may be moved."""
        return {place: arrays[own] for place, (own, _) in self.places.items()}

    @property
    def dim(self) -> int:
        """The components of the points."""
        return self._found.x.dim

    def arrays(
        self, arrays: Mapping[int, Array], extent: Extent, least: float = MIN_ROWS
    ) -> Mapping[int, Array] | None:
        """The inputs of `kernel`; None where the error could be too large, or the job is too small to ask.

        least   rows for each row of the other side, from which on looking at the points takes a small part of the job
        """
        if RANGES[0] in arrays or not large_enough_to_ask(extent, least):
            return None
        x, y = (arrays[v.params[0]] for v in (self._found.x, self._found.y))
        scale = self.scale(arrays)

        def fit(x: Array, y: Array) -> bool:
            return self.holds(scale, float(squares(x).max()), float(squares(y).max()))

        if not fit(x, y):
            moved = at_centre(x, y)
            if moved is None or not fit(*moved):
                return None
            x, y = moved
        return {**arrays, **dict(zip(self.places, (x, y), strict=True))}

    def scale(self, arrays: Mapping[int, Array]) -> float:
        """The largest that a squared distance is multiplied by in the exponents."""
        scales = run(self._scales, {n: arrays[n] for n in self._scales.inputs})
        return max(float(np.abs(found).max()) for found in scales)

    def holds(self, scale: float, x: float, y: float) -> bool:
        """Is the error small enough, where the largest squared norms are these?"""
        return scale * (x + y) * self._growth <= ALLOWED * 2.0**24


def large_enough_to_ask(extent: Extent, least: float = MIN_ROWS) -> bool:
    """Does looking at the points take a small part of a job with every pair of them?"""
    return extent.m * extent.n >= least * (extent.m + extent.n)


def certified(
    spec: Spec,
    compiled: Callable[[Spec], K],
    growth: Callable[[int], float],
    least: int = MIN_DIM,
    apart: bool = False,
) -> Certified[K] | None:
    """How to take squared distances from scalar products, if this job has a use for it.

    growth         the ulps of the squared norms that an error comes to, in so many dimensions
    least, apart   as `expanded` has them
    """
    if spec.dtype not in ("float32", "float64"):
        return None
    wants: list[tuple[str, Expr]] = []
    for part in spec.parts:
        if not (part.rule.additive or part.rule.share):
            return None
        kinds = ("term",) if part.rule.additive else ("exponent", "term")
        wants += [(kind, simplified(root)) for kind, root in zip(kinds, part.roots, strict=False)]
    found = expanded(wants, least, apart)
    return Certified(spec, found, compiled, growth(found.x.dim)) if found else None


def in_pieces(dim: int) -> float:
    """The growth where scalar products are added up in pieces."""
    return GROWTH


def in_one_chain(dim: int) -> float:
    """The growth where they are not."""
    return max(GROWTH, sqrt(dim))


def on_tensor_cores(dim: int) -> float:
    """The growth of products of float16 halves, added up sixteen at a time."""
    return TENSOR_GROWTH


def _part(part: Part, roots: Sequence[Expr]) -> Part:
    return replace(part, formula=roots[0], weight=roots[1] if len(roots) > 1 else None)


def at_centre(x: Array, y: Array) -> tuple[Array, Array] | None:
    """Copies of both sets of points, moved so that the centre of some of y is the origin; None if they are too large."""
    if x.nbytes + y.nbytes > MOVED_BYTES:
        return None
    points = y.reshape(-1, y.shape[-1])
    with np.errstate(all="ignore"):  # points that are not finite stay so
        centre = points[:: max(1, len(points) // CENTRED)].mean(axis=0, dtype=y.dtype)
        return x - centre, y - centre


def squares(points: Array) -> Array:
    """The squared norm of each row."""
    with np.errstate(all="ignore"):
        return np.asarray(np.einsum("...k,...k->...", points, points))
