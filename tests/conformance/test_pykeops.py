"""The values of pykeops: from the golden file always, from pykeops itself where it is asked for.

float64 agrees to 1e-12 of the largest value, float32 to the rounding errors of both: that of pykeops is
measured against its own float64, farsum's own share is OURS.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

import farsum.numpy
from tests.golden import make_pykeops as golden

OURS = 32 * float(np.finfo(np.float32).eps)
CASES = pytest.mark.parametrize("case", golden.CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def held() -> Mapping[str, np.ndarray]:
    return golden.read()


def scale(a: np.ndarray) -> float:
    return float(np.abs(a).max(initial=1e-30))


def agree(case: golden.Case, theirs: Mapping[str, tuple[np.ndarray, ...]]) -> None:
    """farsum's answers in both dtypes against `theirs`."""
    wide, narrow = (golden.ask(farsum.numpy.Genred, case, dtype) for dtype in golden.DTYPES)
    for got, want in zip(wide, theirs["float64"], strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        if got.dtype.kind == "i":
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * scale(want))
    for got, want, exact in zip(narrow, theirs["float32"], theirs["float64"], strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        if got.dtype.kind == "i":
            np.testing.assert_array_equal(got, want)
        else:
            their_error = float(np.abs(want - exact).max())
            np.testing.assert_allclose(got, want, rtol=0, atol=their_error + OURS * scale(exact))


@CASES
def test_golden(case: golden.Case, held: Mapping[str, np.ndarray]) -> None:
    agree(case, {dtype: _answers(held, case, dtype) for dtype in golden.DTYPES})


def _answers(held: Mapping[str, np.ndarray], case: golden.Case, dtype: str) -> tuple[np.ndarray, ...]:
    keys = [golden.key(case, dtype, place) for place in range(2)]
    assert keys[0] in held, f"{case.name} is not in {golden.PATH.name}: run tests/golden/make_pykeops.py"
    return tuple(held[k] for k in keys if k in held)


def test_the_golden_file_holds_the_cases_and_no_others(held: Mapping[str, np.ndarray]) -> None:
    assert {name.split(".")[0] for name in held} - {"versions"} == {case.name for case in golden.CASES}
    assert str(held["versions"][0]).startswith("pykeops 2.3")
    assert golden.PATH.stat().st_size < 200_000


@pytest.mark.pykeops
@pytest.mark.filterwarnings("ignore")
@CASES
def test_live(case: golden.Case) -> None:
    try:
        from pykeops.numpy import Genred
    except ImportError as error:
        pytest.fail(
            f"pykeops is not importable ({error}): pip install 'farsum[bench]', and have a C++ compiler"
        )
    agree(case, {dtype: golden.ask(Genred, case, dtype) for dtype in golden.DTYPES})
