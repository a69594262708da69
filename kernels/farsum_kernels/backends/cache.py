"""Compiled kernels on disk: content-addressed, written whole or not at all, verified before they are used.

Many processes may share a folder. Machine code is loaded from it, so it belongs to one user and is closed to all
others, or it is not used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("farsum.cache")

_DIGEST_BYTES = 16
MAX_BYTES = 256 << 20


def kept(backend: str, key: str, make: Callable[[], bytes]) -> bytes:
    """The code of a kernel, from the folder of its backend or made now and left there."""
    folder = cache_folder(backend)
    if folder and (code := _read(folder / key)):
        return code
    code = make()
    if folder:
        _write(folder / key, code)
    return code


def cache_folder(backend: str) -> Path | None:
    """Where a backend keeps its kernels, made if it is new; None if that is not safe to use."""
    folder = folder_of(backend)
    if problem := fault_of(folder):
        log.warning("kernels are not kept on disk: %s", problem)
        return None
    return folder


def folder_of(backend: str) -> Path:
    """The folder of a backend: under FARSUM_CACHE, else in the user's cache."""
    root = os.environ.get("FARSUM_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "farsum"
    )
    return Path(root, backend)


def fault_of(folder: Path) -> str:
    """Why a folder, made if it is new, is not safe to load machine code from; "" if it is."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        return str(error)
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077):
        return f"{folder} is open to other users (wanted: mode 0700)"
    return ""


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    code = data[_DIGEST_BYTES:]
    if hashlib.blake2b(code, digest_size=_DIGEST_BYTES).digest() != data[:_DIGEST_BYTES]:
        log.warning("a damaged kernel is compiled again: %s", path.name)
        return None
    return code


def _write(path: Path, code: bytes) -> None:
    """Write an entry whole or not at all, whoever else is writing it."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
            file.write(hashlib.blake2b(code, digest_size=_DIGEST_BYTES).digest() + code)
        os.replace(file.name, path)
        _prune(path.parent)
    except OSError as error:
        log.warning("a kernel is not kept on disk: %s", error)


def _prune(folder: Path) -> None:
    """Forget the entries that were written longest ago, past the size limit."""
    entries = sorted((e.stat().st_mtime, e.stat().st_size, e.path) for e in os.scandir(folder))
    excess = sum(size for _, size, _ in entries) - MAX_BYTES
    for _, size, path in entries:
        if excess <= 0:
            break
        os.unlink(path)
        excess -= size
