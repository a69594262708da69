"""What each operation and reduction means, in plain NumPy. Shares no code with the library.

An `OpRecord` says how to evaluate an operation on dense arrays whose last axis is the vector, and
where: the domain of its inputs, their dimensions, the literal parameters of the formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class OpRecord:
    name: str
    value: Callable[..., np.ndarray]
    dims: tuple[int, ...]
    params: tuple[Any, ...] = ()
    low: float = -2.0
    high: float = 2.0
    parity: str = ""

    @property
    def id(self) -> str:
        return "-".join(map(str, (self.name, *self.dims, *self.params)))


def _total(x: np.ndarray) -> np.ndarray:
    return x.sum(-1, keepdims=True)


def _norm(x: np.ndarray) -> np.ndarray:
    return np.sqrt(_total(x * x))


# fmt: off
OPS = [
    OpRecord("Add",       lambda a, b: a + b, (3, 3)),
    OpRecord("Add",       lambda a, b: a + b, (3, 1)),
    OpRecord("Add",       lambda a, b: a + b, (1, 3)),
    OpRecord("Subtract",  lambda a, b: a - b, (3, 3)),
    OpRecord("Subtract",  lambda a, b: a - b, (1, 40)),
    OpRecord("Mult",      lambda a, b: a * b, (3, 3)),
    OpRecord("Mult",      lambda a, b: a * b, (40, 1)),
    OpRecord("Divide",    lambda a, b: a / b, (3, 3), low=0.5),
    OpRecord("Divide",    lambda a, b: a / b, (1, 3), low=0.5),
    OpRecord("Minus",     lambda x: -x, (3,)),
    OpRecord("Square",    lambda x: x * x, (3,)),
    OpRecord("Inv",       lambda x: 1 / x, (3,), low=0.5),
    OpRecord("Exp",       np.exp, (3,), low=-20.0, high=5.0),
    OpRecord("Log",       np.log, (3,), low=1e-6, high=50.0),
    OpRecord("Sin",       np.sin, (3,), low=-50.0, high=50.0),
    OpRecord("Cos",       np.cos, (3,), low=-50.0, high=50.0),
    OpRecord("Sqrt",      np.sqrt, (3,), low=0.0),
    OpRecord("Rsqrt",     lambda x: 1 / np.sqrt(x), (3,), low=1e-3),
    OpRecord("Abs",       np.abs, (3,)),
    OpRecord("Pow",       lambda x: x**3, (3,), params=(3,)),
    OpRecord("Pow",       lambda x: x**7, (2,), params=(7,)),
    OpRecord("Pow",       lambda x: 1 / x**2, (3,), params=(-2,), low=0.5),
    OpRecord("Pow",       np.ones_like, (3,), params=(0,)),
    OpRecord("Powf",      np.power, (3, 3), low=0.1),
    OpRecord("Powf",      np.power, (3, 1), low=0.1),
    OpRecord("Sum",       _total, (1,)),
    OpRecord("Sum",       _total, (5,)),
    OpRecord("Sum",       _total, (101,)),
    OpRecord("Scalprod",  lambda a, b: _total(a * b), (3, 3)),
    OpRecord("Scalprod",  lambda a, b: _total(a * b), (1, 4)),
    OpRecord("SqNorm2",   lambda x: _total(x * x), (3,)),
    OpRecord("SqNorm2",   lambda x: _total(x * x), (64,)),
    OpRecord("Norm2",     _norm, (3,)),
    OpRecord("Normalize", lambda x: x / _norm(x), (3,)),
    OpRecord("SqDist",    lambda a, b: _total((a - b) ** 2), (3, 3)),
    OpRecord("SqDist",    lambda a, b: _total((a - b) ** 2), (100, 100)),
    OpRecord("SqDist",    lambda a, b: _total((a - b) ** 2), (3, 1)),
]
# fmt: on


def _lse(f: np.ndarray) -> np.ndarray:
    top = f.max(1, keepdims=True)
    return (top + np.log(np.exp(f - top).sum(1, keepdims=True)))[:, 0]


def _k_best(f: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(f, axis=1, kind="stable")[:, :k]


def _lists(a: np.ndarray) -> np.ndarray:
    return a[..., 0] if a.shape[-1] == 1 else a


def _take(f: np.ndarray, k: int) -> np.ndarray:
    return np.take_along_axis(f, _k_best(f, k), 1)


# Each maps F of shape (M, N, D), and K, to the outputs.
REDUCTIONS: dict[str, Callable[..., tuple[np.ndarray, ...]]] = {
    "Sum": lambda f: (f.sum(1),),
    "LogSumExp": lambda f: (_lse(f),),
    "Min": lambda f: (f.min(1),),
    "Max": lambda f: (f.max(1),),
    "ArgMin": lambda f: (f.argmin(1),),
    "ArgMax": lambda f: (f.argmax(1),),
    "Min_ArgMin": lambda f: (f.min(1), f.argmin(1)),
    "Max_ArgMax": lambda f: (f.max(1), f.argmax(1)),
    "KMin": lambda f, k: (_lists(_take(f, k)),),
    "ArgKMin": lambda f, k: (_lists(_k_best(f, k)),),
    "KMin_ArgKMin": lambda f, k: (_lists(_take(f, k)), _lists(_k_best(f, k))),
}
