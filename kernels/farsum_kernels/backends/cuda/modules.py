"""The kernels that are loaded on a device, at most so many modules at once. Knows neither CUDA nor what a module is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class Modules:
    """Kernels by file and name, loaded on demand.

    load      a module from its file; `get_function` gives its kernels
    unload    waits until nothing runs any more and forgets every module
    most      modules at once. The library below remembers all that it ever loaded, so past this all are dropped
    """

    def __init__(self, load: Callable[[Path], Any], unload: Callable[[], None], most: int) -> None:
        self._load, self._unload, self._most = load, unload, most
        self._modules: dict[Path, Any] = {}
        self._functions: dict[tuple[Path, str], Any] = {}
        self.drops = 0  # times that all were dropped

    def function(self, path: Path, name: str) -> Any:
        """A kernel, loaded now if it is new or was dropped."""
        key = path, name
        if (found := self._functions.get(key)) is None:
            if path not in self._modules:
                if len(self._modules) >= self._most:
                    self._drop()
                self._modules[path] = self._load(path)
            found = self._functions[key] = self._modules[path].get_function(name)
        return found

    def _drop(self) -> None:
        self.drops += 1
        self._functions.clear()
        self._modules.clear()
        self._unload()
