"""GeomLoss and GPyTorch on our engine and on pykeops: the same values and gradients. See downstream.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tensors.downstream import CASES

# pykeops compiles some forty formulas, about ten seconds each, the first time.
pytestmark = [pytest.mark.slow, pytest.mark.pykeops, pytest.mark.timeout(3600)]

SCRIPT = Path(__file__).with_name("downstream.py")
NUMBERS = [(library, case) for library, cases in CASES.items() for case in cases]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downstream")


@cache
def numbers(library: str, folder: Path, *options: str) -> Mapping[str, np.ndarray]:
    """What the library computes, all of its cases in one process."""
    path = folder / f"{library}{len(options)}.npz"
    command = [sys.executable, str(SCRIPT), library, str(path), *options]
    # One thread each: the numbers are small, and threads that wait for each other take most of the time.
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(path) as held:
        return dict(held)


@pytest.mark.parametrize(("library", "case"), NUMBERS, ids=lambda name: name)
def test_the_numbers_are_those_of_pykeops(library: str, case: str, folder: Path) -> None:
    ours, theirs = numbers(library, folder, "--alias"), numbers(library, folder)
    assert str(ours["engine"]).startswith("farsum."), "these are not our numbers"
    assert str(theirs["engine"]).startswith("pykeops."), "these are not those of pykeops"
    found, wanted = ({n: v for n, v in all_.items() if n.startswith(f"{case}: ")} for all_ in (ours, theirs))
    assert set(found) == set(wanted) and len(wanted) >= 2
    assert f"{case}: error" not in wanted, (found, wanted)
    for name, want in wanted.items():
        got = found[name]
        assert (got.dtype, got.shape) == (want.dtype, want.shape), name
        near = tolerance(library, name, want.dtype) * np.abs(want).max()
        np.testing.assert_allclose(got, want, rtol=0, atol=near, err_msg=name)


def tolerance(library: str, name: str, dtype: np.dtype[Any]) -> float:
    """How far two engines may be apart, as a share of the largest number.

    What GPyTorch finds by conjugate gradients is as good as those are; in float32 rounding counts, most of all
    in a gradient that is the difference of large terms and in what follows it step by step.
    """
    if library == "gpytorch" and ": exact" not in name:
        return 1e-4
    return 1e-9 if dtype == np.float64 else 5e-4
