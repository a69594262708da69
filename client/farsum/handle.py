"""Arrays that stay where the work is done: what `farsum.put` and `keep=True` give.

A handle is a view, a dtype and a shape, of bytes that lie here, on a server, or on both; it never changes
them. It opens no connection itself: see remote.py.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.errors import DtypeError, HandleGone, OperandError, ShapeError
from farsum_kernels.job import ArrayRef

if TYPE_CHECKING:
    from farsum.remote import RemoteEngine

Array = NDArray[Any]

# How each dtype travels. Complex numbers are pairs of reals; bfloat16 is held as uint16, which nothing else is.
_TRAVELS = {
    "float16": "float16", "float32": "float32", "float64": "float64", "int64": "int64", "uint16": "bfloat16",
    "complex64": "float32", "complex128": "float64",
}  # fmt: skip


class Content:
    """The bytes that one or more handles show.

    local    them, C-ordered and read-only, if they are here
    engine   the server that holds them by `token`, if one does

    When the last handle is gone the server is told so, with the next message to it.
    """

    __slots__ = ("__weakref__", "_casts", "_digest", "_release", "dropped", "engine", "local", "nbytes")

    def __init__(self, local: Array | None, nbytes: int, digest: bytes = b"") -> None:
        self.local = local
        self.nbytes = nbytes
        self.engine: RemoteEngine | None = None
        self.dropped = False
        self._digest = digest
        self._casts: dict[str, Content] = {}
        self._release: Callable[[], object] | None = None

    @property
    def digest(self) -> bytes:
        """The BLAKE3 digest of the bytes, taken once: they do not change."""
        if not self._digest and self.local is not None:
            from farsum.call import digest_of

            self._digest = digest_of(self.local)
        return self._digest

    def held_by(self, engine: RemoteEngine, token: bytes) -> None:
        """The server of this engine holds the bytes by the token, until nothing shows them any more."""
        self.engine = engine
        release = weakref.finalize(self, _let_go, engine, self.digest, token, os.getpid())
        release.atexit = False  # a server notices itself that a client is gone
        self._release = release

    def drop(self) -> None:
        self.dropped = True
        self.local = None
        self._casts.clear()
        if self._release:
            self._release()

    def cast(self, dtype: str, array: Callable[[], Array]) -> Content:
        """The same numbers in another dtype, converted once."""
        found = self._casts.get(dtype)
        if found is None:
            found = self._casts[dtype] = content_of(array().astype(dtype))
        return found


def _let_go(engine: RemoteEngine, digest: bytes, token: bytes, pid: int) -> None:
    if os.getpid() == pid:  # what a forked child forgets, its parent still has
        engine.session.let_go(digest, token)


class Handle:
    """An array by name: usable wherever an array is, and it travels once.

    shape, dtype, ndim, size, nbytes   as of an array
    where                              what holds it, in words

    Made by `farsum.put` and by `keep=True`. np.asarray and indexing fetch it first.
    """

    __slots__ = ("content", "dtype", "shape")
    __array_ufunc__ = None  # arithmetic of NumPy would fetch it silently: `farsum.get` does so in plain sight

    content: Content
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __init__(self, content: Content, dtype: Any, shape: tuple[int, ...]) -> None:
        for name, value in (("content", content), ("dtype", np.dtype(dtype)), ("shape", tuple(shape))):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a handle is immutable: {name} cannot be set")

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.content.nbytes

    @property
    def where(self) -> str:
        content = self.content
        if content.dropped:
            return "dropped: it can no longer be used"
        if content.engine is None:
            return "in this process"
        if content.local is None:
            return f"kept on {content.engine.target}, its only copy"
        return f"on {content.engine.target}, and here to be sent again"

    def __repr__(self) -> str:
        use = "use it wherever an array goes; farsum.get gives the array, farsum.drop frees its memory"
        text = f"Handle of shape {self.shape}, dtype {self.dtype}, {self.nbytes:,} bytes: {self.where}"
        return text if self.content.dropped else f"{text}\n  {use}"

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a handle of shape () has no length")
        return self.shape[0]

    def __bool__(self) -> bool:
        raise TypeError("the truth value of a handle is not defined; farsum.get gives the array")

    def __reduce__(self) -> tuple[Any, ...]:
        # In another process it is a handle of the same numbers, which travel with it.
        return _unpickled, (self.get(),)

    # ── the same bytes, seen otherwise ────────────────────────────────────────────────────────────

    def reshape(self, *shape: Any) -> Handle:
        """The same numbers in C order in another shape; one axis may be -1. Moves nothing."""
        wanted = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        known = prod(n for n in wanted if n != -1)
        if wanted.count(-1) == 1 and known:
            wanted = tuple(self.size // known if n == -1 else n for n in wanted)
        if any(n < 0 for n in wanted) or prod(wanted) != self.size:
            raise ShapeError(f"a handle of shape {self.shape} cannot have the shape {wanted}")
        return Handle(self.content, self.dtype, wanted)

    def view(self, dtype: Any) -> Handle:
        """The same bytes as another dtype: complex numbers as pairs of reals along the last axis, and back."""
        new, (*rows, last) = np.dtype(dtype), self.shape or (1,)
        width = last * self.dtype.itemsize
        if width % new.itemsize:
            raise ShapeError(f"rows of {last} {self.dtype} cannot be seen as {new}")
        return Handle(self.content, new, (*rows, width // new.itemsize))

    def astype(self, dtype: Any, copy: bool = True) -> Handle:
        """The same numbers in another dtype: itself, or a handle to a copy that is made once, here."""
        new = np.dtype(dtype)
        if new == self.dtype:
            return self
        return Handle(self.content.cast(new.name, self.here_or_fetched), new, self.shape)

    # ── its numbers ───────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """Raise HandleGone if it was dropped."""
        if self.content.dropped:
            raise HandleGone(
                f"the handle of shape {self.shape} was dropped; farsum.put the array again, or keep the result again"
            )

    def here(self) -> Array:
        """The array, read-only, if its bytes are in this process.

        Raises HandleGone.
        """
        self.check()
        local = self.content.local
        if local is None:
            assert self.content.engine is not None
            raise HandleGone(
                f"the result of shape {self.shape} is kept on {self.content.engine.target}, and this work goes "
                f"elsewhere: farsum.get it while that server is connected, and use or farsum.put the array"
            )
        return local.reshape(-1).view(self.dtype).reshape(self.shape)

    def here_or_fetched(self) -> Array:
        """The array: the bytes that are here, read-only, or fetched."""
        self.check()
        if self.content.local is None and self.content.engine is not None:
            return self.content.engine.fetch(self)
        return self.here()

    def get(self) -> Array:
        """The array, a copy that may be changed. Raises HandleGone, ServerUnreachable."""
        found = self.here_or_fetched()
        return found if found.flags.writeable else found.copy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        found = self.here_or_fetched()
        if dtype is not None and found.dtype != dtype:
            return found.astype(dtype)
        return found.copy() if copy else found

    def __getitem__(self, key: Any) -> Any:
        return self.here_or_fetched()[key]

    @property
    def ref(self) -> ArrayRef:
        """How the array is named on the wire."""
        shape = self.view(f"f{self.dtype.itemsize // 2}").shape if self.dtype.kind == "c" else self.shape
        return ArrayRef(self.content.digest, _TRAVELS[self.dtype.name], shape)


def _unpickled(array: Array) -> Handle:
    return handle_of(array)


def content_of(array: Array) -> Content:
    """The bytes of an array that nobody else changes."""
    local = array if array.flags.c_contiguous else np.array(array, order="C")
    local.flags.writeable = False
    return Content(local, local.nbytes)


def handle_of(array: Array) -> Handle:
    """A handle to an array that nobody else changes."""
    return Handle(content_of(array), array.dtype, array.shape)


def put(x: Any) -> Handle:
    """See `farsum.put`."""
    from farsum.target import remote

    if isinstance(x, Handle):
        x.check()
        made = x if x.content.local is None else Handle(content_of(x.here()), x.dtype, x.shape)
    else:
        if not isinstance(x, np.ndarray):
            raise OperandError(f"farsum.put takes a NumPy array, not {type(x).__name__}")
        if x.dtype.name not in _TRAVELS:
            raise DtypeError(
                f"an array of dtype {x.dtype} cannot be put; convert it to one of {', '.join(_TRAVELS)}"
            )
        made = handle_of(np.array(x, order="C"))
    if (engine := remote()) is not None:
        engine.hold(made)
    return made


def get(handle: Any) -> Array:
    """See `farsum.get`."""
    return _need(handle, "get").get()


def drop(*handles: Any) -> None:
    """See `farsum.drop`."""
    contents = [_need(handle, "drop").content for handle in handles]
    for content in contents:
        content.drop()
    for engine in {content.engine for content in contents if content.engine is not None}:
        engine.session.flush()


def _need(x: Any, what: str) -> Handle:
    if not isinstance(x, Handle):
        raise OperandError(f"farsum.{what} takes a handle of farsum.put or keep=True, not {type(x).__name__}")
    return x
