"""The cache of machine code on disk: content-addressed, verified, private; and other vector widths."""

from __future__ import annotations

import logging
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from farsum_kernels.backends import cache as kernel_cache
from farsum_kernels.backends.cpu import native
from farsum_kernels.backends.cpu.backend import CpuBackend
from farsum_kernels.backends.cpu.skeleton import kernel_text
from farsum_kernels.backends.cpu.vector import LLVM
from farsum_kernels.compile import Compiler
from farsum_kernels.formula.expr import I, J, node, variable
from farsum_kernels.formula.lower import Want, lower
from farsum_kernels.formula.reductions import REDUCTIONS
from farsum_kernels.job import Extent, Part, Spec
from farsum_kernels.plan import UNROLL, Machine, layout_for

SPEC = Spec(node("Exp", node("SqDist", variable(0, 3, I), variable(1, 3, J))), "Sum", 1, "float32")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FARSUM_CACHE", str(tmp_path))
    return tmp_path / "cpu"


def _run() -> np.ndarray:
    kernel = Compiler(CpuBackend(1)).kernel(SPEC)
    x = np.full((5, 3), 0.5, np.float32)
    launch = kernel.launch({0: x, 1: x}, Extent(5, 5, ()))
    launch.step()
    return launch.results()[0]


def test_a_kernel_is_kept_and_found_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (_run() == 5).all()
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(native, "_compile", lambda ir: pytest.fail("compiled although it was on disk"))
    assert (_run() == 5).all()


def test_a_damaged_entry_is_compiled_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    _run()
    (entry,) = cache.iterdir()
    data = bytearray(entry.read_bytes())
    data[100] ^= 1
    entry.write_bytes(bytes(data))
    with caplog.at_level(logging.WARNING):
        assert (_run() == 5).all()
    assert "damaged" in caplog.text


def test_a_folder_that_others_can_enter_is_refused(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir()
    cache.chmod(0o755)
    with caplog.at_level(logging.WARNING):
        assert (_run() == 5).all()
    assert "0700" in caplog.text
    assert list(cache.iterdir()) == []


def test_the_oldest_entries_go_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cache, "MAX_BYTES", 1)
    _run()
    assert list(cache.iterdir()) == []


MACHINES = {
    "avx2": (Machine(32, 16, 1), "haswell", "x86_64-unknown-linux-gnu"),
    "sse2": (Machine(16, 16, 1), "x86-64", "x86_64-unknown-linux-gnu"),
    "neon": (Machine(16, 32, 1), "neoverse-n1", "aarch64-unknown-linux-gnu"),
}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_kernels_compile_for_other_machines(name: str, reduction: str) -> None:
    machine, cpu, triple = MACHINES[name]
    rule = REDUCTIONS[reduction]
    program = lower(
        [Want(SPEC.formula, SPEC.formula if rule.weight == "required" else None)], UNROLL, list(LLVM)
    )
    layout = layout_for(program, [rule], 4, machine)
    weight = SPEC.formula if rule.weight == "required" else None
    part = Part(SPEC.formula, reduction, weight, 4 if rule.listed else 0)
    text = kernel_text(program, [part], "float32", layout, scalef=False, flushes=False)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features="", opt=2)
    module = llvm.parse_assembly(f'target triple = "{triple}"\n{text.ir}')
    module.verify()
    assembly = target.emit_assembly(module)
    # One scalar libm call per lane is what the inlined functions are there to avoid.
    assert "expf" not in assembly


@pytest.mark.parametrize("vector_bytes", [16, 32])
def test_narrow_vectors_give_the_same_values(vector_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine can run the layouts of smaller ones."""
    monkeypatch.setattr(native, "has_scalef", lambda: False)
    rng = np.random.default_rng(0)
    x, y = rng.random((37, 3)), rng.random((300, 3))
    for reduction in ("Sum", "LogSumExp", "ArgMin", "KMin"):
        spec = Spec(node("SqDist", variable(0, 3, I), variable(1, 3, J)), reduction, 1, "float64",
                    k=3 if reduction == "KMin" else 0)  # fmt: skip
        results = []
        for machine in (Machine(vector_bytes, 16, 1), native.machine(1)):
            launch = (
                Compiler(CpuBackend(machine=machine)).kernel(spec).launch({0: x, 1: y}, Extent(37, 300, ()))
            )
            launch.step()
            results.append(launch.results()[0])
        np.testing.assert_allclose(results[0], results[1], rtol=1e-13)
