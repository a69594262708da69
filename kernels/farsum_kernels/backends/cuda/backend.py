"""A GPU of this machine as a device."""

from __future__ import annotations

from typing import Any

from farsum_kernels.backends.cuda.driver import CudaDriver
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.backends.cuda.resident import Resident
from farsum_kernels.backends.cuda.tune import Tuner, wanted
from farsum_kernels.job import Spec

RESIDENT_SHARE = (
    2  # copies of arrays take at most this part of the device's memory, and less where jobs need it
)


class CudaBackend:
    """Implements farsum_kernels.compile.Backend. Raises what CudaDriver raises.

    driver   of the device, instead of that of GPU `number`
    """

    kind = "cuda"
    threads = 1  # one thread of the host queues the work of a device

    def __init__(self, number: int = 0, driver: Any = None) -> None:
        self._driver = driver or CudaDriver(number)
        self.name = f"{self._driver.name} (cuda:{number}, compute capability {self._driver.arch / 10})"
        self._tuner = Tuner(self._driver.name) if wanted() else None
        self._resident = Resident(self._driver, self._driver.total_bytes // RESIDENT_SHARE)

    def compile(self, spec: Spec) -> Kernel:
        return Kernel(spec, self._driver, resident=self._resident, tuner=self._tuner)
