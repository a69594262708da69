"""LazyTensors among other things: arrays of every layout, edits in place, copies, threads, processes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from farsum.numpy import Genred, LazyTensor, Pm, Vi, Vj
from farsum_kernels.errors import FarsumError

mark = pytest.mark
rng = np.random.default_rng(0)
x, y, p = rng.random((5, 3)), rng.random((7, 3)), rng.random(3)
z = x + 1j * x[::-1]

# ── arrays as they come ───────────────────────────────────────────────────────────────────────────


def locked(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def spread(a: np.ndarray) -> np.ndarray:
    wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan, a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def unaligned(a: np.ndarray) -> np.ndarray:
    raw = np.zeros(a.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(a.tobytes(), np.uint8)
    return raw[1:].view(a.dtype).reshape(a.shape)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda a: a,
    "read-only": locked,
    "columns first": np.asfortranarray,
    "every second number": spread,
    "every second row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "transposed": lambda a: a.T.copy().T,
    "unaligned": unaligned,
    "bytes": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@mark.parity("L-25")
@mark.parametrize("layout", list(LAYOUTS.values()), ids=list(LAYOUTS))
@mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_every_layout_in_memory_gives_the_same(
    layout: Callable[[np.ndarray], np.ndarray], dtype: Any
) -> None:
    a, b, q = ((v * (1 - 2j) if np.dtype(dtype).kind == "c" else v).astype(dtype) for v in (x, y, p))
    a3, b3 = layout(a)[:, None], layout(b)[None]
    for lazy in (
        (Vi(layout(a)) - Vj(layout(b))) * Pm(layout(q)),
        (LazyTensor(a3) - LazyTensor(b3)) * layout(q),
    ):
        assert_allclose(lazy.sum(axis=1), ((a[:, None] - b) * q).sum(1), rtol=1e-5)
    scalar: Any = (Vi(layout(a)) * Vj(layout(b))).sum(-1)
    assert_allclose(scalar @ layout(b), (a @ b.T) @ b, rtol=1e-4)


@mark.parity("L-25")
def test_rows_that_share_their_memory() -> None:
    same = np.broadcast_to(x[0], (5, 3))
    assert_allclose((Vi(same) - Vj(y)).sum(axis=1), (same[:, None] - y).sum(1))
    windows = np.lib.stride_tricks.sliding_window_view(y[:, 0], 3)
    assert_allclose(Vi(windows).sqdist(Vj(y)).sum(axis=1)[:, 0], ((windows[:, None] - y) ** 2).sum((1, 2)))


@mark.parity("L-25")
def test_foreign_byte_orders_are_read_or_refused() -> None:
    foreign = x.astype(x.dtype.newbyteorder())
    try:
        got = (Vi(foreign) - Vj(y)).sum(axis=1)
    except FarsumError:
        return
    assert_allclose(got, (x[:, None] - y).sum(1))


@mark.parity("L-25")
def test_read_only_arrays_stay_as_they_are() -> None:
    a, b = locked(x), locked(y)
    lazy: Any = (-Vi(a).sqdist(Vj(b))).exp()
    lazy.sum(axis=1)
    lazy @ b
    lazy.dense()
    assert_array_equal(a, x)
    assert_array_equal(b, y)
    assert not a.flags.writeable


def test_results_belong_to_the_caller() -> None:
    lazy: Any = Vi(x) * Pm(2)
    first = lazy.sum(axis=1)
    first[...] = 0
    assert_allclose(lazy.sum(axis=1), 2 * x)
    whole = Vi(x).sum(axis=1)
    whole += 1
    assert not np.shares_memory(whole, x)
    assert_allclose(Vi(x).sum(axis=1), x)


# ── edits in place ────────────────────────────────────────────────────────────────────────────────

EDITED: list[tuple[str, Callable[[Any, Any, Any], Any], Callable[[Any, Any, Any], Any]]] = [
    ("rows", lambda a, b, q: Vi(a) - Vj(b), lambda a, b, q: a[:, None] - b),
    (
        "three axes",
        lambda a, b, q: LazyTensor(a[:, None]) * LazyTensor(b[None]),
        lambda a, b, q: a[:, None] * b,
    ),
    ("parameter", lambda a, b, q: (Vi(a) - Vj(b)) * Pm(q), lambda a, b, q: (a[:, None] - b) * q),
    ("raw parameter", lambda a, b, q: (Vi(a) - Vj(b)) * q, lambda a, b, q: (a[:, None] - b) * q),
    ("transpose", lambda a, b, q: (Vi(b) * Vj(a)).T, lambda a, b, q: a[:, None] * b),
    ("one array", lambda a, b, q: Vi(a) - Vj(a), lambda a, b, q: a[:, None] - a),
    ("copied object", lambda a, b, q: copy.copy(Vi(a) - Vj(b)), lambda a, b, q: a[:, None] - b),
]


DTYPES = [
    ("float64",) * 3,
    ("float32",) * 3,
    ("float32", "float64", "float64"),
    ("complex128", "float64", "float64"),
]


def check_edits(build: Any, dense: Any, a: np.ndarray, b: np.ndarray, q: np.ndarray) -> None:
    lazy = build(a, b, q)
    later = lazy.sum(axis=1, call=False)
    for _ in range(3):
        for got in (later(), lazy.sum(axis=1)):
            assert_allclose(got, dense(a, b, q).sum(1), rtol=1e-4, atol=1e-5)
        a[1] *= 2
        b[0] -= 1
        q += 0.5


@mark.parity("L-26", "L-170")
@mark.parametrize(("build", "dense"), [case[1:] for case in EDITED], ids=[case[0] for case in EDITED])
@mark.parametrize("dtypes", DTYPES, ids=lambda names: names[0])
def test_deferred_calls_see_edits(build: Any, dense: Any, dtypes: tuple[str, str, str]) -> None:
    check_edits(build, dense, *(v.astype(d) for v, d in zip((x, y, p), dtypes, strict=True)))


@mark.parity("L-25", "L-26")
@mark.parametrize(
    "layout", ["columns first", "every second number", "every second row", "backwards", "unaligned"]
)
@mark.parametrize("dtypes", DTYPES, ids=lambda names: names[0])
def test_deferred_calls_see_edits_of_any_layout(dtypes: tuple[str, str, str], layout: str) -> None:
    arrays = (LAYOUTS[layout](v.astype(d)) for v, d in zip((x, y, p), dtypes, strict=True))
    check_edits(lambda a, b, q: (Vi(a) - Vj(b)) * q, lambda a, b, q: (a[:, None] - b) * q, *arrays)


@mark.parity("L-26")
def test_numbers_and_lists_are_taken_as_they_were() -> None:
    numbers = [1.0, 2.0, 3.0]
    lazy: Any = Vi(x) * numbers
    numbers[0] = 100.0
    assert_allclose(lazy.sum(axis=1), x * [1, 2, 3])


# ── copies ────────────────────────────────────────────────────────────────────────────────────────

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)
COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(lambda made, n=n: pickle.loads(pickle.dumps(made, protocol=n)) for n in PROTOCOLS),
]
duplicates = mark.parametrize("duplicate", COPIES, ids=["copy", "deepcopy", *map(str, PROTOCOLS)])


@mark.parity("X-54", "L-56", "G-13")
@duplicates
def test_copies_go_on_living(duplicate: Callable[[Any], Any]) -> None:
    y_j: Any = Vj(y)
    lazy: Any = (Vi(x) - y_j) * [1.0, 2.0, 3.0]
    again, want = duplicate(lazy), (x[:, None] - y) * [1, 2, 3]
    assert_allclose((again + lazy).sum(axis=1), 2 * want.sum(1))
    assert_allclose(again.T.sum(axis=1), want.sum(0))
    assert_allclose((again * z[:, None]).sum(axis=1), (want * z[:, None]).sum(1))
    assert_allclose(abs(duplicate(Vi(z) * y_j)).sum(axis=0), np.abs(z[:, None] * y).sum(0))
    formula = duplicate(Genred("SqDist(x,y)", ["x = Vi(3)", "y = Vj(3)"], axis=1))
    assert_allclose(formula(x, y), ((x[:, None] - y) ** 2).sum((1, 2))[:, None])


@mark.parity("X-54")
@duplicates
def test_variables_shared_by_a_container_stay_shared(duplicate: Callable[[Any], Any]) -> None:
    x_i: Any = Vi(x)
    again = duplicate({"variable": x_i, "formula": (x_i * x_i - Vj(y)).sqnorm2()})
    got = again["formula"].grad(again["variable"], 1)
    assert_allclose(got.sum(axis=1), (4 * x[:, None] * (x[:, None] ** 2 - y)).sum(1))
    assert len((again["formula"] * again["variable"]).variables) == 2


# ── threads and processes ─────────────────────────────────────────────────────────────────────────


def in_threads(work: Callable[[int], float], rounds: int = 64) -> float:
    with ThreadPoolExecutor(8) as pool:
        return max(pool.map(work, range(rounds)))


def test_threads_build_and_reduce_at_once() -> None:
    def one(seed: int) -> float:
        local = np.random.default_rng(seed)
        a, b = local.random((20, 3)), local.random((30, 3))
        # Eight different formulas, each new to every thread that comes first.
        lazy: Any = (-Vi(a).sqdist(Vj(b)) * (2 + seed % 8)).exp() ** (1 + seed % 3)
        dense = np.exp(-((a[:, None] - b) ** 2).sum(-1) * (2 + seed % 8)) ** (1 + seed % 3)
        values, indices = lazy.max_argmax(axis=0)
        assert_array_equal(indices[:, 0], dense.argmax(0))
        assert_allclose(values[:, 0], dense.max(0))
        return float(np.abs(lazy @ b - dense @ b).max())

    assert in_threads(one) < 1e-12


def test_threads_share_one_object() -> None:
    a, b = rng.random((300, 3)), rng.random((400, 3))
    lazy: Any = (-Vi(a).sqdist(Vj(b))).exp()
    want = [lazy.sum(axis=0), lazy.sum(axis=1), lazy.T @ a, lazy.logsumexp(axis=1)]
    uses: list[Callable[[], Any]] = [
        lambda: lazy.sum(axis=0), lambda: lazy.sum(axis=1), lambda: lazy.T @ a, lambda: lazy.logsumexp(axis=1),
    ]  # fmt: skip
    assert in_threads(lambda n: float(np.abs(uses[n % 4]() - want[n % 4]).max())) == 0.0


FORK = """
import multiprocessing
import numpy as np
from farsum.numpy import Vi, Vj

a = np.random.default_rng(0).random((3000, 3))
K = (-Vi(a).sqdist(Vj(a))).exp()
later = K.sum(axis=1, call=False)

def one(n):
    known = later() if n % 2 else K.sum(axis=1)
    fresh = (K * (n + 2)).sum(axis=1) / (n + 2)  # compiled in the child
    return known, fresh, (Vi(a[:50]) - Vj(a[:60])).sum(axis=1)

want = K.sum(axis=1)
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map(one, range(4))
for known, fresh, small in found:
    assert np.array_equal(known, want)
    np.testing.assert_allclose(fresh, want, rtol=1e-12)
    np.testing.assert_allclose(small, (a[:50, None] - a[:60]).sum(1), atol=1e-12)
assert np.array_equal(later(), want)  # the parent goes on
print("done")
"""


def test_forked_children_compute_with_an_engine_of_their_own(tmp_path: Any) -> None:
    script = tmp_path / "children.py"
    script.write_text(FORK)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=90, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_objects_travel_to_other_processes(tmp_path: Any) -> None:
    lazy: Any = (Vi(x) - Vj(y)) * [1.0, 2.0, 3.0]
    symbolic: Any = Vi(0, 3).sqdist(Vj(y)).argKmin(2, axis=1)
    sent = tmp_path / "sent"
    sent.write_bytes(pickle.dumps((lazy, symbolic, x)))
    script = (
        "import pickle, sys, numpy as np\n"
        "lazy, symbolic, x = pickle.load(open(sys.argv[1], 'rb'))\n"
        "pickle.dump((lazy.sum(axis=1), symbolic(x)), open(sys.argv[1], 'wb'))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(sent)], check=True, timeout=90)
    total, nearest = pickle.loads(sent.read_bytes())
    assert_array_equal(total, lazy.sum(axis=1))
    assert_array_equal(nearest, symbolic(x))
