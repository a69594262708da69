"""Formula to kernel, once: a cache of compiled reductions with single flight."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from farsum_kernels.errors import DeviceMissing, FormulaTooLarge
from farsum_kernels.job import Extent, Spec
from farsum_kernels.plan import Plan

KERNELS_KEPT = 512
GPU = re.compile(r"cuda(?::(\d+))?")
GPUS = re.compile(rf"{GPU.pattern}(\+{GPU.pattern})*")


class Launch(Protocol):
    """A job on its way over a device, slice by slice."""

    @property
    def words(self) -> Mapping[str, str]:
        """The plan in words."""
        ...

    def step(self) -> float:
        """Run the next slice; gives the finished share."""
        ...

    def results(self, into: Sequence[Any] | None = None) -> tuple[Any, ...]:
        """Merge and finish a job that is done."""
        ...


class Repeated(Protocol):
    """A small job that is computed again and again on other numbers, and writes its results to one place.

    indices   the variables whose arrays it reads, in the order in which it takes their addresses
    words     the plan in words
    """

    @property
    def indices(self) -> Sequence[int]: ...

    @property
    def words(self) -> Mapping[str, str]: ...

    def run(self, addresses: Sequence[int], owner: object = None) -> None:
        """Compute on arrays of its shapes and dtype that lie C-ordered at these addresses.

        owner   keeps them alive, also where an interrupt ends the waiting before the last thread is done
        """
        ...

    def address(self, array: Any) -> int:
        """Where an array lies."""
        ...


class Kernel(Protocol):
    """A compiled reduction. Holds no data; any number of launches may use it at once."""

    def plan(self, extent: Extent) -> Plan[Any]:
        """How a job of these sizes would be cut up."""
        ...

    def check_indices(self, extent: Extent) -> None:
        """Raise FormulaTooLarge when rows cannot be counted on this device."""
        ...

    def launch(
        self, arrays: Mapping[int, Any], extent: Extent, digests: Mapping[int, bytes] | None = None
    ) -> Launch:
        """Bind arrays of the right shapes and dtype. A device keeps copies of those that have a digest."""
        ...

    def repeated(
        self, shapes: Mapping[int, tuple[int, ...]], extent: Extent, into: Sequence[Any]
    ) -> Repeated | None:
        """A job of these sizes whose results go into these arrays; None where nothing is gained by that."""
        ...


class Backend(Protocol):
    """A device that reductions are compiled for.

    name      of the device, for people
    kind      "cpu" or "cuda"
    threads   threads of the host that a job may use
    """

    name: str
    kind: str
    threads: int

    def compile(self, spec: Spec) -> Kernel:
        """The kernel of a reduction, made anew."""
        ...


def backend_for(device: str, threads: int | None = None) -> Backend:
    """The backend of "cpu", of "cuda:0" and so on, or of "cuda:0+cuda:1" for two GPUs that share each job.

    Raises EngineMissing when it is not installed, DeviceMissing when there is no such device.
    """
    if numbers := GPUS.fullmatch(device):
        from farsum_kernels.backends.cuda.backend import CudaBackend
        from farsum_kernels.backends.cuda.split import SplitBackend

        gpus = [CudaBackend(int(number or 0)) for number in dict.fromkeys(GPU.findall(numbers[0]))]
        return gpus[0] if len(gpus) == 1 else SplitBackend(gpus)
    if device == "cpu":
        from farsum_kernels.backends.cpu.backend import CpuBackend

        return CpuBackend(threads)
    raise DeviceMissing(f"device {device!r} is not known; there are 'cpu' and 'cuda:0', 'cuda:1', …")


class Compiler:
    """Compiles reductions for one device and keeps the ones used last.

    Two threads that ask for one reduction at once share one compilation; a failure is not kept.
    """

    def __init__(self, backend: Backend, kept: int = KERNELS_KEPT) -> None:
        self._backend = backend
        self._kept = kept
        self._lock = threading.Lock()
        self._kernels: OrderedDict[bytes, Future[Kernel]] = OrderedDict()

    def __contains__(self, spec: Spec) -> bool:
        """Is it compiled, or being compiled?"""
        with self._lock:
            return spec.digest in self._kernels

    def kernel(self, spec: Spec) -> Kernel:
        """The kernel of a reduction, compiled now if it is new.

        Raises FormulaTooLarge when the formula lowers to more code than the limits allow, or is too deep for a pass.
        """
        with self._lock:
            if held := self._kernels.get(spec.digest):
                self._kernels.move_to_end(spec.digest)
            else:
                mine: Future[Kernel] = Future()
                self._kernels[spec.digest] = mine
                while len(self._kernels) > self._kept:
                    self._kernels.popitem(last=False)
        if held:
            return held.result()
        try:
            mine.set_result(self._compiled(spec))
        except BaseException as error:
            with self._lock:
                self._kernels.pop(spec.digest, None)
            mine.set_exception(error)
        return mine.result()

    def _compiled(self, spec: Spec) -> Kernel:
        try:
            return self._backend.compile(spec)
        except RecursionError:
            raise FormulaTooLarge(
                "the formula is nested too deeply to be compiled: build long sums as trees, or split the formula"
            ) from None
