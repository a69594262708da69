"""Every kernel of the fixed workloads is compiled for real GPUs, none of which is needed: registers, spills, the cache.

`python -m tests.cuda.test_nvrtc` writes the table of registers anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from farsum_kernels.backends import cache
from farsum_kernels.backends.cuda import nvrtc
from farsum_kernels.backends.cuda.fold import fold_text
from farsum_kernels.backends.cuda.kernel import Kernel
from farsum_kernels.backends.cuda.layout import TENSOR
from farsum_kernels.errors import CompilerMissing, InternalError
from farsum_kernels.job import Spec
from tests.cuda.cases import CASES, WORKLOADS
from tests.cuda.driver import EmulatedDriver

TABLE = Path(__file__).with_name("registers.json")
ARCHITECTURES = (80, 90, 100)
BY_TENSOR = ", tensor cores"
NAMES = [*WORKLOADS, *(name + BY_TENSOR for name in ("W1", "W4-10", "W4-100", "W4-1000", "W8"))]


class Unloaded(EmulatedDriver):
    """A device whose kernels are printed and never loaded."""

    def load(self, source: str):
        raise AssertionError("nothing is launched here")


def sources(spec: Spec, path: str | None = None) -> list[str]:
    """The text of each layout that a job may be run with, or of those with products from tensor cores."""
    kernel = Kernel(spec, Unloaded())
    if path == TENSOR:
        assert kernel.by_products and kernel.by_products.tensor
        kernel = kernel.by_products.tensor.kernel
    return [kernel.variant(place).text.source for place in range(len(kernel.layouts))]


def registers(name: str, arch: int) -> list[int]:
    """Of the kernel "reduce", layout by layout. Nothing of it may be spilled."""
    found = []
    for source in sources(WORKLOADS[name.removesuffix(BY_TENSOR)], TENSOR if BY_TENSOR in name else None):
        _, usage = nvrtc.compile(source, arch)
        for kernel, used in usage.items():
            assert used.spilled_bytes == 0, (
                f"{kernel} of {name} spills {used.spilled_bytes} bytes on sm_{arch}"
            )
        found.append(usage["reduce"].registers)
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", NAMES)
def test_no_workload_spills_or_grows(name: str, arch: int) -> None:
    wanted = json.loads(TABLE.read_text())
    got = registers(name, arch)
    budget = wanted[name][f"sm_{arch}"]
    # Versions of NVRTC differ by some registers; what counts is how many blocks fit.
    assert len(got) == len(budget) and all(g <= b + 8 for g, b in zip(got, budget, strict=True)), (
        got,
        budget,
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in WORKLOADS], ids=lambda c: c.name)
def test_every_kind_of_kernel_compiles(case) -> None:
    kernel = Kernel(case.spec, Unloaded())
    cubin, usage = nvrtc.compile(kernel.variant(0).text.source, 90)
    assert cubin.startswith(b"\x7fELF") and set(usage) == {"reduce", "combine"}


@pytest.mark.parametrize("name", ["W1", "W6-3", "W9", "gradient-100"])
def test_what_carries_states_compiles(name: str) -> None:
    kernel = Kernel(WORKLOADS[name], Unloaded())
    layout = kernel.layouts[0]
    source = fold_text(kernel.program, kernel.parts, kernel.spec.dtype, kernel.computed, layout)
    _, usage = nvrtc.compile(source, 90)
    assert set(usage) == {"fold"} and usage["fold"].spilled_bytes == 0


def test_a_cubin_is_whole() -> None:
    # CuPy's binding drops its last byte: the headers say how long it must be.
    (source, *_) = sources(WORKLOADS["W1"])
    cubin, _ = nvrtc.compile(source, 90)
    programs, sections = (int.from_bytes(cubin[at : at + 8], "little") for at in (0x20, 0x28))
    sizes = [int.from_bytes(cubin[at : at + 2], "little") for at in (0x36, 0x38, 0x3A, 0x3C)]
    assert len(cubin) >= max(programs + sizes[0] * sizes[1], sections + sizes[2] * sizes[3])


def test_equal_formulas_give_equal_source_and_are_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARSUM_CACHE", str(tmp_path))
    (source, *_), (again, *_) = sources(WORKLOADS["W5-3"]), sources(WORKLOADS["W5-3"])
    assert source == again
    key, code = nvrtc.cubin(source, 90)
    assert [p.name for p in (tmp_path / "cuda").iterdir()] == [key]
    monkeypatch.setattr(nvrtc, "compile", None)  # a second compilation would fail
    assert nvrtc.cubin(source, 90) == (key, code)
    assert cache.cache_folder("cuda") == tmp_path / "cuda"


def test_a_gpu_that_nvrtc_does_not_know() -> None:
    with pytest.raises(CompilerMissing, match=r"capability 2\.0"):
        nvrtc.compile("", 20)


def test_source_that_does_not_compile_is_our_fault() -> None:
    with pytest.raises(InternalError, match="nonsense"):
        nvrtc.compile("nonsense", 90)


if __name__ == "__main__":
    found = {name: {f"sm_{a}": registers(name, a) for a in ARCHITECTURES} for name in NAMES}
    TABLE.write_text("{\n" + ",\n".join(f'  "{n}": {json.dumps(row)}' for n, row in found.items()) + "\n}\n")
    sys.stdout.write(TABLE.read_text())
