"""The budget of loaded modules: past it all are dropped, once nothing runs, and loaded again on demand."""

from __future__ import annotations

from pathlib import Path

from farsum_kernels.backends.cuda.modules import Modules


class Loaded:
    def __init__(self, path: Path) -> None:
        self.path = path

    def get_function(self, name: str) -> tuple[Path, str, object]:
        return self.path, name, self


def test_modules_are_loaded_once_and_dropped_past_the_budget() -> None:
    log: list[str] = []

    def load(path: Path) -> Loaded:
        log.append(path.name)
        return Loaded(path)

    modules = Modules(load, lambda: log.append("unload"), 2)
    a, b, c = map(Path, "abc")
    assert modules.function(a, "reduce") is modules.function(a, "reduce")
    assert modules.function(a, "combine")[2] is modules.function(a, "reduce")[2]
    first = modules.function(b, "reduce")
    assert log == ["a", "b"]
    modules.function(c, "reduce")
    assert log == ["a", "b", "unload", "c"]
    # Loaded again: the function of a module that was dropped is never given out.
    assert modules.function(b, "reduce") is not first
    assert log == ["a", "b", "unload", "c", "b"]
    modules.function(a, "reduce")
    assert log == ["a", "b", "unload", "c", "b", "unload", "a"]
