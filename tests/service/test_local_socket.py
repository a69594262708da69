"""Where the socket beside gRPC may lie, and whom it serves."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from farsum.remote import RemoteEngine
from farsum.session import Session
from farsum_kernels.errors import ServerUnreachable, UnsafeBind
from farsum_server.local_socket import check_path, listen
from tests.service.server import running


def test_directories_that_others_can_write_to(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o1777)
    done = subprocess.run(
        [sys.executable, "-m", "farsum_server.cli", "serve", "--port", "0", "--memory-socket", str(tmp_path / "s")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "others cannot write to" in done.stderr and "Traceback" not in done.stderr
    os.chmod(tmp_path, 0o770)  # others of its group
    with pytest.raises(UnsafeBind, match="others cannot write to"):
        check_path(str(tmp_path / "s"))
    os.chmod(tmp_path, 0o700)
    assert check_path(str(tmp_path / "s")) == tmp_path / "s"
    for path, says in (
        (tmp_path / "none" / "s", "No such file"),
        (Path(__file__) / "s", "Not a directory|not a directory"),
        (tmp_path / ("s" * 120), "at most 107 bytes"),
    ):
        with pytest.raises(UnsafeBind, match=says):
            check_path(str(path))
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, 65534)
        with pytest.raises(UnsafeBind, match="directory of yours"):
            check_path(str(tmp_path / "s"))


def test_what_is_there_already(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.write_text("mine")
    with pytest.raises(ServerUnreachable, match="no socket"):
        listen(path)
    assert path.read_text() == "mine"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ServerUnreachable, match="no socket"):
        listen(path)
    path.unlink()
    with listen(path) as first:
        with pytest.raises(ServerUnreachable, match="another server"):
            listen(path)
        assert path.is_socket() and first.fileno() > 0
    with listen(path):  # what the first one left
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_directory_that_somebody_keeps_locked(tmp_path: Path) -> None:
    """Who may read a directory may lock it; a server that waited for that would hang at its start."""
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.raises(ServerUnreachable, match="keeps its directory locked"):
        listen(tmp_path / "socket")
    os.close(folder)
    listen(tmp_path / "socket").close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_not_served(tmp_path: Path) -> None:
    with running("--memory-socket", str(tmp_path / "socket")) as server:
        os.chmod(tmp_path / "socket", 0o666)
        folder: Path = tmp_path
        while folder.stat().st_mode & 0o005 != 0o005:
            os.chmod(folder, 0o755)
            folder = folder.parent
        script = (
            "import os, socket, sys\nos.setgid(65534)\nos.setuid(65534)\n"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\ns.settimeout(10)\n"
            "s.connect(sys.argv[1])\nprint(s.recv(10))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "socket")],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == "b''\n", done.stderr
        with RemoteEngine(server.target, memory=True) as engine:
            assert isinstance(engine.session, Session) and engine.ping()["ready"]
