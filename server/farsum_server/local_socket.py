"""A Unix socket for one user of this machine: where it may lie, how it is taken, who is at the other end. Never accepts."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import time
from pathlib import Path

from farsum_kernels.errors import ServerUnreachable, UnsafeBind

BACKLOG = 64
# What Linux has room for in the address of a socket.
MAX_PATH_BYTES = 107
# A server that starts holds the directory for less than a millisecond.
LOCK_S = 2.0


def check_path(path: str) -> Path:
    """The absolute path, if nobody else can put a socket of his own there.

    Raises UnsafeBind.
    """
    if not hasattr(os, "memfd_create") or not hasattr(socket, "SO_PEERCRED"):
        raise UnsafeBind("arrays go through memory on Linux only; leave out --memory-socket")
    place = Path(path).expanduser().absolute()
    folder = place.parent
    try:
        found = folder.stat()
    except OSError as error:
        raise UnsafeBind(f"--memory-socket {path}: {folder}: {error.strerror}") from error
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        or found.st_uid not in (0, os.geteuid())
    ):
        raise UnsafeBind(
            f"--memory-socket {path}: {folder} is not a directory of yours that others cannot write to; "
            f"make one with `mkdir -m 700`, or use the one of XDG_RUNTIME_DIR"
        )
    if len(os.fsencode(place)) > MAX_PATH_BYTES:
        raise UnsafeBind(f"--memory-socket {place}: a socket's path has at most {MAX_PATH_BYTES} bytes")
    return place


def listen(path: Path) -> socket.socket:
    """A socket for this user alone. What a server that was killed has left there is removed.

    Raises ServerUnreachable when something else is there.
    """
    taken = f"cannot listen on {path} for memory"
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        _lock(folder, taken)  # two servers that start at once do not remove each other's socket
        if path.is_symlink() or path.exists():
            if path.is_symlink() or not path.is_socket():
                raise ServerUnreachable(f"{taken}: there is a file of that name, which is no socket")
            if answers(path):
                raise ServerUnreachable(f"{taken}: another server does; see --memory-socket")
            path.unlink()
        listener.bind(os.fspath(path))
        path.chmod(0o600)  # nobody can connect before it listens
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if isinstance(error, ServerUnreachable):
            raise
        raise ServerUnreachable(f"{taken}: {error.strerror}; see --memory-socket") from error
    finally:
        os.close(folder)
    return listener


def _lock(folder: int, taken: str) -> None:
    """Whoever can read the directory can lock it, so it is not waited for without end."""
    end = time.monotonic() + LOCK_S
    while True:
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                text = f"{taken}: another process keeps its directory locked; use one of mode 700"
                raise ServerUnreachable(text) from None
            time.sleep(0.01)


def answers(path: Path) -> bool:
    """Does anybody listen there?"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            pass  # busy, or of another kind: somebody does
    return True


def peer_of(link: socket.socket) -> int:
    """The user at the other end."""
    _, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)
