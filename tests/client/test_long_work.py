"""Work that takes seconds: it shows itself on a terminal, keeps deadlines, and ends at once when interrupted."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress

import pytest

JOB = """
import sys
import numpy as np
import farsum
from farsum.numpy import Vi, Vj
small = np.random.default_rng(0).random((50, 3))
Vi(small).sqdist(Vj(small)).sqrt().exp().log().sum(axis=1)  # compiled
print("go", flush=True)
rows = {rows}
x = np.random.default_rng(0).random((rows, 3))
try:
    Vi(x).sqdist(Vj(x)).sqrt().exp().log().sum(axis=1, deadline_s={deadline})
except farsum.errors.DeadlineExceeded as error:
    print("late", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
LONG = 2_000_000  # minutes of work


def on_a_terminal(code: str, **environment: str) -> str:
    """What a script writes to a terminal on its stderr."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | environment)
    os.close(theirs)
    written = b""
    with suppress(OSError):  # how a terminal says that nobody writes to it any more
        while chunk := os.read(ours, 4096):
            written += chunk
    os.close(ours)
    assert process.wait(30) == 0
    assert process.stdout
    process.stdout.close()
    return written.decode()


def test_a_bar_after_a_second() -> None:
    shown = on_a_terminal(JOB.format(rows=LONG, deadline=2.5))
    assert "farsum" in shown and "%|" in shown
    assert shown.rstrip(" ").endswith("\r"), "the bar is taken away at the end"


@pytest.mark.parametrize(
    ("code", "environment"),
    [
        (JOB.format(rows=50, deadline=None), {}),
        (JOB.format(rows=LONG, deadline=1.6), {"FARSUM_PROGRESS": "0"}),
        (JOB.format(rows=LONG, deadline=1.6).replace("import farsum\n", "import farsum\nfarsum.show_progress(False)\n"), {}),
    ],
    ids=["short work", "by the environment", "by a call"],
)  # fmt: skip
def test_no_bar(code: str, environment: dict[str, str]) -> None:
    assert on_a_terminal(code, **environment) == ""


def test_no_bar_where_nobody_watches() -> None:
    code = JOB.format(rows=LONG, deadline=1.6)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["go", "late"], "")


def test_ctrl_c_returns_at_once() -> None:
    code = JOB.format(rows=LONG, deadline=None)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "go\n"
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert process.stdout.read() == "interrupted\n"
        assert process.wait(30) == 0
        assert time.monotonic() - begun < 5.0, "a slice is a tenth of a second"
