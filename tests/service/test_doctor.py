"""`farsum doctor`, in real processes: a machine that is well, and each thing that can be wrong with one.

What is wrong is made: a driver of another version, an environment without one of its packages, a taken port.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from farsum_kernels.backends.cuda.installed import driver_version
from farsum_server.doctor import Check, examine
from tests.service.server import Server

ROOTS = ("client", "server", "kernels", "proto")

no_driver_here = pytest.mark.skipif(driver_version() is not None, reason="this machine has a CUDA device")


def doctor(*arguments: str, python: tuple[str, ...] = (), **environment: str) -> dict[str, Any]:
    """What it finds, by name, and whether it failed."""
    command = [sys.executable, *python, "-m", "farsum_server.cli", "doctor", "--json", *arguments]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("FARSUM_") or k == "FARSUM_CACHE"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False,
        env={**plain, "FARSUM_PORT": "0", "FARSUM_HTTP_PORT": "0", **environment},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert done.returncode == int(found["failed"]), done.stderr
    return {check["name"]: check for check in found["checks"]} | {"failed": found["failed"]}


def test_a_machine_that_is_well_in_lines() -> None:
    command = [sys.executable, "-m", "farsum_server.cli", "doctor"]
    environment = {**os.environ, "FARSUM_PORT": "0", "FARSUM_HTTP_PORT": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stdout
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert {state for state, _ in lines} <= {"ok", "warning"}
    assert any("a kernel compiled and ran" in text for _, text in lines)
    if driver_version() is None:  # and nothing asks for a GPU
        assert any(state == "warning" and "no NVIDIA driver" in text for state, text in lines)


def first(name: str, target: str | None = None) -> Check:
    """The first check of a name, with no further ones made."""
    return next(check for check in examine(target) if check.name == name)


def test_a_folder_of_kernels_that_others_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "cpu").mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("FARSUM_CACHE", str(tmp_path))
    assert first("cache").state == "warning" and "chmod 700" in first("cache").text
    folder.chmod(0o700)
    assert first("cache").state == "ok"


def test_settings_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("FARSUM_HTTP_PORT", str(taken.getsockname()[1]))
        assert first("http port").state == "warning"
    monkeypatch.setenv("FARSUM_HOST", "0.0.0.0")
    assert (first("settings").error, first("settings").state) == ("UnsafeBind", "failed")
    monkeypatch.setenv("FARSUM_HOST", "127.0.0.1")
    monkeypatch.setenv("FARSUM_MEMORY_SOCKET", "/dev/shm/farsum.sock")
    assert first("settings").error == "UnsafeBind" and "others cannot write to" in first("settings").text
    monkeypatch.setenv("FARSUM_DEVICE", "gpu")
    assert first("settings").text.startswith("device:")


def test_a_server_that_answers_and_one_that_does_not(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    check = first("server", server.target)
    assert check.state in ("ok", "warning") and server.target in check.text
    monkeypatch.setattr("farsum.__version__", "0.0.9")
    skewed = first("server", server.target)
    assert skewed.state == "warning" and "this is 0.0.9: install one version on both sides" in skewed.text
    assert first("server", "grpc://127.0.0.1:1").error == "ServerUnreachable"


# ── GPUs that are not there, or cannot be used ────────────────────────────────────────────────────


@no_driver_here
def test_no_gpu_is_a_failure_only_where_one_is_asked_for(tmp_path: Path) -> None:
    (file := tmp_path / "farsum.toml").write_text('device = "cuda:0"')
    found = doctor("--config", str(file))
    assert (found["gpu"]["error"], found["gpu"]["state"]) == ("DeviceMissing", "failed")
    assert "--device cpu" in found["gpu"]["text"] and found["failed"]


@no_driver_here
@pytest.mark.parametrize(
    ("speaks", "status", "error", "repair"),
    [
        (11040, 0, "DriverTooOld", "update the driver"),
        (12040, 0, "WheelMismatch", "pip install 'farsum[cuda12]'"),
        (99000, 100, "DeviceMissing", "nvidia-smi lists them"),  # no device behind the driver
    ],
)
def test_a_driver_that_does_not_fit(
    tmp_path: Path, speaks: int, status: int, error: str, repair: str
) -> None:
    # The real CUDA runtime within CuPy asks this library, the only part of a driver that it gets to see.
    if (compiler := shutil.which("gcc") or shutil.which("cc")) is None:
        pytest.skip("the emulator of CUDA needs g++ on x86-64 or aarch64")
    source = f"int cuDriverGetVersion(int *v) {{ *v = {speaks}; return 0; }} int cuInit(unsigned f) {{ return {status}; }}"
    library = str(tmp_path / "libcuda.so.1")
    command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, "-x", "c", "-"]
    subprocess.run(command, input=source, text=True, check=True)
    found = doctor(LD_LIBRARY_PATH=str(tmp_path))
    assert found["gpu driver"]["text"].endswith(f"{speaks // 1000}.{speaks % 1000 // 10}")
    assert (found["gpu"]["error"], found["gpu"]["state"]) == (error, "failed")
    assert repair in found["gpu"]["text"] and found["failed"]


def environment(folder: Path, root: Path, *left_out: str, **made: str) -> dict[str, str]:
    """What makes Python find the packages of this environment but for some, and a few files that are made here."""
    folder.mkdir()
    for package in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if package.name not in left_out:
            (folder / package.name).symlink_to(package)
    for name, text in made.items():
        package = folder / name.replace("cuda12x", "cupy_cuda12x-13.6.0.dist-info")
        package.mkdir()
        (package / ("METADATA" if package.suffix else "__init__.py")).write_text(text)
    paths = os.pathsep.join([str(folder), *(str(root / r) for r in ROOTS)])
    return {"PYTHONPATH": paths, "FARSUM_DEVICE": "cuda:0"}


@no_driver_here
def test_wheels_that_are_missing_broken_or_two(tmp_path: Path, root: Path) -> None:
    wheel = next(p.name for p in Path(sysconfig.get_paths()["purelib"]).glob("cupy_cuda*.dist-info"))

    def found(name: str, *left_out: str, **made: str) -> dict[str, Any]:
        # Without `site` nothing else is on the path.
        return doctor(python=("-S",), **environment(tmp_path / name, root, *left_out, **made))

    without = found("no cupy", "cupy", wheel)
    assert without["gpu"]["error"] == "EngineMissing" and "farsum[cuda13]" in without["gpu"]["text"]
    without = found("no nvrtc", "nvidia")
    assert without["nvrtc"]["error"] == "CompilerMissing" and "farsum[cuda13]" in without["nvrtc"]["text"]
    broken = found("broken", "cupy", cupy="raise ImportError('libcudart.so.12 is missing')")
    assert broken["gpu"]["error"] == "WheelMismatch" and "does not load (libcudart" in broken["gpu"]["text"]
    two = found("two", cuda12x="Metadata-Version: 2.1\nName: cupy-cuda12x\nVersion: 13.6.0\n")
    assert two["gpu"]["error"] == "WheelMismatch" and "pip uninstall -y cupy-cuda12x" in two["gpu"]["text"]
    assert all(each["failed"] for each in (without, broken, two))
