"""What the emulator runs is CUDA: NVRTC takes the same texts, prelude and all."""

from __future__ import annotations

import pytest

from farsum_kernels.backends.cuda import nvrtc
from tests.cuda import test_emulator, test_emulator_warps, test_sanitizers

TEXTS = {
    "gauss": test_emulator.GAUSS,
    "barriers": test_emulator.BARRIERS,
    "shared": test_emulator.SHARED,
    "grid": test_emulator.GRID,
    "shuffles": test_emulator_warps.SHUFFLES,
    "product": test_emulator_warps.PRODUCT,
    "copies": test_emulator_warps.COPIES,
    "numbers": test_emulator_warps.NUMBERS,
    "sanitizers": test_sanitizers.SOURCE,
}


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("text", TEXTS)
def test_the_same_texts_compile_for_devices(text: str, arch: int) -> None:
    code, usage = nvrtc.compile(TEXTS[text], arch)
    assert code and usage
    assert all(u.spilled_bytes == 0 for u in usage.values())
