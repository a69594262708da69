"""How far float32 answers are from the exact ones: farsum, embedded, and the real pykeops, on the same arrays.

The exact answer is computed densely in float64 on the float32 data, by differences. The error is the largest
distance from it, relative to its largest value, the worst of three draws.

    python -m benchmarks.accuracy [--quick] [--write]
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import machine_line

PAGE = Path(__file__).resolve().parent.parent / "docs" / "accuracy.md"
COMMAND = "python -m benchmarks.accuracy --write"
PACKAGES = ("farsum", "pykeops", "numpy", "llvmlite")
M, CHECKED = 1100, 50  # rows of x, and those whose answers are checked
ROWS_AT_ONCE = 1000
EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Family:
    """A reduction as text, and its terms in NumPy as a function of the differences and the other arrays."""

    name: str
    d: int
    formula: str
    dense: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    reduction: str = "Sum"
    formula2: str | None = None
    signed: bool = False
    shifts: bool = True
    width: int = 1


@dataclass(frozen=True)
class Setting:
    n: int
    shift: float = 0.0

    def __str__(self) -> str:
        return f"N = {self.n:,}" + (f", shifted by {self.shift:,.0f}" if self.shift else "")


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return ((x[:, None] - y[None]) ** 2).sum(-1, keepdims=True)


def _gaussian(x: np.ndarray, y: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.exp(-g * _square(x, y)) * b


def _gradient(x: np.ndarray, y: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
    return -2 * g * (x[:, None] - y[None]) * _gaussian(x, y, g, b)


def _weighted(x: np.ndarray, y: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Both sums of the softmax; no exponent is above 0, so it needs no shift in float64."""
    return np.concatenate([_gaussian(x, y, g, b), _gaussian(x, y, g, np.ones_like(b))], -1)


GAUSSIAN = "Exp(-g*SqDist(x,y))*b"

# fmt: off
FAMILIES = (
    Family("Gaussian, D = 3", 3, GAUSSIAN, _gaussian),
    Family("Gaussian, D = 10", 10, GAUSSIAN, _gaussian),
    Family("Gaussian, D = 100", 100, GAUSSIAN, _gaussian),
    Family("Gaussian, D = 3, b of both signs", 3, GAUSSIAN, _gaussian, signed=True),
    Family("Gaussian, D = 3, b of 64 columns", 3, GAUSSIAN, _gaussian, width=64),
    Family("gradient of the Gaussian, D = 3", 3, f"Grad({GAUSSIAN},x,IntCst(1))", _gradient),
    Family("Laplacian kernel, D = 3", 3, "Exp(-g*Norm2(x-y))*b", lambda x, y, g, b: np.exp(-g * np.sqrt(_square(x, y))) * b),
    Family("Cauchy, D = 3", 3, "Inv(IntCst(1)+g*SqDist(x,y))*b", lambda x, y, g, b: b / (1 + g * _square(x, y))),
    Family("polynomial, D = 10", 10, "Pow(g*(x|y)+IntCst(1),3)*b", lambda x, y, g, b: (g * (x @ y.T)[..., None] + 1) ** 3 * b, shifts=False),
    Family("LogSumExp, D = 3", 3, "-g*SqDist(x,y)", lambda x, y, g, b: np.exp(-g * _square(x, y)), "LogSumExp"),
    Family("softmax-weighted, D = 3", 3, "-g*SqDist(x,y)", _weighted, "SumSoftMaxWeight", "b"),
)
# fmt: on


def settings(family: Family, quick: bool) -> Iterator[Setting]:
    many = 1000 if quick else 100_000
    yield from (Setting(256), Setting(1000), Setting(many))
    if family.shifts:
        yield from (Setting(1000, 100.0), Setting(1000, 1000.0), Setting(many, 1000.0))


def arrays(family: Family, setting: Setting, seed: int) -> list[np.ndarray]:
    """Points uniform in the unit cube, or in one far away; g = 2/D; b in [0, 1), or normal."""
    rng = np.random.default_rng(seed)
    x, y = (rng.random((rows, family.d)) + setting.shift for rows in (M, setting.n))
    b = (rng.standard_normal if family.signed else rng.random)((setting.n, family.width))
    return [a.astype(np.float32) for a in (x, y, np.array([2 / family.d]), b)]


def exact(family: Family, held: list[np.ndarray]) -> np.ndarray:
    x, y, g, b = (a.astype(np.float64) for a in held)
    x = x[:CHECKED]
    total = sum(
        family.dense(x, y[start : start + ROWS_AT_ONCE], g, b[start : start + ROWS_AT_ONCE]).sum(1)
        for start in range(0, len(y), ROWS_AT_ONCE)
    )
    assert isinstance(total, np.ndarray)
    if family.reduction == "LogSumExp":
        return np.log(total)
    return total[:, :1] / total[:, 1:] if family.reduction == "SumSoftMaxWeight" else total


def distance(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def families(genreds: dict[str, Any], quick: bool) -> Iterator[tuple[Family, Setting, dict[str, float]]]:
    """The worst error of each library, family and setting."""
    for family in FAMILIES:
        aliases = [f"x = Vi({family.d})", f"y = Vj({family.d})", "g = Pm(1)", f"b = Vj({family.width})"]
        calls = {
            name: genred(family.formula, list(aliases), family.reduction, 1, formula2=family.formula2)
            for name, genred in genreds.items()
        }
        for setting in settings(family, quick):
            worst = dict.fromkeys(calls, 0.0)
            for seed in range(1 if quick else 3):
                held = arrays(family, setting, seed)
                want = exact(family, held)
                for name, call in calls.items():
                    worst[name] = max(worst[name], distance(call(*held, backend="CPU")[:CHECKED], want))
            yield family, setting, worst


def operations() -> dict[str, float]:
    """The worst error of farsum for each operation, summed over 53 columns, against NumPy in float64."""
    from farsum_kernels.job import Spec
    from tests.conformance.test_operations import dense, inputs
    from tests.evaluate import on_pairs, run
    from tests.oracles import OPS

    worst: dict[str, float] = {}
    for record in OPS:
        held = inputs(record, "float32")
        (got,) = run(
            "cpu", Spec(on_pairs(record.name, record.dims, record.params), "Sum", 1, "float32"), held
        )
        want = dense(record, held).sum(1)
        error = distance(got, want) if np.abs(want).max() else float(np.abs(got).max())
        worst[record.name] = max(worst.get(record.name, 0.0), error)
    return worst


# ── what is written ───────────────────────────────────────────────────────────────────────────────


def _families_table(rows: list[tuple[Family, Setting, dict[str, float]]]) -> list[str]:
    lines = ["| Reduction | Data | farsum | pykeops | farsum / pykeops |", "|---|---|---|---|---|"]
    for family, setting, worst in rows:
        ours, theirs = worst["farsum"], worst["pykeops"]
        ratio = f"{ours / theirs:.2f}"
        lines.append(
            f"| {family.name} | {setting} | {ours:.1e} | {theirs:.1e} | "
            f"{f'**{ratio}**' if ours > theirs else ratio} |"
        )
    return lines


def _verdict(rows: list[tuple[Family, Setting, dict[str, float]]]) -> list[str]:
    from farsum_kernels.plan import SLAB, TILE, TILE_LONG

    family, setting, most = max(rows, key=lambda row: row[2]["farsum"] / row[2]["pykeops"])
    highest = f"{most['farsum'] / most['pykeops']:.2f} ({family.name}, {setting})"
    worse = [errors for _, _, errors in rows if errors["farsum"] > errors["pykeops"]]
    if not worse:
        return [f"farsum's error is nowhere larger than that of pykeops. The highest ratio is {highest}."]
    small = sum(max(errors.values()) < EPS for errors in worse)
    return [
        f"**farsum's error is larger than that of pykeops in {len(worse)} of the {len(rows)} rows.** The highest",
        f"ratio is {highest}. Both errors are below one unit of float32 rounding, 1.2e-7, in {small or 'none'} of them.",
        f"What is left is mostly the rounding of sums: farsum adds blocks of {TILE} columns, then {SLAB // TILE} blocks, and wide",
        f"right-hand sides in blocks of {TILE_LONG}, in float32 and the rest in float64 ([decision 0003](decisions/0003-block-sums-in-float64.md)), so its error falls with N; pykeops",
        "adds blocks of about √N columns and the blocks in float32, so its error grows.",
    ]


def page(rows: list[tuple[Family, Setting, dict[str, float]]], worst: dict[str, float]) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    operation_lines = [f"| `{name}` | {error:.1e} |" for name, error in sorted(worst.items())]
    return "\n".join(
        [
            "# Accuracy in float32",
            "",
            "The largest distance from the exact answer, relative to its largest value; the worst of three draws. The",
            "exact answer is computed densely in float64 on the float32 data, by differences. Half a unit of float32",
            "rounding is 6e-8: no float32 answer is always nearer than that.",
            "",
            f"- Made by `{COMMAND}`",
            f"- On {machine_line()}",
            f"- With {versions}; both on the CPU, with their default options",
            "",
            "## Next to pykeops",
            "",
            f"{M:,} rows of x, of which {CHECKED} are compared, N rows of y, points uniform in the unit cube, g = 2/D. *Shifted*",
            "moves both clouds by the same amount along every axis: what the float32 data lose by that is not counted,",
            "what an algorithm loses is. A ratio above 1, in bold, says that farsum is the less accurate. In 8 and more",
            "dimensions distances come from scalar products, under the certificate of",
            "[decision 0007](decisions/0007-distances-by-products-under-a-certificate.md), from N = 1,000 on.",
            "",
            *_verdict(rows),
            "",
            *_families_table(rows),
            "",
            "## Every operation of farsum",
            "",
            "Summed over 53 columns, against NumPy in float64, on the inputs of the conformance tests; the worst of the",
            "dimensions and parameters that those have. 0 is exact; `Mult` and `Scalprod` stand out because their terms",
            "cancel there, and the error is relative to the total that is left.",
            "",
            "| Operation | Error |",
            "|---|---|",
            *operation_lines,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="float32 errors of farsum and pykeops against float64.")
    parser.add_argument("--quick", action="store_true", help="small and few: only that it runs")
    parser.add_argument("--write", action="store_true", help="write docs/accuracy.md")
    options = parser.parse_args()
    if not importlib.util.find_spec("pykeops"):
        raise SystemExit(
            "accuracy: pykeops is not importable: `make bench` installs it; it needs a C++ compiler"
        )
    import pykeops.numpy

    import farsum.numpy

    rows = []
    for row in families({"farsum": farsum.numpy.Genred, "pykeops": pykeops.numpy.Genred}, options.quick):
        rows.append(row)
        family, setting, worst = row
        figures = f"farsum {worst['farsum']:.1e}, pykeops {worst['pykeops']:.1e}"
        print(f"  {family.name:<34} {setting!s:<32} {figures}", flush=True)
    worst = operations()
    name = max(worst, key=worst.__getitem__)
    print(f"  {len(worst)} operations, the worst is {name}: {worst[name]:.1e}")
    print("\n".join(_verdict(rows)))
    if options.write:
        PAGE.write_text(page(rows, worst))
        print(f"  wrote {PAGE.relative_to(PAGE.parent.parent)}")


if __name__ == "__main__":
    main()
