"""A machine without a GPU: asking for one is an error that says what to do, at each place where one can ask."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from farsum_kernels.backends.cuda.installed import device_count
from farsum_kernels.compile import backend_for
from farsum_kernels.errors import DeviceMissing
from farsum_server.engine import LocalEngine


def no_device() -> bool:
    try:
        return device_count() == 0
    except DeviceMissing:
        return True


pytestmark = pytest.mark.skipif(not no_device(), reason="this machine has a CUDA device")


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(DeviceMissing, match="--device cpu"):
        backend_for("cuda:0")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", ""])
def test_a_word_that_names_no_device(device: str) -> None:
    with pytest.raises(DeviceMissing, match="there are 'cpu' and 'cuda:0'"):
        backend_for(device)


def test_the_embedded_engine_never_switches_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARSUM_DEVICE", "cuda:0")
    with pytest.raises(DeviceMissing, match="--device cpu"):
        LocalEngine()


def test_a_server_without_its_device_does_not_start() -> None:
    command = [sys.executable, "-m", "farsum_server.cli", "serve", "--port", "0", "--http-port", "0"]
    done = subprocess.run(
        [*command, "--device", "cuda:0"], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "FARSUM_STORE_BYTES": str(64 << 20)},
    )  # fmt: skip
    assert done.returncode != 0
    assert "--device cpu" in done.stdout + done.stderr
