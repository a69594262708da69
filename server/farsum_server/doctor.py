"""`farsum doctor`: looks at this machine, the settings of its server and a server elsewhere, and says what to repair.

Changes nothing. What may crash or hang, computing on a device, happens in a process of its own.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from farsum_kernels.errors import DeviceMissing, FarsumError

if TYPE_CHECKING:
    from farsum_server.settings import Settings

State = Literal["ok", "warning", "failed"]

OLDEST_PYTHON, NEWER_PYTHON = (3, 11), (3, 14)
FOUND = 3  # exit status of a trial that says what is wrong
APART_S = 120  # a device that has not answered a tiny job by then never will
FEW_BYTES = 1 << 30  # free memory of a GPU below which other programs are likely to be in the way
_REQUIREMENT = re.compile(r'([\w.-]+)(?:\[[\w,]+\])?([^;]*)(?:; *extra == ["\'](\w+)["\'])?')
_BOUND = re.compile(r"(>=|<)([\d.]+)")


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it is, what was found and, unless that is well, what to do about it."""

    name: str
    state: State
    text: str
    error: str = ""  # the class that the same fault has where it is raised


def examine(target: str | None = None, config: Path | None = None) -> Iterator[Check]:
    """Every check, one after the other. Raises nothing.

    target   a server to ask, or None
    config   the TOML file of the server's settings, or None
    """
    settings: list[Settings] = []
    yield from _guarded("python", _python)
    yield from _guarded("libraries", lambda: _libraries("", "failed"))
    yield from _guarded("settings", lambda: _settings(config, settings))
    if target:
        yield from _guarded("server", lambda: _server(target))
    device = settings[0].device if settings else os.environ.get("FARSUM_DEVICE", "cpu")
    wanted = re.split("[,+]", device)
    yield from _guarded("cache", _cache)
    yield from _guarded("cpu", _cpu, "failed" if "cpu" in wanted else "warning")
    yield from _gpus([device for device in wanted if device.startswith("cuda")])


def _guarded(
    name: str, checks: Callable[[], Iterator[Check]], unwell: Literal["warning", "failed"] = "failed"
) -> Iterator[Check]:
    try:
        yield from checks()
    except FarsumError as error:
        yield Check(name, unwell, str(error), type(error).__name__)
    except Exception as error:  # whatever it is, it is what the user must know
        yield Check(name, "failed", f"{type(error).__name__}: {error}", type(error).__name__)


# ── python and its libraries ──────────────────────────────────────────────────────────────────────


def _python() -> Iterator[Check]:
    have = ".".join(map(str, sys.version_info[:3]))
    if OLDEST_PYTHON <= sys.version_info[:2] < NEWER_PYTHON:
        yield Check("python", "ok", f"{have} on {sys.platform}")
    else:
        yield Check(
            "python", "failed", f"{have}; farsum is for Python 3.11 to 3.13: make an environment of one"
        )


def _libraries(extra: str, unwell: Literal["warning", "failed"]) -> Iterator[Check]:
    """The libraries that an extra needs, or that farsum always needs (""), at the versions it names."""
    name, found, wrong = f"farsum[{extra}]" if extra else "farsum", [f"farsum {version('farsum')}"], []
    for requirement in requires("farsum") or ():
        match = _REQUIREMENT.match(requirement)
        if match is None or (match[3] or "") != extra or match[1] == "farsum":
            continue
        try:
            have = version(match[1])
        except PackageNotFoundError:
            wrong.append(f"{match[1]} is missing")
            continue
        fits = all(
            (_numbers(have) >= _numbers(bound)) == (sign == ">=") for sign, bound in _BOUND.findall(match[2])
        )
        (found if fits else wrong).append(
            f"{match[1]} {have}" + ("" if fits else f" is not {match[2].strip()}")
        )
    if wrong:
        yield Check(name, unwell, f"{', '.join(wrong)}: pip install --upgrade '{name}'", "ImportError")
    else:
        yield Check(name, "ok", ", ".join(found))


def _numbers(text: str) -> tuple[int, ...]:
    """
    >>> _numbers("5.29.1rc2") < _numbers("8")
    True
    """
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


# ── the CPU ───────────────────────────────────────────────────────────────────────────────────────


def _cpu() -> Iterator[Check]:
    try:
        from farsum_kernels.backends.cpu import native
    except ImportError as error:
        yield Check(
            "cpu",
            "warning",
            f"no engine in this process ({error}): pip install 'farsum[cpu]'",
            "EngineMissing",
        )
        return
    machine, cores = native.machine(), os.cpu_count() or 1
    text = f"{native.host()[0]}, {8 * machine.vector_bytes} bits wide, {machine.threads} of {cores} threads"
    if machine.threads < cores:
        text += " (FARSUM_THREADS, the CPU set or the quota of the cgroup)"
    yield Check("cpu", "ok", text)
    yield from _guarded("cpu computes", lambda: _computing("cpu"))


def _computing(device: str) -> Iterator[Check]:
    """A tiny job on a device."""
    yield _apart(f"{device.partition(':')[0]} computes", device)


def _apart(name: str, what: str, unwell: Literal["warning", "failed"] = "failed") -> Check:
    """What farsum_server.trial finds, in a process of its own: it may crash or hang."""
    command = [sys.executable, *(["-S"] if sys.flags.no_site else []), "-m", "farsum_server.trial", what]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=APART_S)
    except subprocess.TimeoutExpired:
        return Check(name, unwell, f"{what} gave no answer for {APART_S} s: restart the machine", "Timeout")
    if done.returncode == 0:
        return Check(name, "ok", done.stdout.strip())
    kind, _, text = (done.stderr.strip().splitlines() or [""])[-1].partition(": ")
    if done.returncode == FOUND and text:
        return Check(name, unwell, text, kind)
    words = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
    return Check(
        name, unwell, f"trying it ended the process ({words}): report it, with this output", "WorkerDied"
    )


def _cache() -> Iterator[Check]:
    from farsum_kernels.backends import cache

    folder = cache.folder_of("cpu")
    if problem := cache.fault_of(folder):
        yield Check(
            "cache", "warning",
            f"kernels are compiled anew in each process: {problem}; chmod 700 {folder}, or name another with FARSUM_CACHE",
        )  # fmt: skip
        return
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-"):
        yield Check("cache", "ok", str(folder.parent))


# ── GPUs ──────────────────────────────────────────────────────────────────────────────────────────


def _gpus(wanted: list[str]) -> Iterator[Check]:
    """What stands between this environment and its GPUs. A failure only where there is a driver, or one is asked for."""
    from farsum_kernels.backends.cuda import installed

    driver, wheels = installed.driver_version(), installed.wheels()
    unwell: Literal["warning", "failed"] = "failed" if wanted or driver else "warning"
    if driver:
        yield Check("gpu driver", "ok", f"it speaks CUDA {driver[0]}.{driver[1]}")
    if not driver and not wheels and not wanted:
        yield Check("gpu", "ok", "none, and nothing installed for one")
        return
    try:
        count = installed.device_count()
        if count == 0:
            raise DeviceMissing(
                "the driver sees no GPU (nvidia-smi lists them, CUDA_VISIBLE_DEVICES chooses); "
                "the CPU computes without one: --device cpu"
            )
    except FarsumError as error:
        count = 0
        yield Check("gpu", unwell, str(error), type(error).__name__)
        if not wheels:
            return
    else:
        yield Check("gpu", "ok", f"{count} of them, through {wheels[0]} {version(wheels[0])}")
    yield _apart("nvrtc", "nvrtc", unwell)
    for device in wanted if count else ():
        if (number := int(device.partition(":")[2] or 0)) >= count:
            yield Check(
                device,
                "failed",
                f"cuda:0 to cuda:{count - 1} are there: ask for one of them",
                "DeviceMissing",
            )
    for number in range(count):
        yield from _guarded(f"cuda:{number}", lambda number=number: _gpu(number))  # type: ignore[misc]


def _gpu(number: int) -> Iterator[Check]:
    from farsum_kernels.backends.cuda.driver import CudaDriver

    driver = CudaDriver(number)
    free, total = driver.memory()
    text = f"{driver.name}, compute capability {driver.arch / 10}, {free >> 20} of {total >> 20} MiB of memory free"
    if free < FEW_BYTES:
        yield Check(f"cuda:{number}", "warning", f"{text}: nvidia-smi shows what else uses it", "DeviceFull")
    else:
        yield Check(f"cuda:{number}", "ok", text)
    yield from _computing(f"cuda:{number}")


# ── servers ───────────────────────────────────────────────────────────────────────────────────────


def _settings(config: Path | None, read: list[Settings]) -> Iterator[Check]:
    """The settings that `farsum serve` would have here; those that are valid are left in `read`."""
    try:
        from pydantic import ValidationError
        from pydantic_settings import SettingsError

        from farsum_server.local_socket import check_path
        from farsum_server.settings import check_bind, settings_from
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("farsum"):
            raise
        yield Check("settings", "ok", "this environment does not serve: 'farsum[server]' is not installed")
        return
    yield from _libraries("server", "failed")
    try:
        settings = settings_from(config)()
    except (ValidationError, SettingsError, ValueError) as error:
        from farsum_server.cli import plain

        yield Check("settings", "failed", plain(error), type(error).__name__)
        return
    check_bind(settings.host)
    if settings.memory_socket:
        check_path(settings.memory_socket)
    read.append(settings)
    yield Check(
        "settings",
        "ok",
        f"gRPC on {settings.grpc_address}, HTTP on port {settings.http_port}, device {settings.device}",
    )
    for name, port in (("port", settings.port), ("http port", settings.http_port)):
        if settings.host.startswith("unix:") and name == "port":
            continue
        with socket.socket(socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.http_host, port))
            except OSError as error:
                words = f"{port} cannot be bound ({error.strerror}): a server may be running there (farsum ping), or choose another"
                yield Check(name, "warning", words, "OSError")


def _server(target: str) -> Iterator[Check]:
    # The client's command; the server's package must not import it by name at load time.
    farsum = importlib.import_module("farsum")
    answer = farsum.ping(target)
    devices = ", ".join(f"{d['kind']} {d['name']} ({d['restarts']} restarts)" for d in answer["devices"])
    text = f"{target}: farsum {answer['version']}, {answer['round_trip_s'] * 1e3:.2f} ms; {devices}"
    if answer["version"] != farsum.__version__:
        yield Check(
            "server",
            "warning",
            f"{text}; this is {farsum.__version__}: install one version on both sides",
            "ProtocolMismatch",
        )
    elif not answer["ready"]:
        yield Check(
            "server",
            "failed",
            f"{text}; it is not ready: no device of it answers, its log says why",
            "WorkerDied",
        )
    elif any(d["restarts"] for d in answer["devices"]):
        yield Check(
            "server",
            "warning",
            f"{text}: its workers died and were started again, its log says why",
            "WorkerDied",
        )
    else:
        yield Check("server", "ok", text)


def doctor(target: str | None, config: Path | None, as_json: bool) -> int:
    """Print every check, a line each or as JSON; 1 if one failed, else 0."""
    # What is found is said here, once.
    logging.getLogger("farsum").setLevel(logging.CRITICAL)
    checks = []
    for check in examine(target, config):
        checks.append(check)
        if not as_json:
            print(f"{check.state:<8} {check.name:<14} {' '.join(check.text.split())}", flush=True)
    failed = any(check.state == "failed" for check in checks)
    if as_json:
        print(json.dumps({"failed": failed, "checks": [asdict(check) for check in checks]}, indent=2))
    return int(failed)
