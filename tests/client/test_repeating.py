"""Small calls in this process that come again: what is bound once gives the numbers of what is bound anew."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from farsum_kernels.errors import DeadlineExceeded
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.job import RANGES, Options, Spec
from farsum_server.engine import LocalEngine, LocalPrepared

X, Y, B = variable(0, 3, I), variable(1, 3, J), variable(2, 2, J)
DISTANCE = node("SqDist", X, Y)
SUM = Spec(node("Mult", node("Exp", node("Minus", DISTANCE)), B), "Sum", 1, "float32")
SPECS = {
    "sum": SUM,
    "nearest": Spec(DISTANCE, "KMin_ArgKMin", 0, "float64", None, 2),
    "half": Spec(DISTANCE, "Sum", 1, "float16"),
}


def clouds(spec: Spec, seed: int, m: int = 20, n: int = 30) -> dict[int, Any]:
    rng = np.random.default_rng(seed)
    shapes = {0: (m, 3), 1: (n, 3), 2: (n, 2)}
    return {k: rng.random(shapes[k]).astype(spec.dtype) for k in spec.inputs}


def anew(spec: Spec, arrays: dict[int, Any], options: Options = Options()) -> tuple[Any, ...]:
    return LocalEngine().prepare(spec).run(arrays, options).values


def repeats(prepared: LocalPrepared) -> bool:
    return prepared._repeating is not None and prepared._repeating._repeated is not None


@pytest.mark.parametrize("name", SPECS)
def test_the_same_numbers_and_results_of_their_own(name: str) -> None:
    spec, prepared = SPECS[name], LocalEngine().prepare(SPECS[name])
    seen = []
    for seed in (0, 1, 2, 3, 0):
        found = prepared.run(clouds(spec, seed))
        seen.append((found.values, anew(spec, clouds(spec, seed))))
        assert found.plan.keys() == LocalEngine().prepare(spec).run(clouds(spec, 0)).plan.keys()
    for values, want in seen:  # none was written over by a later call
        for one, other in zip(values, want, strict=True):
            assert_array_equal(one, other)
            assert one.flags.writeable and one.dtype == other.dtype
    assert repeats(prepared) is (name != "half")


def test_other_arrays_are_bound_anew() -> None:
    prepared, arrays = LocalEngine().prepare(SUM), clouds(SUM, 0)
    for _ in range(3):
        prepared.run(arrays)
    assert repeats(prepared)
    turned = {n: np.asfortranarray(a) for n, a in arrays.items()}
    strided = {n: np.repeat(a, 2, axis=0)[::2] for n, a in arrays.items()}
    for given in (turned, strided, clouds(SUM, 1, m=21), clouds(SUM, 2, n=1), arrays):
        assert_array_equal(prepared.run(given).values[0], anew(SUM, given)[0])
    blocks = [[[0, 20]], [1], [[0, 10]], [[0, 30]], [1], [[0, 20]]]
    ranges = {place: np.array(b, np.int64) for place, b in zip(RANGES, blocks, strict=True)}
    for _ in range(3):
        assert_array_equal(prepared.run(arrays | ranges).values[0], anew(SUM, arrays | ranges)[0])


def test_large_results_and_large_jobs_are_bound_anew() -> None:
    for sizes in ((9000, 5), (2000, 2000)):
        prepared, arrays = LocalEngine().prepare(SUM), clouds(SUM, 0, *sizes)
        for _ in range(3):
            prepared.run(arrays)
        assert not repeats(prepared)


def test_threads_at_once() -> None:
    prepared = LocalEngine().prepare(SUM)
    want = [anew(SUM, clouds(SUM, seed))[0] for seed in range(4)]

    def ask(seed: int) -> None:
        arrays = clouds(SUM, seed)
        for _ in range(200):
            assert_array_equal(prepared.run(arrays).values[0], want[seed])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))


def test_options() -> None:
    shares: list[float] = []
    prepared, arrays = LocalEngine().prepare(SUM), clouds(SUM, 0)
    for _ in range(4):
        prepared.run(arrays, Options(progress=shares.append))
    assert shares.count(1.0) == 4
    with pytest.raises(DeadlineExceeded):
        prepared.run(arrays, Options(deadline_s=0.0))


def test_nothing_of_a_call_is_kept() -> None:
    prepared = LocalEngine().prepare(SUM)
    for _ in range(3):
        arrays = clouds(SUM, 0)
        prepared.run(arrays)
    assert repeats(prepared)
    gone = [weakref.ref(a) for a in arrays.values()]
    del arrays
    assert not any(ref() is not None for ref in gone)


def test_an_interrupt_gives_up_what_a_thread_may_still_write(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, arrays = LocalEngine().prepare(SUM), clouds(SUM, 0)
    for _ in range(3):
        want = prepared.run(arrays).values[0]
    repeating = prepared._repeating
    assert repeating is not None and repeating._repeated is not None

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repeating._repeated, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared.run(arrays)
    assert repeating._repeated is None
    assert_array_equal(prepared.run(arrays).values[0], want)
