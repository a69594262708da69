"""Keeps `torch.compile` out of farsum: our frames run as they are, and graphs break around them.

The compiler is told when it is loaded, which `import farsum.torch` alone does not do: it takes a second.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_RULES = "torch._dynamo.trace_rules"
_OURS = ("farsum", "farsum_kernels", "farsum_proto", "farsum_server")


def keep_out() -> None:
    """Have every compiler of this process skip our frames. Twice is as good as once."""
    if rules := sys.modules.get(_RULES):
        _tell(rules)
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def _tell(rules: Any) -> None:
    if getattr(rules, "_knows_farsum", False):
        return
    rules._knows_farsum = True
    if hasattr(rules, "add"):  # not in every release: then graphs break wherever they do
        for package in _OURS:
            rules.add(package)


class _Watch(MetaPathFinder):
    """Finds nothing itself; tells the compiler's rules, once they are loaded, what to skip."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _RULES:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and spec.loader:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                _tell(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
