"""The CUDA backend on the host: its launches go to the emulator instead of a device. Everything else is the real thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farsum_kernels.backends.cuda.layout import Gpu
from tests.cuda import emulate


class EmulatedModule:
    def __init__(self, module: emulate.Module, driver: EmulatedDriver) -> None:
        self._module, self._driver = module, driver

    def launch(
        self, name: str, grid: tuple[int, int], block: tuple[int, int], shared: int, args: Sequence[Any]
    ) -> None:
        emulate.launch(self._module, name, grid, block, shared, args, order=self._driver.order)


class EmulatedDriver:
    """A small device: few processors, so that small jobs are cut into splits and slices too."""

    def __init__(self, order: emulate.Order = "forward", processors: int = 2, rate: float = 1e15) -> None:
        self.gpu = Gpu(processors, rate)
        self.order = order

    def load(self, source: str) -> EmulatedModule:
        return EmulatedModule(emulate.compile(source), self)

    def upload(self, array: NDArray[Any]) -> NDArray[Any]:
        return np.array(array, order="C") if array.size else np.zeros(1, array.dtype)

    def empty(self, count: int, dtype: str) -> NDArray[Any]:
        made = np.empty(max(1, count), dtype)
        made.view(np.uint8)[:] = 0xFF  # NaN, or indices that no array has
        return made

    def download(self, buffer: NDArray[Any], into: NDArray[Any]) -> None:
        into.reshape(-1)[:] = buffer[: into.size]

    def mark(self) -> None:
        """Launches are done when they return."""

    def wait(self, mark: None) -> None: ...
