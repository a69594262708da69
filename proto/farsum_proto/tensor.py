"""Arrow IPC tensors as bulk streams carry them: a short header, then the bytes of the array.

Never copies an array: the header is made and checked apart from the bytes that follow it.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from farsum_kernels.errors import WireError
from farsum_kernels.job import ArrayRef
from farsum_proto.wire import CHUNK_BYTES

# What NumPy and Arrow hold a dtype as: neither tensor knows bfloat16.
_ARROW = {
    "float16": pa.float16(),
    "bfloat16": pa.uint16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int64": pa.int64(),
}


# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h.
_MALLOPT = ((-3, 4 << 20), (-1, 64 << 20), (-2, 16 << 20))


def held_as(dtype: str) -> str:
    """The NumPy dtype of arrays of a logical dtype."""
    return "uint16" if dtype == "bfloat16" else dtype


@cache
def keep_freed_memory() -> None:
    """Tell the allocator of this process to keep what bulk streams free, up to 64 MiB; once is enough.

    By default glibc gives each chunk back to the system and takes fresh pages for the next:
    uploads then run at 0.6 GB/s instead of 1.3 (measured on loopback, two busy cores).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library: it has its own ways
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in _MALLOPT:
            mallopt(option, value)


def header_of(array: NDArray[Any]) -> bytes:
    """What Arrow writes in front of the bytes of a C-ordered array."""
    tensor = pa.Tensor.from_numpy(array)
    header = np.zeros(pa.ipc.get_tensor_size(tensor) - array.nbytes, np.uint8)
    # Arrow has no call for the header alone. A writer with room for no more than the header takes it
    # and refuses the rest, before anything of the rest is copied.
    with contextlib.suppress(OSError):
        pa.ipc.write_tensor(tensor, pa.FixedSizeBufferWriter(pa.py_buffer(header)))
    return header.tobytes()


def header_at(memory: memoryview, offset: int, ref: ArrayRef) -> bytes:
    """The header of an array that lies in shared memory."""
    return header_of(np.ndarray(ref.shape, held_as(ref.dtype), memory, offset))


def chunks_of(header: bytes, body: memoryview, offset: int = 0) -> Iterator[bytes]:
    """The stream of one array from an offset on, in chunks. gRPC sends `bytes` only: each is copied, once."""
    start = offset - len(header)
    if start < 0:
        first = CHUNK_BYTES + start
        yield header[offset:] + bytes(body[:first])
        start = first
    for at in range(start, len(body), CHUNK_BYTES):
        yield bytes(body[at : at + CHUNK_BYTES])


def body_offset(stream: memoryview, ref: ArrayRef) -> int:
    """Where the array starts in a complete stream.

    Raises WireError unless the Arrow header says exactly what the reference says.
    """
    offset = len(stream) - ref.nbytes
    try:
        tensor = pa.ipc.read_tensor(pa.py_buffer(stream))
        found = (tensor.type, tuple(tensor.shape), tuple(tensor.strides))
        start = tensor.to_numpy().__array_interface__["data"][0]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise WireError(f"the stream is no Arrow IPC tensor: {error}") from error
    wanted = (_ARROW[ref.dtype], ref.shape, _strides(ref))
    if found[:2] != wanted[:2] or (ref.nbytes and found[2] != wanted[2]):
        raise WireError(
            f"the stream holds a tensor of {found[0]} with shape {found[1]}; its header declared {ref}"
        )
    if ref.nbytes and start - np.frombuffer(stream, np.uint8).__array_interface__["data"][0] != offset:
        raise WireError("the stream holds more than its header and its array")
    return offset


def _strides(ref: ArrayRef) -> tuple[int, ...]:
    step, found = ArrayRef(b"", ref.dtype, ()).nbytes, []
    for size in reversed(ref.shape):
        found.append(step)
        step *= size
    return tuple(reversed(found))
