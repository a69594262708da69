"""What a reduction would compute, send and cost: asked of the engine that would do it, without doing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from farsum.arrays import Array, as_ranges
from farsum.compute import Computation
from farsum.frame import Ranges
from farsum.target import prepared
from farsum.tensors import plain, recast
from farsum_kernels.job import RANGES, check_arrays, output_shapes


@dataclass(frozen=True, slots=True)
class Explanation:
    """One call of a reduction, before it is made.

    formula         what is reduced, with its variables numbered
    reduction, axis which reduction, over i (0) or over j (1)
    shape           of what is reduced: (*batch, M, N)
    result          the shape of each array that comes back
    dtype           of the arrays; what is halved travels halved and is computed in float32
    pairs           M × N × batch; of a block-sparse reduction, the pairs in its blocks
    flops           additions, multiplications and their like in all these pairs, by the engine's count
    array_bytes     of the arrays in all
    bytes_to_send   of those, what the engine does not hold yet; 0 in process
    where           the engine
    plan            how the engine would cut up the work of all pairs
    """

    formula: str
    reduction: str
    axis: int
    shape: tuple[int, ...]
    result: tuple[tuple[int, ...], ...]
    dtype: str
    pairs: int
    flops: float
    array_bytes: int
    bytes_to_send: int
    where: str
    plan: Mapping[str, str]

    def __str__(self) -> str:
        rows = {
            "formula": self.formula if len(self.formula) <= 100 else self.formula[:99] + "…",
            "reduction": f"{self.reduction} over {'ij'[self.axis]}",
            "shape": f"{self.shape} to {' and '.join(map(str, self.result))}, {self.dtype}",
            "work": f"{self.pairs:.3g} pairs, {self.flops:.3g} flops",
            "to send": f"{self.bytes_to_send:,} of {self.array_bytes:,} bytes",
            "where": self.where,
            "plan": ", ".join(f"{key} {value}" for key, value in self.plan.items()),
        }
        return "\n".join(f"{name:>9}  {text}" for name, text in rows.items())


def explained(
    made: Computation,
    arrays: Mapping[int, Array],
    dtype: str,
    formula: str,
    ranges: Ranges | None = None,
    device: str | None = None,
) -> Explanation:
    """The explanation of a reduction of these arrays. Raises what running it would raise for its arguments."""
    spec = made.spec("float64" if made.accuracy.wide else dtype)
    arrays = {n: plain(recast(a, spec.dtype)) for n, a in arrays.items()} | as_ranges(ranges)
    extent = check_arrays(spec, arrays)
    outlook = prepared(spec, device).outlook(arrays)
    pairs = extent.pairs if ranges is None else _pairs_in(arrays, made.axis)
    flops = float(outlook.plan["flops"]) * (pairs / extent.pairs if extent.pairs else 0)
    return Explanation(
        formula,
        made.reduction,
        made.axis,
        (*extent.batch, extent.m, extent.n),
        output_shapes(spec, extent),
        dtype,
        pairs,
        flops,
        sum(a.nbytes for a in arrays.values()),
        outlook.bytes_to_send,
        outlook.where,
        outlook.plan,
    )


def _pairs_in(arrays: Mapping[int, Array], axis: int) -> int:
    """The pairs of a block-sparse reduction, those that occur twice counted twice."""
    blocks, slices, intervals = (arrays[place] for place in (RANGES[:3] if axis == 1 else RANGES[3:]))
    upto = np.concatenate([[0], np.cumsum(intervals[:, 1] - intervals[:, 0])])
    firsts = np.concatenate([[0], slices[:-1]])[: len(slices)]
    return int(((blocks[:, 1] - blocks[:, 0]) * (upto[slices] - upto[firsts])).sum())
