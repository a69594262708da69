"""The CPU of this machine as a device."""

from __future__ import annotations

from farsum_kernels.backends.cpu import native
from farsum_kernels.backends.cpu.kernel import Kernel
from farsum_kernels.job import Spec
from farsum_kernels.plan import Machine


class CpuBackend:
    """Implements farsum_kernels.compile.Backend. Raises ImportError without llvmlite.

    threads   that a job may use; None for all that this process may use
    machine   plan for this one instead of the one at hand
    """

    kind = "cpu"

    def __init__(self, threads: int | None = None, machine: Machine | None = None) -> None:
        self._machine = machine or native.machine(threads)
        self.name = native.host()[0]
        self.threads = self._machine.threads

    def compile(self, spec: Spec) -> Kernel:
        return Kernel(spec, self._machine)
