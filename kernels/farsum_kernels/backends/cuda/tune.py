"""Which layout is fastest for a job, found by trying them on the device, and remembered in a table on disk.

Off unless FARSUM_TUNE=1. A table belongs to one device, one version of farsum and one of NVRTC; within it the same job
has the same plan, and so the same bits, on every machine that has the table.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path

from farsum_kernels.backends import cache
from farsum_kernels.backends.cuda import nvrtc
from farsum_kernels.job import Extent, Spec

log = logging.getLogger("farsum.tune")

ROUNDS = 2  # the first one loads the kernel
MARGIN = 0.97  # what is hardly faster than the layout that is chosen unasked is not worth another order of summation


def wanted() -> bool:
    """Does the environment ask for it?"""
    return os.environ.get("FARSUM_TUNE", "0") not in ("", "0")


class Tuner:
    """The table of one device.

    name   of the device
    """

    def __init__(self, name: str) -> None:
        try:
            own = version("farsum")
        except PackageNotFoundError:  # run from its sources
            own = "sources"
        words = f"{name}-{own}-nvrtc{'.'.join(map(str, nvrtc.version()))}"
        folder = cache.cache_folder("tuned")
        self._path: Path | None = folder / (re.sub(r"[^\w.-]+", "-", words) + ".json") if folder else None
        self._known: dict[str, int] = self._read()

    def layout(self, spec: Spec, over_j: Extent, untuned: int, trials: Sequence[Callable[[], float]]) -> int:
        """The number of the fastest layout for such jobs: as it was found before, or tried now.

        untuned   the number of the one that is taken otherwise
        trials    for each layout, what runs a piece of the job and gives its seconds for each pair
        """
        key = _key(spec, over_j)
        place = self._known.get(key)
        if place is None or place >= len(trials):
            seconds = [min(trial() for _ in range(ROUNDS)) for trial in trials]
            place = min(range(len(trials)), key=seconds.__getitem__)
            if not seconds[place] < MARGIN * seconds[untuned]:
                place = untuned
            self._keep(key, place)
        return place

    def _keep(self, key: str, place: int) -> None:
        # Others may have written since: what they found stays, and the file is replaced whole.
        self._known = {**self._read(), **self._known, key: place}
        if self._path is None:
            return
        try:
            with tempfile.NamedTemporaryFile(
                "w", dir=self._path.parent, prefix=".new-", delete=False
            ) as file:
                json.dump(self._known, file, indent=1, sort_keys=True)
            os.replace(file.name, self._path)
        except OSError as error:
            log.warning("what tuning found is not kept on disk: %s", error)

    def _read(self) -> dict[str, int]:
        """The table on disk; nothing of one that is no table."""
        try:
            found = json.loads(self._path.read_text()) if self._path else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("a damaged table of layouts is made anew: %s", error)
            return {}
        if not isinstance(found, dict):
            return {}
        return {k: v for k, v in found.items() if isinstance(v, int) and v >= 0}


def _key(spec: Spec, over_j: Extent) -> str:
    """A reduction and a class of sizes: those between two powers of two are alike."""
    sizes = (over_j.m, over_j.n, prod(over_j.batch))
    return f"{spec.digest.hex()}-{'-'.join(str(size.bit_length()) for size in sizes)}"
