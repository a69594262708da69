"""farsum: reductions a_i = Reduce_j F(x_i, y_j, p) on a machine that is not yours.

Importing this module compiles nothing, prints nothing, opens no socket and loads no array library.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = [
    "__version__", "connect", "disconnect", "drop", "errors", "get", "ping", "program", "put", "repeat", "show_progress",
]  # fmt: skip


def connect(target: str, away_s: float = 20.0, memory: bool | None = None) -> Any:
    """Send all further work to a server; gives the engine, which can be closed or used in a `with`.

    target   "grpc://localhost:50051" or "unix:///run/farsum.sock"; other hosts are reached through an
             SSH tunnel to their loopback address
    away_s   how long a server that goes away later is waited for, in seconds: a restart is not noticed
    memory   hand over large arrays through memory that both map, where the server runs on this machine with
             `--memory-socket`; elsewhere gRPC carries them as ever. By default what FARSUM_MEMORY says (1 or 0)

    Raises ServerUnreachable when nobody answers there, ProtocolMismatch when versions do not fit.
    """
    from farsum import target as module

    return module.connect(target, memory, away_s=away_s)


def disconnect() -> None:
    """Close the connection; work goes to FARSUM_TARGET again, or to the engine in this process."""
    from farsum import target as module

    module.disconnect()


def ping(target: str | None = None) -> dict[str, Any]:
    """What answers at the target (default: the current one): version, devices, round-trip time in seconds."""
    from farsum import target as module

    return module.ping(target)


def put(x: Any) -> Any:
    """A handle to a copy of an array, which goes to the server now, and once: use it wherever an array goes.

    x   a NumPy array of float16, float32, float64, complex or int64 numbers; or a handle, which is then held
        by the server that is connected now

    The copy stays in this process too, so a server that restarts, or makes room, is sent it again without
    your doing. Without a server the handle is used all the same.

    Raises QuotaExceeded and StoreFull when the server has no room, DtypeError, ServerUnreachable.

    >>> import numpy as np
    >>> from farsum.numpy import Vi, Vj
    >>> x, y = put(np.random.rand(5, 3)), put(np.random.rand(7, 3))
    >>> kept = (-Vi(x).sqdist(Vj(y))).exp().sum(axis=1, keep=True)
    >>> kept.shape, get(kept).shape
    ((5, 1), (5, 1))
    """
    from farsum import handle

    return handle.put(x)


def get(handle: Any) -> Any:
    """The array of a handle, a copy that may be changed.

    Raises HandleGone for one that was dropped, and for a kept result that its server no longer has: it
    expired, was evicted while you were not connected, or the server was restarted.
    """
    from farsum import handle as module

    return module.get(handle)


def drop(*handles: Any) -> None:
    """Free the memory of handles, here and on the server. A handle that goes out of scope does so by itself.

    Handles that show the same bytes (`reshape`, `view`) are dropped together. Other handles to equal arrays
    are not.
    """
    from farsum import handle as module

    module.drop(*handles)


def program(function: Any) -> Any:
    """A decorator: the function over arrays is recorded at each call, and runs as one job where work goes to.

    The function is called with recorded arrays, which know their shape (rows, dim) and their dtype. It may use them in
    LazyTensors, in arithmetic, in functions of NumPy and in `farsum.repeat`, and returns an array or a tuple of
    arrays. What is recorded is data; no code of yours runs on a server. See docs/loops.md.

    deadline_s, keep   of the call: give up after so many seconds; leave the results there, as handles
    watch              of the call: a function that is shown the results as they stand, once a second
    .submit(…)         the same without waiting
    .__wrapped__(…)    the function as it stands, call by call

    >>> import numpy as np
    >>> from farsum.numpy import Vi, Vj
    >>> @program
    ... def smoothed(x, v):
    ...     K = (-Vi(x).sqdist(Vj(x))).exp()
    ...     return repeat(lambda v: (K @ v) / K.sum(axis=1), v, times=10)
    >>> smoothed(np.random.rand(5, 3), np.random.rand(5, 1)).shape
    (5, 1)
    """
    from farsum.loops import RecordedFunction

    return RecordedFunction(function)


def repeat(step: Any, *state: Any, times: int, until: float | None = None, history: bool = False) -> Any:
    """The states after `step` has been applied to them so many times: a loop, in a program one that runs there.

    step      takes the states and returns the next ones, of the same shapes and dtypes; with `until`, one number
              more, the measure
    until     the loop ends once the measure is below it; reaching `times` is no error
    history   give the measures too, (times, 1), NaN after the last round

    Outside of a program the step runs as it stands, call by call. Raises SolverDidNotConverge for a measure that
    is NaN, FormulaError, ShapeError or DtypeError for states that do not stay what they are.
    """
    from farsum import loops

    return loops.repeat(step, *state, times=times, until=until, history=history)


def show_progress(on: bool) -> None:
    """Whether work of more than a second draws a bar on the terminal; FARSUM_PROGRESS=0 says no from the start."""
    from farsum import progress

    progress.enabled = on


def __getattr__(name: str) -> Any:
    if name == "errors":
        from farsum_kernels import errors

        return errors
    raise AttributeError(f"module 'farsum' has no attribute {name!r}")
