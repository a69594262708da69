"""A GPU of this machine as a device."""

from __future__ import annotations

from farsum_kernels.backends.cuda.driver import CudaDriver
from farsum_kernels.backends.cuda.launch import Kernel
from farsum_kernels.job import Spec


class CudaBackend:
    """Implements farsum_kernels.compile.Backend. Raises what CudaDriver raises."""

    kind = "cuda"
    threads = 1  # one thread of the host queues the work of a device

    def __init__(self, number: int = 0) -> None:
        self._driver = CudaDriver(number)
        self.name = f"{self._driver.name} (cuda:{number}, compute capability {self._driver.arch / 10})"

    def compile(self, spec: Spec) -> Kernel:
        return Kernel(spec, self._driver)
