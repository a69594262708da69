"""Faults planted into generated kernels, one at a time: each must be seen, as a wrong number or by the emulator.

The same jobs without a fault agree with float64, to the same bits in every order of threads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.backends.cuda.layout import FILTER, TENSOR
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.job import RANGES, Extent, Spec
from tests.cuda import emulate
from tests.cuda.driver import EmulatedDriver, EmulatedModule

pytestmark = pytest.mark.emulated


@dataclass(frozen=True)
class Job:
    """A spec with arrays, sizes and what must come out: numbers relative to the largest, integers exactly."""

    spec: Spec
    arrays: Mapping[int, np.ndarray]
    extent: Extent
    truth: np.ndarray
    tolerance: float = 4e-6
    path: str | None = None

    def agrees(self, found: np.ndarray) -> bool:
        if self.truth.dtype.kind == "i":
            return np.array_equal(found, self.truth)
        return bool(
            (abs(found - self.truth) <= self.tolerance * abs(self.truth).max()).all()
        )  # False for NaN


def gaussian(dim: int, m: int, n: int, batch: tuple[int, ...] = ()) -> Job:
    rng = np.random.default_rng(m)
    x = rng.standard_normal((*batch, m, dim)).astype(np.float32) / dim**0.5
    y = rng.standard_normal((*batch, n, dim)).astype(np.float32) / dim**0.5
    b = rng.standard_normal((*batch, n, 1)).astype(np.float32)
    decay = node("Exp", node("Minus", node("SqDist", variable(0, dim, I), variable(1, dim, J))))
    spec = Spec(node("Mult", decay, variable(2, 1, J)), "Sum", 1, "float32")
    return Job(spec, {0: x, 1: y, 2: b}, Extent(m, n, batch), np.exp(-squares(x, y)) @ b.astype(np.float64))


def norms() -> Job:
    """Distances of long vectors from norms and products."""
    job = gaussian(43, 130, 300)
    x, y = variable(0, 43, I), variable(1, 43, J)
    distance = node(
        "Add",
        node("SqNorm2", x),
        node("Subtract", node("SqNorm2", y), node("Add", *[node("Scalprod", x, y)] * 2)),
    )
    spec = Spec(node("Mult", node("Exp", node("Minus", distance)), variable(2, 1, J)), "Sum", 1, "float32")
    return replace(job, spec=spec)


def on_tensor_cores() -> Job:
    """Gaussians so wide that products serve."""
    job = gaussian(20, 150, 300)
    arrays = {n: a * np.float32(0.5) if n < 2 else a for n, a in job.arrays.items()}
    truth = np.exp(-squares(arrays[0], arrays[1])) @ arrays[2].astype(np.float64)
    return replace(job, arrays=arrays, truth=truth, tolerance=2e-6, path=TENSOR)


def in_float64() -> Job:
    single = gaussian(3, 150, 300)
    spec = Spec(single.spec.formula, "Sum", 1, "float64")
    arrays = {n: a.astype(np.float64) for n, a in single.arrays.items()}
    return Job(spec, arrays, single.extent, single.truth, tolerance=1e-14)


def laplacian() -> Job:
    """Enough rows for the widest layout, in which some rows of a thread take polynomials."""
    single = gaussian(3, 1000, 140)
    distance = node("Norm2", node("Subtract", variable(0, 3, I), variable(1, 3, J)))
    spec = Spec(node("Mult", node("Exp", node("Minus", distance)), variable(2, 1, J)), "Sum", 1, "float32")
    x, y, b = (a.astype(np.float64) for a in single.arrays.values())
    return Job(spec, single.arrays, single.extent, np.exp(-np.sqrt(squares(x, y))) @ b)


def distances(reduction: str, k: int = 0) -> Job:
    """Points with small integer coordinates: equal distances abound, and float32 is exact."""
    rng = np.random.default_rng(k)
    x, y = (rng.integers(-5, 6, (n, 3)).astype(np.float32) for n in (70, 1100))
    spec = Spec(node("SqDist", variable(0, 3, I), variable(1, 3, J)), reduction, 1, "float32", k=k)
    d = squares(x, y)
    if reduction == "LogSumExp":
        truth = d.max(1) + np.log(np.exp(d - d.max(1, keepdims=True)).sum(1))
    else:
        truth = np.argsort(d, axis=1, kind="stable")[:, : max(k, 1)]
    return Job(spec, {0: x, 1: y}, Extent(70, 1100, ()), truth.reshape(70, -1))


def filtered(k: int) -> Job:
    """Clouds of points so close that float16 cannot tell them apart, or equal points, three times each, for lists."""
    rng = np.random.default_rng(k)
    x, y = rng.standard_normal((100, 20)), rng.standard_normal((5, 20))[rng.integers(0, 5, 700)]
    y += 1e-3 * rng.standard_normal(y.shape)
    if k:
        y = rng.standard_normal((260, 20))[np.arange(700) % 260]
    x, y = x.astype(np.float32), y.astype(np.float32)
    reduction = "ArgKMin" if k else "ArgMin"
    spec = Spec(node("SqDist", variable(0, 20, I), variable(1, 20, J)), reduction, 1, "float32", k=k)
    truth = np.argsort(squares(x, y), axis=1, kind="stable")[:, : max(k, 1)]
    return Job(spec, {0: x, 1: y}, Extent(100, 700, ()), truth, path=FILTER)


def large_total() -> Job:
    """One number in each tile; adding it up in float32 rounds down again and again."""
    x, y = np.zeros((3, 1), np.float32), np.zeros((61_440, 1), np.float32)
    y[::128] = 2**23 + 3
    spec = Spec(node("Add", variable(0, 1, I), variable(1, 1, J)), "Sum", 1, "float32")
    truth = np.full((3, 1), y.sum(dtype=np.float64))
    return Job(spec, {0: x, 1: y}, Extent(3, len(y), ()), truth, tolerance=2.0**-24)


def ranges() -> Job:
    """Two blocks of rows; each meets two ranges of columns."""
    dense = gaussian(3, 70, 700)
    arrays = dict(dense.arrays)
    rows, ends = np.array([[0, 30], [30, 70]]), np.array([2, 4])
    columns = np.array([[0, 130], [300, 301], [129, 400], [650, 700]])
    for place, table in zip(RANGES, (rows, ends, columns) * 2, strict=True):
        arrays[place] = table
    kernel, truth = np.exp(-squares(arrays[0], arrays[1])), np.zeros((70, 1))
    for block, (first, end) in enumerate(rows):
        for start, stop in columns[2 * block : 2 * block + 2]:
            truth[first:end] += kernel[first:end, start:stop] @ arrays[2][start:stop].astype(np.float64)
    return Job(dense.spec, arrays, dense.extent, truth)


def squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    difference = x[..., :, None, :].astype(np.float64) - y[..., None, :, :]
    return (difference**2).sum(-1)


JOBS: dict[str, Callable[[], Job]] = {
    "sum": lambda: gaussian(3, 70, 1101),
    "long vectors": lambda: gaussian(43, 130, 300),
    "batch": lambda: gaussian(3, 20, 150, (3,)),
    "ranges": ranges,
    "large total": large_total,
    "logsumexp": lambda: distances("LogSumExp"),
    "argmin": lambda: distances("ArgMin"),
    "float64": in_float64,
    "norms": norms,
    "laplacian": laplacian,
    "list": lambda: distances("ArgKMin", 4),
    "tensor": on_tensor_cores,
    "filter": lambda: filtered(0),
    "filter, list": lambda: filtered(5),
}


@cache
def job(name: str) -> Job:
    return JOBS[name]()


class Planter(EmulatedDriver):
    """Compiles kernels after an edit of their text."""

    def __init__(self, order: emulate.Order, edit: Callable[[str], str], sanitize: bool | None) -> None:
        super().__init__(order)
        self.edit, self.sanitize = edit, sanitize

    def load(self, source: str) -> EmulatedModule:
        return EmulatedModule(emulate.compile(self.edit(source), self.sanitize), self)


def run(
    name: str, order: emulate.Order, edit: Callable[[str], str] = str, sanitize: bool | None = None
) -> np.ndarray:
    kernel = Kernel(job(name).spec, Planter(order, edit, sanitize), job(name).path)
    launch = kernel.launch(job(name).arrays, job(name).extent)
    while launch.step() < 1:
        pass
    return launch.results()[0]


@pytest.mark.parametrize("name", JOBS)
def test_sound_kernels(name: str) -> None:
    found = [run(name, order) for order in emulate.ORDERS]
    assert job(name).agrees(found[0])
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


# The fault, the job that shows it, what of the text becomes what (a regular expression, once).
FAULTS = [
    ("no barrier before the columns are read", "sum", r"\}\n *__syncthreads\(\);(\n *auto block)", r"}\1"),
    ("no barrier before a tile is written over", "sum", r"(int count = .*\n) *__syncthreads\(\);\n", r"\1"),
    ("no barrier before a panel is read", "long vectors", r"(panel1, .*\n) *__syncthreads\(\);\n", r"\1"),
    ("no barrier before a panel is written over", "long vectors", r"__syncthreads\(\);(\n *fs_stage)", r"\1"),
    ("no barrier between the lanes of combine", "sum", r"(memory\).*\n) *__syncthreads\(\);\n", r"\1"),
    ("threads leave before a barrier", "sum", r"(const bool here = .*\n)", r"\1 if (!here) return;\n"),
    ("a tail taken whole", "sum", r"block\(base, fs_no\(\)\)", "block(base, fs_yes())"),
    ("a tail left out", "sum", r"if \(base < count\) block\(base, fs_no\(\)\);", ""),
    ("the last column of a tile is not filled", "sum", r"q < (\d+);", r"q < \1 - 1;"),
    ("a panel's rest left out", "long vectors", r"(const int d\d+ = \d+);", r"\1 - 1;"),
    ("a split is lost", "sum", r"part < end;", "part < end - 1;"),
    ("threads write over each other's states", "sum", r"\+ thread_j\) \* tasks_all", ") * tasks_all"),
    ("a partial sum is counted twice", "sum", r"(fs_two_sum\(h.*\n) *s0_0\[r\] = .*;\n", r"\1"),
    ("the error of a total is dropped", "large total", r"low = low \+ \(error == error.*;", "low = low;"),
    ("a running sum is not rescaled", "logsumexp", r"\(s0_1\[r\] \* (u\d+)\);(\n.*\n *s0_0)", r"s0_1[r];\2"),
    ("a fragment of the tile at a wrong place", "argmin", r"tile \+ at\[c\] \*", "tile + (at[c] ^ 1) *"),
    (
        "a fragment of a panel at a wrong place",
        "long vectors",
        r"(\(panel0 .*), thread_j,",
        r"\1, thread_j ^ 1,",
    ),
    ("of equal values combine takes the last", "argmin", r"\((p\d+) < (s\d+)\);(\n.* &&)", r"(\1 > \2);\3"),
    ("lists are combined in the wrong order", "list", r"mine < index", "mine > index"),
    ("an index stays where its value moved", "list", r"\? s0_1\[r\]\[s\] : (j\d+)\)", r"? \1 : \1)"),
    ("every member of a batch reads the first", "batch", r"task\[0\] \* 3 \+ 1", "1"),
    ("half of the table is not filled", "float64", r"k \+= blockDim.x\)", "k += 2 * blockDim.x)"),
    (
        "a power of the table at a wrong place",
        "float64",
        r"n & \(FS_POWERS - 1\)",
        "(n ^ 1) & (FS_POWERS - 1)",
    ),
    ("an exponent of a polynomial is off", "laplacian", r"0x3f800000u\)", "0x3f000000u)"),
    ("a larger term is not noticed", "logsumexp", r"if \(raised\d+\)", "if (false)"),
    (
        "pairs take what another row needs",
        "norms",
        r"fs_lesser\(first \+ q, last_row\)",
        "fs_lesser(first + (q ^ 1), last_row)",
    ),
    ("the bound is dropped", "filter", r"fs_fma\(by_size\[r\], size, .*base\[r\]\)\)", "base[r]"),
    ("what still waits is not verified", "filter", r"while \(count > 0\)", "while (false)"),
    ("a copy to shared memory is not waited for", "filter", r"fs_copy_wait<0>\(\);", ""),
    (
        "no barrier before a tile is multiplied",
        "filter",
        r"(fs_copy_wait<0>\(\);\n *)__syncthreads\(\);",
        r"\1",
    ),
    (
        "a fragment of the rows at a wrong place",
        "filter",
        r"row % 16 / 8 \+ 2 \* upper",
        "row % 16 / 8 * 2 + upper",
    ),
    ("fragments of the columns exchanged", "filter", r"left\[2\] = \{f.x, f.y\}", "left[2] = {f.y, f.x}"),
    (
        "a verified pair goes to another row",
        "filter",
        r"queued_row\[warp\]\[n\] == lane",
        "queued_row[warp][n] == (lane ^ 1)",
    ),
    (
        "the filter's best is taken for the best",
        "filter",
        r"const float top = .*",
        "const float top = mine + own.z - size * size;",
    ),
    ("of equal values the last verified stays", "filter, list", r"\(place < ", "(place > "),
    (
        "columns of the next split too",
        "filter, list",
        r"if \(j < span_first \|\| j >= span_end\)",
        "if (false)",
    ),
    ("low halves are dropped", "tensor", r"if \(low\) h = .*", ""),
    ("a product of halves is left out", "tensor", r"int turn = TENSOR_TRIPLES \? 2 : 0", "int turn = 1"),
    ("a step begins where the last one ended", "tensor", r"FIRST \? d\[m\]\[n\]\[e\] :", ""),
    ("packed columns are not waited for", "tensor", r"fs_copy_wait<0>\(\);", ""),
    ("packed columns are written over", "tensor", r"(fs_copy_wait<0>\(\);\n *)__syncthreads\(\);", r"\1"),
    ("a number of another row", "tensor", r"\(long long\)row\[r\] \*", "(long long)(row[r] ^ 1) *"),
    ("only the first range of columns", "ranges", r"span < task\[4\]", "span < task[3] + 1"),
]


@pytest.mark.parametrize(("name", "find", "instead"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_planted_fault_is_seen(name: str, find: str, instead: str) -> None:
    edit = planted(find, instead)

    def seen(order: emulate.Order) -> bool:
        try:
            return not job(name).agrees(run(name, order, edit))
        except emulate.EmulationError:
            return True

    assert any(seen(order) for order in emulate.ORDERS)


# What only reads or writes past an end: the sanitizers say where.
PAST_THE_END = [
    ("the clamp of columns dropped", "sum", r"fs_lesser\(q, count - 1\)", "q", "heap-buffer-overflow"),
    ("the clamp of rows dropped", "sum", r"fs_lesser\((first \+ local\[r\]), last_row\)", r"\1", "heap-buffer-overflow"),
    ("the clamp in a panel dropped", "long vectors", r"fs_lesser\(first \+ row, last\)", "(first + row)", "heap-buffer-overflow"),
    ("a panel too small", "long vectors", r"panel0\[\d+\]", "panel0[64]", r"global-buffer-overflow(.|\n)*'panel0'"),
    ("a tile too small", "sum", r"tile\[\d+\]", "tile[8]", r"index 8 out of bounds for type 'float \[8\]'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "find", "instead", "says"), [f[1:] for f in PAST_THE_END], ids=[f[0] for f in PAST_THE_END]
)
def test_a_planted_overrun_is_named(name: str, find: str, instead: str, says: str) -> None:
    with pytest.raises(emulate.EmulationError, match=says):
        run(name, "forward", planted(find, instead), sanitize=True)


def planted(find: str, instead: str) -> Callable[[str], str]:
    def edit(source: str) -> str:
        edited, count = re.subn(find, instead, source)
        assert count, "the text has no such place: the generator has changed, and this fault with it"
        return edited

    return edit
