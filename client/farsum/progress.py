"""Long work shows itself: a bar on the terminal, from the first second on."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from farsum_kernels.job import Options

PATIENCE_S = 1.0

# Off with FARSUM_PROGRESS=0 or farsum.show_progress(False); never shown where nobody watches.
enabled = os.environ.get("FARSUM_PROGRESS", "1").lower() not in ("0", "false", "no", "off")

_QUIET = Options()


class Bar:
    """A progress callback. It draws nothing before PATIENCE_S have passed, and loads tqdm only then."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._bar: Any = None

    def __call__(self, share: float) -> None:
        if self._bar is None:
            if share >= 1.0 or time.monotonic() - self._start < PATIENCE_S:
                return
            from tqdm import tqdm

            form = "farsum {percentage:3.0f}%|{bar}| {elapsed} of about {remaining} more"
            self._bar = tqdm(total=1.0, bar_format=form, leave=False, file=sys.stderr, smoothing=0)
            self._bar.start_t -= time.monotonic() - self._start
        self._bar.update(share - self._bar.n)
        if share >= 1.0:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def done(options: Options) -> None:
    """Take the bar away, however the job ended."""
    if isinstance(options.progress, Bar):
        options.progress.close()


def watched() -> bool:
    """Is somebody there to see a bar?"""
    return enabled and sys.stderr is not None and sys.stderr.isatty()


def options(deadline_s: float | None = None, keep: bool = False) -> Options:
    """How to run a job: with a bar if it is watched."""
    if watched():
        return Options(deadline_s, Bar(), keep)
    return _QUIET if deadline_s is None and not keep else Options(deadline_s, keep=keep)
