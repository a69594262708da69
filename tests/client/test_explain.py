"""`explain`: what a reduction would compute, send and cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from farsum.numpy import Genred, LazyTensor, Vi, Vj
from farsum_kernels.errors import ShapeError

rng = np.random.default_rng(0)
x, y = rng.random((40, 3), np.float32), rng.random((50, 3), np.float32)
K: Any = (-(Vi(x) - Vj(y)).sqnorm2() / 0.3).exp()


def test_of_a_lazytensor() -> None:
    told = K.explain()
    assert (told.shape, told.result, told.dtype) == ((40, 50), ((40, 1),), "float32")
    assert (told.reduction, told.axis, told.pairs) == ("Sum", 1, 2000)
    assert told.flops >= 2000 * 8, "three differences, three squares, two sums at the least"
    assert told.array_bytes == x.nbytes + y.nbytes + 4
    assert told.bytes_to_send == 0 and told.where.startswith("in this process")
    assert int(told.plan["threads"]) == 1 and int(told.plan["pairs"]) == 2000
    text = str(told)
    for words in ("Exp((Minus(SqNorm2", "Sum over j", "(40, 50) to (40, 1), float32", "2e+03 pairs"):
        assert words in text


def test_flops_grow_with_pairs_and_formula() -> None:
    twice = (-(Vi(np.tile(x, (2, 1))) - Vj(y)).sqnorm2() / 0.3).exp()
    assert twice.explain().flops == 2 * K.explain().flops
    assert (K * K.sin() + 1).explain().flops > K.explain().flops


def test_of_other_reductions() -> None:
    told = K.Kmin_argKmin(4, axis=0, call=False).explain()
    assert told.result == ((50, 4), (50, 4)) and told.reduction == "KMin_ArgKMin"
    batch = LazyTensor(rng.random((2, 1, 5, 1, 3))).sqdist(LazyTensor(rng.random((3, 1, 6, 3))))
    assert batch.explain().shape == (2, 3, 5, 6) and batch.explain().pairs == 180


def test_of_a_block_sparse_reduction() -> None:
    causal = K.sum(axis=1, mask="causal", call=False).explain()
    assert causal.pairs == sum(range(1, 41))
    assert causal.flops == pytest.approx(K.explain().flops * causal.pairs / 2000)
    other = K.sum(axis=0, mask="causal", call=False).explain()
    assert other.pairs == causal.pairs


def test_of_formulas_and_symbols() -> None:
    f = Genred("Exp(-SqDist(x,y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)
    told = f.explain(x, y)
    assert told.formula == "Sum_Reduction(Exp(-SqDist(x,y)),0)" and told.pairs == 2000
    symbolic: Any = Vi(0, 3).sqdist(Vj(1, 3)).sum(axis=1)
    assert symbolic.explain(x, y).pairs == 2000
    with pytest.raises(ShapeError, match="expected 2 inputs"):
        symbolic.explain(x)


def test_a_wide_accumulator_is_seen() -> None:
    assert K.sum(axis=1, call=False, use_double_acc=True).explain().array_bytes == 2 * K.explain().array_bytes
