"""What pykeops answers to a fixed table of formulas, and the script that asked it.

    python -m tests.golden.make_pykeops

writes pykeops.npz beside this file: for each case and dtype the arrays that pykeops returned, and the
versions of what computed them. Only that needs pykeops and a C++ compiler; the inputs are made anew from a
seed wherever they are needed. Formulas that pykeops is known to get wrong are not here: see differences.md.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

M, N = 21, 17
SEED = 20
PATH = Path(__file__).with_name("pykeops.npz")
DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class Case:
    """One reduction, in the words that both libraries take; `sparse` gives it the blocks of `ranges`."""

    name: str
    formula: str
    aliases: tuple[str, ...]
    reduction: str = "Sum"
    axis: int = 1
    opt_arg: int | None = None
    formula2: str | None = None
    sparse: bool = False


KERNELS = {
    "gaussian": "Exp(-g*SqDist(x,y))",
    "laplacian": "Exp(-g*Norm2(x-y))",
    "cauchy": "Inv(IntCst(1)+g*SqDist(x,y))",
    "polynomial": "Pow(g*(x|y)+IntCst(1),3)",
}


def _points(d: int, *more: str) -> tuple[str, ...]:
    return (f"x = Vi({d})", f"y = Vj({d})", "g = Pm(1)", *more)


def _kernel(
    name: str, d: int, reduction: str, axis: int, opt_arg: int = 0, formula2: str | None = None
) -> Case:
    """A reduction of a kernel at dimension d; sums are of the kernel times a vector."""
    weight = {0: "Vi(2)", 1: "Vj(2)"}[axis]
    formula = KERNELS[name] + ("*b" if reduction == "Sum" else "")
    aliases = _points(
        d, *([f"b = {weight}"] if reduction == "Sum" else []), *([f"w = {weight}"] if formula2 else [])
    )
    tail = "-weighted" if formula2 else ""
    return Case(f"{name}-{d}-{reduction}{tail}", formula, aliases, reduction, axis, opt_arg or None, formula2)


GAUSSIAN = KERNELS["gaussian"]

# fmt: off
CASES = (
    _kernel("gaussian", 1, "Sum", 1),
    _kernel("gaussian", 100, "Sum", 0),
    _kernel("laplacian", 3, "Sum", 1),
    _kernel("cauchy", 10, "Sum", 0),
    _kernel("polynomial", 3, "Sum", 1),
    _kernel("gaussian", 3, "LogSumExp", 1),
    _kernel("polynomial", 100, "LogSumExp", 0),
    _kernel("laplacian", 10, "LogSumExp", 1, formula2="w"),
    _kernel("cauchy", 1, "LogSumExp", 0, formula2="w"),
    _kernel("gaussian", 10, "SumSoftMaxWeight", 1, formula2="w"),
    _kernel("polynomial", 1, "SumSoftMaxWeight", 0, formula2="w"),
    _kernel("laplacian", 100, "Min", 1),
    _kernel("cauchy", 3, "Min", 0),
    _kernel("gaussian", 10, "Max", 0),
    _kernel("polynomial", 3, "Max", 1),
    _kernel("cauchy", 100, "ArgMin", 1),
    _kernel("laplacian", 1, "ArgMin", 0),
    _kernel("polynomial", 10, "KMin_ArgKMin", 1, 4),
    _kernel("laplacian", 3, "KMin_ArgKMin", 0, 3),
    _kernel("gaussian", 1, "Max_SumShiftExp", 1),
    _kernel("cauchy", 3, "Max_SumShiftExp", 0),
    Case("grad-x", f"Grad({GAUSSIAN}*b,x,e)", _points(3, "b = Vj(2)", "e = Vi(2)")),
    Case("grad-y", f"Grad({KERNELS['laplacian']}*b,y,e)", _points(10, "b = Vj(1)", "e = Vi(1)"), axis=0),
    Case("grad-g", f"Grad({KERNELS['cauchy']},g,e)", _points(3, "e = Vi(1)")),
    Case("grad-grad", f"Grad(Grad({GAUSSIAN}*b,x,e),x,u)", _points(3, "b = Vj(1)", "e = Vi(1)", "u = Vi(3)")),
    Case("diff", f"Diff({KERNELS['polynomial']}*b,x,u)", _points(3, "b = Vj(1)", "u = Vi(3)")),
    Case("laplacian-of", f"Laplacian({GAUSSIAN},x)", _points(3)),
    Case("norm-full", "WeightedSqNorm(s,x-y)", ("s = Pm(9)", "x = Vi(3)", "y = Vj(3)")),
    Case("norm-diagonal", "WeightedSqDist(s,x,y)", ("s = Vi(3)", "x = Vi(3)", "y = Vj(3)")),
    Case("norm-unit", "Normalize(x-y)", ("x = Vi(4)", "y = Vj(4)")),
    Case("matvec", "MatVecMult(a,y)", ("a = Vi(6)", "y = Vj(3)")),
    Case("vecmat", "VecMatMult(y,a)", ("a = Vi(6)", "y = Vj(3)"), axis=0),
    Case("outer", "TensorProd(x,y)", ("x = Vi(2)", "y = Vj(3)")),
    Case("tensordot", "TensorDot(a,c,[2,3],[3,2],[1],[0],[1,0])", ("a = Vi(6)", "c = Vj(6)")),
    Case("kron", "Kron(a,c,[2,3],[1,2])", ("a = Vi(6)", "c = Vj(2)")),
    Case("complex-exp", "ComplexExp(ComplexMult(z,v))", ("z = Vi(4)", "v = Vj(4)")),
    Case("complex-angle", "ComplexAngle(ComplexDivide(z,v))", ("z = Vi(4)", "v = Vj(4)")),
    Case("complex-abs", "ComplexAbs(ComplexAdd(z,Conj(v)))", ("z = Vi(4)", "v = Vj(4)")),
    Case("clamp", "Clamp(x*y,y,w)", ("x = Vi(3)", "y = Vj(3)", "w = Vj(3)")),
    Case("ifelse", "IfElse(x-y,x*y,c)", ("x = Vi(3)", "y = Vj(3)", "c = Vj(3)")),
    Case("mod", "Mod(x*y,w,c)", ("x = Vi(3)", "y = Vj(3)", "w = Vi(3)", "c = Pm(3)")),
    Case("round", "Round(x*y,1)", ("x = Vi(3)", "y = Vj(3)")),
    Case("onehot", "OneHot(k,5)*x", ("k = Vj(1)", "x = Vi(5)")),
    Case("comparison", "(x<y)+(x*x>=c)", ("x = Vi(3)", "y = Vj(3)", "c = Vj(3)")),
    Case("angles", "Sin(x*y)+Atan(x-y)*Cos(y)", ("x = Vi(3)", "y = Vj(3)"), axis=0),
    Case("pieces", "Extract(Concat(x,y),2,3)*Elem(x,1)", ("x = Vi(3)", "y = Vj(3)")),
    Case("sparse-sum", f"{GAUSSIAN}*b", _points(3, "b = Vj(2)"), sparse=True),
    Case("sparse-argmin", "SqDist(x,y)", ("x = Vi(3)", "y = Vj(3)"), "ArgMin", axis=0, sparse=True),
)
# fmt: on


def inputs(case: Case, dtype: str) -> list[np.ndarray]:
    """The arrays of a case: the same numbers in each dtype, so all are float32 numbers.

    Points spread so that distances do not grow with the dimension; g and w are positive, k counts.
    """
    rng = np.random.default_rng([SEED, zlib.crc32(case.name.encode())])
    arrays = []
    for alias in case.aliases:
        name, kind, dim = alias[0], alias[4:6], int(alias[7:-1])
        a = rng.random({"Vi": (M, dim), "Vj": (N, dim), "Pm": (dim,)}[kind])
        if name == "k":
            a = np.floor(5 * a)
        elif name in "gw":
            a = 0.3 + a
        else:
            a = (2 * a - 1) * np.sqrt(3 / (dim if name in "xy" else 1))
        arrays.append(a.astype(np.float32).astype(dtype))
    return arrays


def ranges() -> tuple[np.ndarray, ...]:
    """Blocks of rows and the intervals of columns that each meets; then the same with i and j exchanged."""
    rows, ends = np.array([[0, 6], [6, 15], [15, M]]), np.array([2, 3, 4])
    columns = np.array([[0, 4], [9, N], [3, 11], [5, 6]])
    back, back_ends, back_rows = (
        np.array([[0, 8], [8, N]]),
        np.array([1, 3]),
        np.array([[2, 20], [0, 5], [7, 13]]),
    )
    return tuple(np.ascontiguousarray(a, np.int64) for a in (rows, ends, columns, back, back_ends, back_rows))


def ask(genred: Callable[..., Any], case: Case, dtype: str) -> tuple[np.ndarray, ...]:
    """What a library with KeOps' `Genred` answers."""
    f = genred(
        case.formula,
        list(case.aliases),
        reduction_op=case.reduction,
        axis=case.axis,
        opt_arg=case.opt_arg,
        formula2=case.formula2,
    )
    got = f(*inputs(case, dtype), backend="CPU", ranges=ranges() if case.sparse else None)
    return tuple(np.asarray(a) for a in (got if isinstance(got, list | tuple) else [got]))


def key(case: Case, dtype: str, place: int) -> str:
    return f"{case.name}.{dtype}.{place}"


def read() -> Mapping[str, np.ndarray]:
    with np.load(PATH) as held:
        return dict(held)


def main() -> None:
    from pykeops.numpy import Genred

    held: dict[str, Any] = {}
    for case in CASES:
        for dtype in DTYPES:
            for place, a in enumerate(ask(Genred, case, dtype)):
                held[key(case, dtype, place)] = a
    packages = ("pykeops", "keopscore", "numpy")
    held["versions"] = np.array([f"{name} {metadata.version(name)}" for name in packages])
    np.savez_compressed(PATH, **held)
    print(
        f"{PATH.name}: {len(CASES)} cases, {PATH.stat().st_size / 1e3:.0f} kB, {', '.join(held['versions'])}"
    )


if __name__ == "__main__":
    main()
