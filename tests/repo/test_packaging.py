"""One distribution: its dependencies, its extras, its version, its four roots."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import farsum

BASE = {"numpy", "grpcio", "protobuf", "pyarrow", "blake3", "tqdm"}
EXTRAS = {"cpu", "server", "cuda12", "cuda13", "torch", "jax", "ray", "test", "bench", "docs"}
ROOTS = {
    "client": "farsum",
    "server": "farsum_server",
    "kernels": "farsum_kernels",
    "proto": "farsum_proto",
}


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())
    return table


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", line)[0] for line in requirements}


def test_base_dependencies_are_six(project: dict[str, Any]) -> None:
    assert names(project["project"]["dependencies"]) == BASE
    installed = metadata.requires("farsum") or []
    assert names([line for line in installed if "extra ==" not in line]) == BASE


def test_extras(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    assert set(extras) == EXTRAS
    assert "farsum[cpu]" in extras["server"]
    assert "torch==2.13.0" in extras["test"]


def test_version_is_said_once(project: dict[str, Any], root: Path) -> None:
    version = project["project"]["version"]
    assert farsum.__version__ == version == metadata.version("farsum")
    first = re.search(r"^## \[([^\]]+)\]", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first and first[1] == version


@pytest.mark.parametrize(("folder", "package"), ROOTS.items())
def test_roots_are_typed_packages_in_plain_folders(root: Path, folder: str, package: str) -> None:
    # An __init__.py in a root would make it a package of its own, and `proto` is somebody else's.
    assert not (root / folder / "__init__.py").exists()
    assert (root / folder / package / "__init__.py").exists()
    assert (root / folder / package / "py.typed").exists()


def test_wheel_and_editable_install_name_the_same_roots(project: dict[str, Any]) -> None:
    build = project["tool"]["hatch"]["build"]
    assert set(build["dev-mode-dirs"]) == set(ROOTS)
    assert set(build["targets"]["wheel"]["packages"]) == {f"{a}/{b}" for a, b in ROOTS.items()}


def test_python_versions(project: dict[str, Any]) -> None:
    assert project["project"]["requires-python"] == ">=3.11"
    assert project["project"]["license"] == "MIT"


def test_command(project: dict[str, Any]) -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="farsum")
    assert script.value == project["project"]["scripts"]["farsum"]
    assert callable(script.load())
