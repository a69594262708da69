"""Who may import whom, and what `import farsum` costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

OURS = ("farsum", "farsum_server", "farsum_kernels", "farsum_proto")
CLIENT_MAY = (
    "farsum",
    "farsum_proto",
    "farsum_kernels.errors",
    "farsum_kernels.job",
    "farsum_kernels.program",
    "farsum_kernels.iterations",
    "farsum_kernels.formula",
    "farsum_kernels.scalar",
)
HEAVY = (
    "numpy",
    "grpc",
    "google.protobuf",
    "pyarrow",
    "blake3",
    "tqdm",
    "llvmlite",
    "torch",
    "jax",
    "cupy",
    "ray",
)


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, at any depth of its code, `from x import y` as x.y."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{p}.") for p in packages)


def test_contracts_hold(root: Path) -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_import_is_light_and_silent() -> None:
    code = f"import sys, farsum, json; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    assert json.loads(fresh(code)) == []


def test_building_a_formula_needs_no_engine_and_no_network() -> None:
    code = (
        "import sys, json, numpy as np\n"
        "from farsum.numpy import Vi, Vj\n"
        "x = np.zeros((4, 3), np.float32)\n"
        "K = (-((Vi(x) - Vj(x)) ** 2).sum(-1)).exp()\n"
        "heavy = ('grpc', 'pyarrow', 'llvmlite', 'fastapi', 'torch', 'farsum_server')\n"
        "print(json.dumps([m for m in heavy if m in sys.modules]))\n"
    )
    assert json.loads(fresh(code)) == []


def test_engine_loads_neither_web_framework_nor_grpc() -> None:
    code = (
        "import sys, json, farsum_server.engine\n"
        "print(json.dumps([m for m in ('fastapi', 'starlette', 'uvicorn', 'grpc') if m in sys.modules]))\n"
    )
    assert json.loads(fresh(code)) == []


def test_client_imports_only_its_share_of_ours(root: Path) -> None:
    stray = [
        f"{path.relative_to(root)}:{line}: {module}"
        for path in sorted((root / "client").rglob("*.py"))
        for module, line in imports(path)
        if within(module, OURS) and not within(module, CLIENT_MAY)
    ]
    assert all("farsum_server.engine" in entry for entry in stray), stray
    assert len(stray) <= 1, "the in-process engine is imported in one place"


@pytest.mark.parametrize("module", ["errors", "job", "program", "layout", "formula", "scalar"])
def test_what_a_user_can_say_is_standard_library(root: Path, module: str) -> None:
    base = root / "kernels" / "farsum_kernels" / module
    for path in sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]:
        for name, line in imports(path):
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names or top == "farsum_kernels", f"{path}:{line}: {name}"


def test_package_inits_of_the_compiler_import_nothing(root: Path) -> None:
    for path in (root / "kernels").rglob("__init__.py"):
        if "backends" not in path.parts:
            assert not list(imports(path)), path
