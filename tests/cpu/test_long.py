"""Long F and long weights: strips of columns, chunks of components, what the components share."""

from __future__ import annotations

import numpy as np
import pytest

from farsum_kernels.backends.cpu import native
from farsum_kernels.backends.cpu.kernel import Kernel
from farsum_kernels.backends.cpu.native import machine
from farsum_kernels.formula.expr import Expr, I, J, P, node, variable
from farsum_kernels.formula.reductions import REDUCTIONS
from farsum_kernels.job import Extent, Part, Spec
from farsum_kernels.plan import Machine
from tests.evaluate import close, run

M, N = 101, 323  # rows and columns that fill neither a task nor a strip
WIDTHS = [7, 8, 131]
WEIGHTED = [name for name, rule in REDUCTIONS.items() if rule.weight != "none"]


def _points(*shapes: tuple[int, ...], dtype: str = "float64") -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    return {n: rng.normal(size=s).astype(dtype) for n, s in enumerate(shapes)}


def _as_defined(spec: Spec, arrays: dict[int, np.ndarray], factor: float = 4) -> None:
    for got, want in zip(run("cpu", spec, arrays), run("reference", spec, arrays), strict=True):
        if want.dtype.kind == "i":
            np.testing.assert_array_equal(got, want)
        else:
            close(got, want, spec.dtype, factor)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("reduction", WEIGHTED)
def test_long_weights(reduction: str, width: int, dtype: str) -> None:
    x, y, b = variable(0, 3, I), variable(1, 3, J), variable(2, width, J)
    # A logarithm of the sums is asked for: they must be positive.
    weight = b if REDUCTIONS[reduction].name.startswith(("S", "Max")) else node("Exp", b)
    for axis in (0, 1):
        spec = Spec(node("SqDist", x, y), reduction, axis, dtype, weight)
        if axis == 0:
            b_i = variable(2, width, I)
            spec = Spec(spec.formula, reduction, axis, dtype, b_i if weight is b else node("Exp", b_i))
        rows = N if axis == 1 else M
        _as_defined(spec, _points((M, 3), (N, 3), (rows, width), dtype=dtype))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("reduction", [name for name, rule in REDUCTIONS.items() if not rule.scalar])
def test_long_values(reduction: str, width: int) -> None:
    x, y, b = variable(0, 3, I), variable(1, 3, J), variable(2, width, J)
    formula = node("Mult", node("Exp", node("Minus", node("SqDist", x, y))), b)
    spec = Spec(formula, reduction, 1, "float64", None, 4 if REDUCTIONS[reduction].listed else 0)
    _as_defined(spec, _points((M, 3), (N, 3), (N, width)))


def _written(width: int) -> dict[str, Expr]:
    x, y = variable(0, width, I), variable(1, width, J)
    b, p = variable(2, width, J), variable(3, width * width, P)
    distance = node("SqDist", x, y)
    kernel = node("Exp", node("Minus", distance))
    return {
        "differences": node("Mult", kernel, node("Subtract", x, y)),
        "a function of each component": node("Exp", node("Minus", node("Square", node("Subtract", x, y)))),
        "a mask of the pair": node("IfElse", node("Subtract", distance, y), b, node("Mult", kernel, x)),
        "a product with a matrix": node("Mult", kernel, node("MatVecMult", p, node("Subtract", x, y))),
        "columns alone": b,
        "rows alone": x,
        "one number": node("SumT", kernel, params=(width,)),
        "an outer product": node("TensorProd", x, node("Mult", kernel, y)),
        "a row times a column": node("Mult", x, b),
    }


@pytest.mark.parametrize("name", _written(9))
def test_what_components_may_depend_on(name: str) -> None:
    arrays = _points((M, 9), (N, 9), (N, 9), (81,))
    for reduction in ("Sum", "Max", "ArgMin", "KMin"):
        k = 3 if reduction == "KMin" else 0
        _as_defined(Spec(_written(9)[name], reduction, 1, "float64", None, k), arrays, factor=20)
    formula = node("SqDist", variable(0, 9, I), variable(1, 9, J))
    _as_defined(Spec(formula, "SumSoftMaxWeight", 1, "float64", _written(9)[name]), arrays, factor=20)


def test_attention_of_terms_that_are_none() -> None:
    arrays = _points((M, 64), (N, 64), (N, 20))
    arrays[0][3], arrays[0][4] = np.inf, np.nan
    arrays[1][:2] = -1e300
    s = node("Scalprod", variable(0, 64, I), variable(1, 64, J))
    for reduction in WEIGHTED:
        _as_defined(Spec(s, reduction, 1, "float64", node("Square", variable(2, 20, J))), arrays, factor=50)


def test_rescaling_at_every_strip_and_splits() -> None:
    # Maxima rise by hundreds along the columns, and few rows are cut over them.
    rng = np.random.default_rng(1)
    n = 40_000
    arrays = {0: rng.random((3, 1)), 1: np.linspace(0, 900, n)[:, None], 2: rng.normal(size=(n, 33))}
    s = node("Mult", variable(0, 1, I), variable(1, 1, J))
    _as_defined(Spec(s, "SumSoftMaxWeight", 1, "float64", variable(2, 33, J)), arrays, factor=20)
    arrays[1] = arrays[1][::-1]
    _as_defined(Spec(s, "SumSoftMaxWeight", 1, "float64", variable(2, 33, J)), arrays)


def test_beside_other_reductions_and_in_batches() -> None:
    x, y, b = variable(0, 3, I), variable(1, 3, J), variable(2, 40, J)
    d = node("SqDist", x, y)
    also = (Part(d, "ArgKMin", k=3), Part(d, "LogSumExp"), Part(d, "SoftMax", b), Part(d, "ArgMin"))
    spec = Spec(node("Mult", d, b), "Sum", 1, "float64", None, 0, also)
    _as_defined(spec, _points((2, M, 3), (2, N, 3), (2, N, 40)))


def test_code_does_not_grow_with_the_width() -> None:
    def size(width: int) -> int:
        d = node("SqDist", variable(0, 3, I), variable(1, 3, J))
        return len(Kernel(Spec(d, "SoftMax", 1, "float32", variable(2, width, J)), machine()).text.ir)

    assert size(512) < 1.1 * size(64)


@pytest.mark.parametrize("registers", [16, 32])
def test_on_machines_with_fewer_registers(registers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "has_scalef", lambda: False)
    arrays = _points((M, 20), (N, 20), (N, 20), dtype="float32")
    s = node("Scalprod", variable(0, 20, I), variable(1, 20, J))
    spec = Spec(s, "SoftMax", 1, "float32", variable(2, 20, J))
    launch = Kernel(spec, Machine(16, registers, 1)).launch(arrays, Extent(M, N, ()))
    while launch.step() < 1:
        pass
    (got,), (want,) = launch.results(), run("reference", spec, arrays)
    close(got, want, "float32", 4)
