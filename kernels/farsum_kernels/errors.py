"""Every error that a caller of farsum can see, one tree. Imports nothing but the standard library.

    FarsumError
    ├── FormulaError (ValueError)            the formula cannot mean anything
    │   ├── UnknownOperation (NameError)     a name that is in no table
    │   ├── DimensionError                   vector dims that do not fit together
    │   ├── OperandError (TypeError, AttributeError)   an operand of a kind that means nothing here
    │   ├── AxisError                        an axis that does not exist or cannot be reduced
    │   │   └── AxisMissing (TypeError)      a reduction that needs an axis and was given none
    │   ├── InputMissing (IndexError)        a variable that does not occur, a gap in the numbers of variables
    │   ├── NoDerivative (NotImplementedError)   a gradient through what has none
    │   └── FormulaTooLarge                  more nodes, depth, dims or bytes than the limits allow
    ├── FormulaTooExpensive                  the compiler overran its deadline
    ├── ArrayError (ValueError)              an array does not fit the formula
    │   ├── ShapeError
    │   └── DtypeError (TypeError)
    ├── WireError                            the bytes of a message are not what they claim to be
    │   ├── ProtocolMismatch
    │   ├── DigestMismatch
    │   ├── TruncatedStream
    │   └── MessageTooLarge
    ├── ArrayMissing (KeyError)              the server no longer holds an array that a job names
    │   └── HandleGone                       a handle whose only copy is gone, or is somewhere else
    ├── ServerUnreachable (ConnectionError)  nobody answers at the target
    ├── Draining (ConnectionError)           the server is stopping and takes no new work
    ├── QueueFull                            the server is at capacity
    ├── StoreFull (MemoryError)              the server has no room for the array or the result
    │   └── QuotaExceeded                    the server has, but this tenant has used up its share
    ├── SolverDidNotConverge (ArithmeticError)   an iteration that gave up; it carries how far it came
    ├── DeadlineExceeded (TimeoutError)
    ├── Cancelled
    ├── WorkerDied                           the process that ran the job ended under it
    ├── EngineMissing (ImportError, KeyError) no engine is installed and no target is set
    │   └── WheelMismatch                    the installed CuPy cannot work with the GPU's driver, or there are two
    ├── DeviceMissing (RuntimeError, KeyError) no such GPU here, or its driver does not answer
    │   └── DriverTooOld                     the GPU's driver is older than the installed CUDA libraries
    ├── CompilerMissing (ImportError)        the library that compiles for GPUs is not installed, or does not know the GPU
    ├── DeviceFull (MemoryError)             the GPU has no room for the job, however it is cut up
    ├── DeviceFault (RuntimeError)           a kernel faulted; the process can no longer use that GPU
    ├── PykeopsLoaded (RuntimeError)         the real pykeops is imported already
    ├── UnsafeBind (ValueError)              an address that would serve strangers unprotected
    └── InternalError                        our fault; the server's log has the story

Each class carries a `Status`, whose row holds the gRPC code and the HTTP code. The builtin in
parentheses is a second base, so that `except ValueError` written for another library still works.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any


class Status(Enum):
    """One row per meaning: the gRPC status name and the HTTP code. Neither is derived from the other."""

    INVALID = ("INVALID_ARGUMENT", 422)
    MISSING = ("NOT_FOUND", 404)
    CORRUPT = ("DATA_LOSS", 400)
    TOO_LARGE = ("OUT_OF_RANGE", 413)
    INCOMPATIBLE = ("FAILED_PRECONDITION", 426)
    BUSY = ("RESOURCE_EXHAUSTED", 429)
    AWAY = ("UNAVAILABLE", 503)
    LATE = ("DEADLINE_EXCEEDED", 504)
    STOPPED = ("CANCELLED", 499)
    BUG = ("INTERNAL", 500)

    @property
    def grpc(self) -> str:
        return self.value[0]

    @property
    def http(self) -> int:
        return self.value[1]


class FarsumError(Exception):
    """Root of all errors of farsum.

    >>> issubclass(DimensionError, FarsumError) and issubclass(DimensionError, ValueError)
    True
    """

    status = Status.BUG
    retry_after_s: float = 0.0  # above 0: trying again after so many seconds may help

    def __str__(self) -> str:
        # KeyError prints the repr of its argument; our messages are sentences.
        return str(self.args[0]) if self.args else type(self).__name__


class FormulaError(FarsumError, ValueError):
    """The formula cannot mean anything: a wrong operand, a missing weight, a bad parameter."""

    status = Status.INVALID


class UnknownOperation(FormulaError, NameError):
    """An operation or reduction name that is in no table."""


class DimensionError(FormulaError):
    """Vector dimensions that do not fit together, e.g. (3) and (4) in SqDist."""


class AxisError(FormulaError):
    """An axis that does not exist or that this reduction cannot reduce."""


class AxisMissing(AxisError, TypeError):
    """A reduction that needs an axis and was given none."""


class OperandError(FormulaError, TypeError, AttributeError):
    """An operand of a kind that means nothing here: a string, None, an array where a LazyTensor is needed."""


class InputMissing(FormulaError, IndexError):
    """A variable that does not occur in the formula, or a gap in the numbers of symbolic variables."""


class NoDerivative(FormulaError, NotImplementedError):
    """A gradient through a reduction, or in an argument, that has no derivative."""


class FormulaTooLarge(FormulaError):
    """More nodes, depth, dimension or bytes than the limits allow."""


class FormulaTooExpensive(FarsumError):
    """The compiler overran its deadline on this formula."""

    status = Status.INVALID


class ArrayError(FarsumError, ValueError):
    """An array does not fit the formula it is passed to."""

    status = Status.INVALID


class ShapeError(ArrayError):
    """An array has the wrong number of axes, rows or columns."""


class DtypeError(ArrayError, TypeError):
    """An array has a dtype that is not supported here, or two arrays disagree."""


class WireError(FarsumError):
    """A message does not decode, or its parts contradict each other."""

    status = Status.INVALID


class ProtocolMismatch(WireError):
    """Client and server have no protocol version in common."""

    status = Status.INCOMPATIBLE


class DigestMismatch(WireError):
    """The bytes that arrived do not have the digest that was declared for them."""

    status = Status.CORRUPT


class TruncatedStream(WireError):
    """A stream of chunks ended early, or went on past the declared size."""

    status = Status.CORRUPT


class MessageTooLarge(WireError):
    """A message, array or job is over a limit of the server."""

    status = Status.TOO_LARGE


class ArrayMissing(FarsumError, KeyError):
    """The server no longer holds an array that a job names. The client sends it again by itself."""

    status = Status.MISSING


class HandleGone(ArrayMissing):
    """A handle that can no longer be used: dropped, expired, evicted, lost with its server, or kept elsewhere.

    A handle from `farsum.put` is sent again by itself, so this is about dropped handles and kept results.
    """


class ServerUnreachable(FarsumError, ConnectionError):
    """Nobody answers at the target, or the connection was lost and could not be taken up again."""

    status = Status.AWAY


class Draining(FarsumError, ConnectionError):
    """The server is stopping: it finishes what it has and takes no new work."""

    status = Status.AWAY


class QueueFull(FarsumError):
    """The server is at capacity. Retry later."""

    status = Status.BUSY


class StoreFull(FarsumError, MemoryError):
    """The server has no room for an array or a result, even after evicting what nobody uses."""

    status = Status.BUSY


class QuotaExceeded(StoreFull):
    """The arrays, results and handles of one tenant take more of the server's memory than its share."""


class SolverDidNotConverge(FarsumError, ArithmeticError):
    """A linear system was not solved: the cap on iterations, numbers that are not finite, no progress.

    iterate     the approximation reached, an array like the right-hand side, or None
    residuals   the norm of the residual before each iteration
    """

    status = Status.INVALID

    def __init__(self, message: str, iterate: Any = None, residuals: Sequence[float] = ()) -> None:
        super().__init__(message)
        self.iterate = iterate
        self.residuals = residuals


class DeadlineExceeded(FarsumError, TimeoutError):
    """The job did not finish within its deadline; the server has stopped working on it."""

    status = Status.LATE


class Cancelled(FarsumError):
    """The job was cancelled before it finished."""

    status = Status.STOPPED


class WorkerDied(FarsumError):
    """The worker process that ran the job ended under it, twice. The daemon and other jobs live on."""


class EngineMissing(FarsumError, ImportError, KeyError):
    """No target is set and no engine is installed in this environment."""

    status = Status.INCOMPATIBLE


class WheelMismatch(EngineMissing):
    """The installed CuPy is not the one for this machine's driver, does not load, or there are two of them."""


class DeviceMissing(FarsumError, RuntimeError, KeyError):
    """There is no such GPU in this machine, or its driver does not answer."""

    status = Status.INCOMPATIBLE


class DriverTooOld(DeviceMissing):
    """The GPU's driver is older than the CUDA libraries that are installed."""


class CompilerMissing(FarsumError, ImportError):
    """NVRTC, which compiles for GPUs, is not installed, or is too old for this one."""

    status = Status.INCOMPATIBLE


class DeviceFull(FarsumError, MemoryError):
    """The GPU has no room for the arrays and the partial results of a job, however the job is cut up."""

    status = Status.BUSY


class DeviceFault(FarsumError, RuntimeError):
    """A kernel faulted on the GPU, which ends what this process can do there. A server starts a new worker."""


class PykeopsLoaded(FarsumError, RuntimeError):
    """The real pykeops is imported already, so that farsum cannot stand in for it."""


class UnsafeBind(FarsumError, ValueError):
    """An address that would serve strangers over plain text and without identity."""

    status = Status.INVALID


class InternalError(FarsumError):
    """Our fault. The server's log has the story under the request id in the message."""


def _tree(root: type[FarsumError]) -> dict[str, type[FarsumError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


_BY_NAME = _tree(FarsumError)


def error_named(name: str, message: str) -> FarsumError:
    """Rebuild an error that crossed a wire. The table is closed: an unknown name is a FarsumError.

    >>> error_named("ShapeError", "x has 4 columns")
    ShapeError('x has 4 columns')
    >>> type(error_named("os.system", "boo")).__name__
    'FarsumError'
    """
    return _BY_NAME.get(name, FarsumError)(message)
