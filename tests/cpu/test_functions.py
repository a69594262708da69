"""The inlined functions of the CPU backend, over their whole range, in units of the last place."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import localcontext
from itertools import product

import llvmlite.binding as llvm
import numpy as np
import pytest

from benchmarks import coefficients as derived
from farsum_kernels.backends.cpu import coefficients, native
from farsum_kernels.backends.cpu.backend import CpuBackend
from farsum_kernels.backends.cpu.text import Function
from farsum_kernels.backends.cpu.vector import LLVM, Shape, Value, Vec
from farsum_kernels.compile import Compiler
from farsum_kernels.formula.expr import Expr, I, J, P, node, variable
from farsum_kernels.job import Extent, Spec
from farsum_kernels.plan import Machine
from farsum_kernels.scalar.ir import ARITY, MASKS, Prim
from tests.evaluate import run

ULP = {"float32": np.float32, "float64": np.float64}


def _ulps(got: np.ndarray, want: np.ndarray, dtype: str) -> np.ndarray:
    """Distance in units of the last place of the correctly rounded value."""
    kind = ULP[dtype]
    unit = np.spacing(np.abs(want.astype(kind))).astype(np.longdouble)
    return np.abs(got.astype(np.longdouble) - want) / unit


def _spread(low: float, high: float, count: int = 40_000) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, count)


def _powers(low: float, high: float, count: int = 40_000) -> np.ndarray:
    return np.exp2(np.random.default_rng(0).uniform(low, high, count))


CASES = [
    ("Exp", np.exp, _spread(-87, 88), "float32", 3.0),
    ("Exp", np.exp, _spread(-1, 1), "float32", 2.0),
    ("Exp", np.exp, _spread(-700, 700), "float64", 2.0),
    ("Log", np.log, _powers(-140, 127), "float32", 2.0),
    ("Log", np.log, _spread(0.5, 2.0), "float32", 2.5),
    ("Log", np.log, _powers(-1060, 1020), "float64", 2.0),
    ("Log", np.log, _spread(0.5, 2.0), "float64", 2.5),
    ("Sin", np.sin, _spread(-100, 100), "float32", 2.0),
    ("Cos", np.cos, _spread(-1e6, 1e6), "float32", 2.0),
    ("Sin", np.sin, _spread(-100, 100), "float64", 2.0),
    ("Cos", np.cos, _spread(-1e6, 1e6), "float64", 2.0),
    ("Sin", np.sin, _spread(-1e12, 1e12), "float64", 1.0),
]


@pytest.mark.parametrize(("op", "exact", "points", "dtype", "bound"), CASES)
def test_error_in_units_of_the_last_place(
    op: str, exact: Callable[..., np.ndarray], points: np.ndarray, dtype: str, bound: float
) -> None:
    x = points.astype(dtype)[:, None]
    # The only column and the only term: Max gives F itself, in the data dtype.
    (got,) = run("cpu", Spec(node(op, variable(0, 1, I)), "Max", 1, dtype), {0: x})
    want = exact(x.astype(np.longdouble))
    worst = _ulps(got, want, dtype).max()
    assert worst <= bound, f"{worst:.2f} ulp"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exp_of_zero_is_exactly_one(dtype: str) -> None:
    (got,) = run("cpu", Spec(node("Exp", variable(0, 1, I)), "Max", 1, dtype), {0: np.zeros((20, 1), dtype)})
    assert (got == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exp_of_a_scaled_pair(dtype: str) -> None:
    # e^(k·v) is taken as 2^((k·log2 e)·v) here: within the roundings of the exponent, and right at the edges.
    limit = 87 if dtype == "float32" else 700
    edges = [0.0, -0.0, np.nan, np.inf, -np.inf, 3 * limit, -3 * limit, -1.15 * limit, -1.04 * limit]
    v = (np.concatenate([edges, _spread(-limit, limit, 4000)]) / 0.7).astype(dtype)[:, None]
    k = np.array([0.7], dtype)
    f = node("Exp", node("Mult", variable(2, 1, P), node("Add", variable(0, 1, I), variable(1, 1, J))))
    (got,) = run("cpu", Spec(f, "Sum", 1, dtype), {0: v, 1: np.zeros((1, 1), dtype), 2: k})
    exponent = k.astype(np.longdouble) * v
    with np.errstate(over="ignore"):
        want = np.exp(exponent)
        rounded = want.astype(dtype)
    assert (got[:2] == 1).all()
    assert np.isnan(got[2, 0])
    np.testing.assert_array_equal(got[3:7, 0], [np.inf, 0, np.inf, 0])
    tiny = float(np.finfo(dtype).tiny)  # what is smaller may be zero
    eps = float(np.finfo(dtype).eps)
    error = np.abs(got[7:].astype(np.longdouble) - rounded[7:])
    bound = (2 + 1.5 * np.abs(exponent[7:])) * eps * want[7:] + tiny
    assert (error <= bound).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exp_is_exact_down_to_the_smallest_normal_number(dtype: str) -> None:
    x = np.linspace(-103, -80, 500) if dtype == "float32" else np.linspace(-745, -700, 500)
    x = x.astype(dtype)[:, None]
    (got,) = run("cpu", Spec(node("Exp", variable(0, 1, I)), "Max", 1, dtype), {0: x})
    want, tiny = np.exp(x.astype(np.longdouble)), float(np.finfo(dtype).tiny)
    small = want < tiny * (1 + 1e-6)
    assert 0 < small.sum() < small.size
    np.testing.assert_allclose(got[~small], want[~small].astype(dtype), rtol=1e-6)
    assert ((got[small] >= 0) & (got[small] <= tiny * (1 + 1e-6))).all()


@pytest.mark.skipif(not native.flushes(), reason="elsewhere such numbers cost nothing and are kept")
@pytest.mark.parametrize("reduction", ["Sum", "LogSumExp"])
def test_terms_too_small_for_a_normal_number_are_zero(reduction: str) -> None:
    """Each operation on one may take a hundred cycles: a sum of a narrow Gaussian became thirty times slower."""
    x = np.array([[-95.0], [0.0]], np.float32)
    power = node("Exp", variable(0, 1, J))
    formula = power if reduction == "Sum" else variable(0, 1, J)
    (got,) = run("cpu", Spec(formula, reduction, 1, "float32"), {0: x})
    np.testing.assert_allclose(got, 1 if reduction == "Sum" else 0, atol=1e-7)
    (alone,) = run("cpu", Spec(power, "Sum", 1, "float32"), {0: x[:1]})
    assert alone == 0 < np.exp(x[0, 0])
    (plain,) = run(
        "cpu", Spec(variable(0, 1, J), "Sum", 1, "float32"), {0: np.full((3, 1), 1e-40, np.float32)}
    )
    np.testing.assert_allclose(plain, 3e-40, rtol=1e-5)  # nothing is a power here
    assert np.float32(1e-38) * np.float32(0.01) > 0, "the thread that calls keeps its way of rounding"


# ── inverse circular functions and powers, on this machine and on lesser ones ─────────────────────

DTYPES = ["float32", "float64"]
COUNT = 200_000


@pytest.fixture(params=["native", "half", "plain"])
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """This machine; vectors of half the width without AVX-512; the same of a quarter without fused multiply-add."""
    if request.param == "native":
        return Compiler(CpuBackend(1))
    monkeypatch.setattr(native, "has_scalef", lambda: False)
    if request.param == "half":
        return Compiler(CpuBackend(machine=Machine(32, 16, 1)))
    if "x86_64" in llvm.get_process_triple():
        monkeypatch.setattr(native, "host", lambda: ("x86-64-v2", ""))
    return Compiler(CpuBackend(machine=Machine(16, 16, 1)))


def _values(compiler: Compiler, f: Expr, *columns: np.ndarray) -> np.ndarray:
    """F of the rows, whose only column is empty. The sum of one term is that term, but for the sign of 0."""
    x = {n: np.ascontiguousarray(c)[:, None] for n, c in enumerate(columns)}
    launch = compiler.kernel(Spec(f, "Sum", 1, str(columns[0].dtype))).launch(x, Extent(len(x[0]), 1, ()))
    while launch.step() < 1:
        pass
    return launch.results()[0][:, 0]


def _of_rows(op: str, arity: int) -> Expr:
    return node(op, *(variable(n, 1, I) for n in range(arity)))


def _judge(got: np.ndarray, want: np.ndarray, columns: tuple[np.ndarray, ...], bound: float) -> None:
    """Right in kind everywhere, and within the bound where the answer is a finite number."""
    dtype = str(columns[0].dtype)
    with np.errstate(over="ignore", under="ignore"):
        rounded = want.astype(dtype)
    finite = np.isfinite(rounded) & np.isfinite(got)
    wrong = ~finite & (got != rounded) & ~(np.isnan(got) & np.isnan(rounded))
    # What rounds to infinity may also come out as the largest number.
    top = np.finfo(dtype).max
    wrong &= ~((np.abs(got) == top) & np.isinf(rounded)) & ~((np.abs(rounded) == top) & np.isinf(got))
    assert not wrong.any(), [c[wrong][:3] for c in columns]
    error = _ulps(got[finite], want[finite], dtype)
    worst = int(error.argmax())
    assert error[worst] <= bound, f"{error[worst]:.2f} ulp at {[c[finite][worst] for c in columns]}"


def _sweep(dtype: str) -> np.ndarray:
    """Numbers of every size and sign, subnormal, infinite and NaN ones too: evenly over the bit patterns."""
    if dtype == "float32":
        return np.arange(0, 1 << 32, (1 << 32) // COUNT | 1, dtype=np.uint64).astype(np.uint32).view(dtype)
    return np.random.default_rng(0).integers(0, 1 << 64, COUNT, np.uint64).view(dtype)


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.longdouble if x.dtype == np.float64 else np.float64)


UNARY = [
    ("Asin", np.arcsin, (-1.0, 1.0)),
    ("Acos", np.arccos, (-1.0, 1.0)),
    ("Atan", np.arctan, (-4.0, 4.0)),
]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "exact", "span"), UNARY)
def test_inverse_circular_functions(
    compiler: Compiler, op: str, exact: Callable[..., np.ndarray], span: tuple[float, float], dtype: str
) -> None:
    near_one = 1 - _powers(-30, -1)
    points = [_sweep(dtype), _spread(*span, COUNT), _powers(-40, 4, COUNT), near_one, -near_one, [0, 0.5, 1]]
    x = np.concatenate([np.asarray(p).astype(dtype) for p in points])
    x = np.concatenate([x, -x])
    _judge(_values(compiler, _of_rows(op, 1), x), exact(_wide(x)), (x,), 1.5)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("dtype", DTYPES)
def test_atan2(compiler: Compiler, dtype: str) -> None:
    rng = np.random.default_rng(0)
    everywhere = _sweep(dtype)
    sizes = [_powers(-3, 3, COUNT) * rng.choice([-1, 1], COUNT) for _ in range(2)]
    y = np.concatenate([everywhere, _spread(-1, 1, COUNT), sizes[0]]).astype(dtype)
    x = np.concatenate([rng.permutation(everywhere), rng.uniform(-1, 1, COUNT), rng.permutation(sizes[1])])
    x = x.astype(dtype)
    _judge(_values(compiler, _of_rows("Atan2", 2), y, x), np.arctan2(_wide(y), _wide(x)), (y, x), 2.0)


def _bases(dtype: str) -> dict[str, np.ndarray]:
    info = np.finfo(dtype)
    rng = np.random.default_rng(0)
    return {
        "of every size": _powers(info.minexp, info.maxexp, COUNT),
        "between a half and two": _powers(-1, 1, COUNT),
        "next to one": 1 + np.exp2(rng.uniform(-info.nmant, -1, COUNT)) * rng.choice([-1, 1], COUNT),
        "where the reduction changes branch": np.sqrt(0.5) + rng.uniform(-1e-3, 1e-3, COUNT),
        "subnormal": _powers(info.minexp - info.nmant + 1, info.minexp, COUNT),
    }


@pytest.mark.filterwarnings("ignore:(over|under)flow", "ignore:divide by zero")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", _bases("float32"))
def test_powers_over_the_whole_range_of_results(compiler: Compiler, which: str, dtype: str) -> None:
    x = _bases(dtype)[which].astype(dtype)
    x = x[x > 0]
    # Exponents whose results go from below the subnormal numbers to infinity, evenly in the logarithm.
    reach = np.random.default_rng(1).uniform(-1.1, 1.1, len(x)) * np.finfo(dtype).maxexp
    size = np.where(x == 1, 1, np.log2(_wide(x)))
    y = (reach / size).astype(dtype)
    bound = 2.5 if dtype == "float32" else 2.0
    _judge(_values(compiler, _of_rows("Powf", 2), x, y), np.power(_wide(x), _wide(y)), (x, y), bound)


@pytest.mark.filterwarnings("ignore:(over|under)flow", "ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_any_two_numbers(compiler: Compiler, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, y = _sweep(dtype), rng.permutation(_sweep(dtype))
    whole = np.round(rng.uniform(-12, 12, COUNT)).astype(dtype)
    x = np.concatenate([x, _spread(-9, 9, COUNT).astype(dtype), _spread(0, 4, COUNT).astype(dtype)])
    y = np.concatenate([y, whole, rng.uniform(-4, 4, COUNT).astype(dtype)])
    bound = 2.5 if dtype == "float32" else 2.0
    _judge(_values(compiler, _of_rows("Powf", 2), x, y), np.power(_wide(x), _wide(y)), (x, y), bound)


def _corners(dtype: str) -> np.ndarray:
    info = np.finfo(dtype)
    beyond = 2.0 ** (info.nmant + 1)  # here and above every number is even
    sizes = [0, info.smallest_subnormal, info.tiny, 0.5, 1 - info.epsneg, 1, 1 + info.eps, 1.5, 2, 3]
    sizes += [beyond / 2 - 0.5, beyond / 2 - 1, beyond - 1, beyond, info.max, np.inf]
    positive = np.array(sizes, dtype)
    return np.concatenate([positive, -positive, [np.nan]]).astype(dtype)


@pytest.mark.filterwarnings("ignore:(over|under)flow", "ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("op", "exact"), [("Powf", np.power), ("Atan2", np.arctan2), *(u[:2] for u in UNARY)]
)
def test_special_values_are_those_of_c(
    compiler: Compiler, op: str, exact: Callable[..., np.ndarray], dtype: str
) -> None:
    arity = 1 if op in {u[0] for u in UNARY} else 2
    columns = tuple(np.array(c) for c in zip(*product(_corners(dtype), repeat=arity), strict=True))
    want = exact(*map(_wide, columns))
    f = _of_rows(op, arity)
    _judge(_values(compiler, f, *columns), want, columns, 2.5)
    # Dividing by it shows the sign of a zero.
    inverse = _values(compiler, node("Inv", f), *columns)
    zero = want == 0
    np.testing.assert_array_equal(np.signbit(inverse[zero]), np.signbit(want[zero]))


def test_powers_by_the_rules_of_c(compiler: Compiler) -> None:
    inf, nan = np.inf, np.nan
    # fmt: off
    table = [
        (0.0, 0.0, 1), (nan, 0.0, 1), (inf, -0.0, 1), (1.0, nan, 1), (1.0, inf, 1), (-1.0, inf, 1), (-1.0, -inf, 1),
        (0.0, 3.0, 0), (0.0, -3.0, inf), (-0.0, -3.0, -inf), (-0.0, -2.0, inf), (0.0, -0.5, inf), (0.0, inf, 0),
        (0.0, -inf, inf), (-2.0, 3.0, -8), (-2.0, 2.0, 4), (-2.0, -3.0, -0.125), (-2.0, 0.5, nan), (-8.0, 1 / 3, nan),
        (0.5, inf, 0), (0.5, -inf, inf), (2.0, inf, inf), (-2.0, inf, inf), (-0.5, inf, 0), (inf, 0.5, inf),
        (inf, -2.0, 0), (-inf, 3.0, -inf), (-inf, 2.0, inf), (-inf, 0.5, inf), (-inf, -3.0, 0), (nan, 1.0, nan),
        (2.0, nan, nan), (-1.0, nan, nan), (4.0, 0.5, 2), (10.0, 2.0, 100),
    ]
    # fmt: on
    x, y, want = (np.array(c, np.float64) for c in zip(*table, strict=True))
    for dtype in DTYPES:
        got = _values(compiler, _of_rows("Powf", 2), x.astype(dtype), y.astype(dtype))
        np.testing.assert_allclose(got, want, rtol=float(np.finfo(dtype).eps), atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_by_powers_of_two_is_exact_everywhere(compiler: Compiler, dtype: str) -> None:
    info = np.finfo(dtype)
    y = np.arange(info.minexp - info.nmant, info.maxexp).astype(dtype)
    two = np.full_like(y, 2)
    # Down to the smallest subnormal number, up to the largest power. NumPy's own exp2 is not exact here.
    want = np.ldexp(np.ones_like(y), y.astype(int))
    np.testing.assert_array_equal(_values(compiler, _of_rows("Powf", 2), two, y), want)


MACHINES = {
    "avx512": ("znver4", 64, True, "x86_64-unknown-linux-gnu"),
    "avx2": ("haswell", 32, False, "x86_64-unknown-linux-gnu"),
    "sse4": ("nehalem", 16, False, "x86_64-unknown-linux-gnu"),
    "neon": ("neoverse-n1", 16, False, "aarch64-unknown-linux-gnu"),
}
INSTRUCTIONS = {"copysign", "fabs", "floor", "fmuladd", "round", "roundeven", "sqrt", "x86"}


@pytest.mark.parametrize("scalar", ["float", "double"])
@pytest.mark.parametrize("name", MACHINES)
def test_no_primitive_calls_libm_in_its_common_range(name: str, scalar: str) -> None:
    cpu, vector_bytes, scalef, triple = MACHINES[name]
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features="", opt=2)
    shape = Shape(vector_bytes // (4 if scalar == "float" else 8), scalar, scalef)
    for prim in LLVM.keys() - MASKS - {Prim.SELECT}:
        fn = Function("f", ", ".join(f"ptr %p{n}" for n in range(ARITY[prim] + 1)))
        args = [Value(fn.let(f"load {shape.f}, ptr %p{n + 1}, align 64"), "f") for n in range(ARITY[prim])]
        made = LLVM[prim](Vec(fn, shape), *args)
        fn.do(f"store {shape.f} {made.name}, ptr %p0, align 64")
        common = re.split(r"^then\d+:", fn.text(), maxsplit=1, flags=re.MULTILINE)[0]
        assert set(re.findall(r"@llvm\.([a-z0-9]+)", common)) <= INSTRUCTIONS, prim
        if prim in {Prim.SIN, Prim.COS}:  # far from 0, behind a branch
            continue
        ir = "\n".join([f'target triple = "{triple}"', *sorted(fn.declarations), fn.text()])
        assembly = target.emit_assembly(llvm.parse_assembly(ir))
        assert not re.search(r"^\s(call|bl|blr)q?\s", assembly, re.MULTILINE), prim


def test_the_polynomials_are_those_of_the_derivation() -> None:
    with localcontext(prec=derived.DIGITS + 10):
        for fit in derived.fits():
            table = getattr(coefficients, fit.name)
            found, error = derived.minimax(fit)
            assert (table[fit.kind] if isinstance(table, dict) else table) == tuple(found)
            assert error < (2e-8 if fit.kind == "float" else 1e-11)
