"""The tables that a kernel reads: which rows meet which columns, task by task, and where batches start."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.job import Extent, Spec
from farsum_kernels.plan import Rows

Array = NDArray[Any]


@lru_cache(maxsize=256)
def batch_offsets(shape: tuple[int, ...], batch: tuple[int, ...], own: int) -> Array | int:
    """The first element of each batch member in an array whose batch axes broadcast."""
    axes = shape[: len(shape) - own]
    if not batch:
        return 0
    size = prod(shape[len(shape) - own :])
    starts = (np.arange(prod(axes), dtype=np.int64) * size).reshape(axes)
    return np.broadcast_to(starts, batch).reshape(-1)


@lru_cache(maxsize=64)
def dense_tables(layout: Rows, extent: Extent, splits: int, step: int = 1) -> tuple[Array, Array]:
    """Tasks and spans of a job without ranges: every row meets every column. Spans begin at multiples of `step`."""
    edges = np.arange(splits + 1, dtype=np.int64) * extent.n // splits
    edges = np.minimum(-(-edges // step) * step, extent.n)
    spans = np.stack([edges[:-1], edges[1:]], axis=1)
    batches, tiles = prod(extent.batch), -(-extent.m // layout.task_rows)
    tasks = np.empty((splits, batches, tiles, 5), np.int64)
    first = np.arange(tiles) * layout.task_rows
    tasks[..., 0] = np.arange(batches)[None, :, None]
    tasks[..., 1] = first
    tasks[..., 2] = np.minimum(first + layout.task_rows, extent.m)
    tasks[..., 3] = np.arange(splits)[:, None, None]
    tasks[..., 4] = tasks[..., 3] + 1
    return np.ascontiguousarray(tasks.reshape(-1, 5)), np.ascontiguousarray(spans)


def sparse_tables(
    layout: Rows, m: int, blocks: Array, slices: Array, intervals: Array
) -> tuple[Array, Array, Array]:
    """Tasks and spans of a block-sparse job, and for each row its place in the states, -1 if none covers it."""
    lengths = blocks[:, 1] - blocks[:, 0]
    tiles = -(-lengths // layout.task_rows)
    of_block = np.repeat(np.arange(len(blocks)), tiles)
    first_tile = np.cumsum(tiles) - tiles
    within = np.arange(len(of_block)) - first_tile[of_block]
    tasks = np.zeros((len(of_block), 5), np.int64)
    tasks[:, 1] = blocks[of_block, 0] + within * layout.task_rows
    tasks[:, 2] = np.minimum(tasks[:, 1] + layout.task_rows, blocks[of_block, 1])
    starts = np.concatenate([np.zeros(1, np.int64), slices[:-1]]) if len(slices) else slices
    tasks[:, 3], tasks[:, 4] = starts[of_block], slices[of_block]
    places = np.full(m, -1, np.int64)
    for (start, end), tile in zip(blocks.tolist(), first_tile.tolist(), strict=True):
        # A later block that covers the same rows replaces the earlier one.
        places[start:end] = tile * layout.task_rows + np.arange(end - start)
    return tasks, np.ascontiguousarray(intervals), places


def pairs_in(tasks: Array, spans: Array) -> int:
    upto = np.concatenate([np.zeros(1, np.int64), np.cumsum(spans[:, 1] - spans[:, 0])])
    return int(((tasks[:, 2] - tasks[:, 1]) * (upto[tasks[:, 4]] - upto[tasks[:, 3]])).sum())


def as_numbers(array: Array, dtype: str, computed: np.dtype[Any]) -> Array:
    """An input in the dtype of the arithmetic, C-ordered."""
    if dtype == "bfloat16":
        return (np.ascontiguousarray(array).astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(array, computed)


def reduced_over_j(spec: Spec, extent: Extent) -> Extent:
    """The sizes of a job as its kernel sees it, which always reduces over j."""
    return extent if spec.axis == 1 else Extent(extent.n, extent.m, extent.batch)
