"""What each operation and reduction means, in plain NumPy. Shares no code with the library.

An `OpRecord` says how to evaluate an operation on dense arrays whose last axis is the vector, and
where: the domain of its inputs, their dimensions, the literal parameters of the formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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
    whole: bool = False  # inputs are whole numbers, so that equal ones occur
    fixed: dict[int, np.ndarray] = field(default_factory=dict)  # operands that are the same for every row

    @property
    def id(self) -> str:
        return "-".join(map(str, (self.name, *self.dims, *self.params))).replace(" ", "")


def _total(x: np.ndarray) -> np.ndarray:
    return x.sum(-1, keepdims=True)


def _norm(x: np.ndarray) -> np.ndarray:
    return np.sqrt(_total(x * x))


def _last(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A function of single vectors, applied along all leading axes with broadcasting."""

    def apply(*args: np.ndarray) -> np.ndarray:
        lead = np.broadcast_shapes(*(a.shape[:-1] for a in args))
        args = tuple(np.broadcast_to(a, lead + a.shape[-1:]) for a in args)
        out = np.array([np.ravel(f(*(a[i] for a in args))) for i in np.ndindex(*lead)])
        return out.reshape(*lead, -1)

    return apply


def _complex(
    f: Callable[..., np.ndarray], real: tuple[bool, ...] = (False, False)
) -> Callable[..., np.ndarray]:
    """A function of complex vectors on interleaved pairs; `real` marks operands that are plain reals."""

    def apply(*args: np.ndarray) -> np.ndarray:
        z = [a if r else a[..., ::2] + 1j * a[..., 1::2] for a, r in zip(args, real, strict=False)]
        out = f(*z)
        if not np.iscomplexobj(out):
            return out
        return np.stack([out.real, out.imag], -1).reshape(*out.shape[:-1], -1)

    return apply


def _permuted(a: np.ndarray, perm: tuple[int, ...]) -> np.ndarray:
    return np.transpose(a, np.argsort(perm)) if perm else a


def _tensordot(df: Any, dg: Any, cf: Any, cg: Any, perm: Any) -> Callable[..., np.ndarray]:
    return _last(lambda f, g: _permuted(np.tensordot(f.reshape(df), g.reshape(dg), (cf, cg)), perm))


def _bspline(degree: int) -> Callable[..., np.ndarray]:
    def basis(t: np.ndarray, x: float, k: int, m: int) -> float:
        if k == 0:
            return float(t[m] <= x < t[m + 1])
        left, right = t[m + k] - t[m], t[m + k + 1] - t[m + 1]
        value = (x - t[m]) / left * basis(t, x, k - 1, m) if left > 0 else 0.0
        return value + ((t[m + k + 1] - x) / right * basis(t, x, k - 1, m + 1) if right > 0 else 0.0)

    return _last(lambda x, t: np.array([basis(t, x[0], degree, m) for m in range(len(t) - degree - 1)]))


def _softdtw(x: np.ndarray, y: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    r = np.full((len(x) + 1, len(y) + 1), np.inf)
    r[0, 0] = 0
    for i in range(len(x)):
        for j in range(len(y)):
            before = np.array([r[i, j], r[i, j + 1], r[i + 1, j]])
            low = before.min()
            r[i + 1, j + 1] = (
                (x[i] - y[j]) ** 2 + low - gamma[0] * np.log(np.exp((low - before) / gamma[0]).sum())
            )
    return r[-1, -1:]


def _one_hot(n: int) -> Callable[..., np.ndarray]:
    return lambda x: (np.trunc(x + 0.5) == np.arange(n)).astype(float)


def _embed(start: int, n: int) -> Callable[..., np.ndarray]:
    return _last(lambda x: np.concatenate([np.zeros(start), x, np.zeros(n - start - len(x))]))


def _round(x: np.ndarray, k: int) -> np.ndarray:
    scaled = np.abs(x) * 10.0**k
    return np.sign(x) * np.floor(scaled + 0.5) / 10.0**k


# fmt: off
OPS = [
    OpRecord("Add",       lambda a, b: a + b, (3, 3), parity="O-40"),
    OpRecord("Add",       lambda a, b: a + b, (3, 1)),
    OpRecord("Add",       lambda a, b: a + b, (1, 3)),
    OpRecord("Subtract",  lambda a, b: a - b, (3, 3), parity="O-41"),
    OpRecord("Subtract",  lambda a, b: a - b, (1, 40)),
    OpRecord("Mult",      lambda a, b: a * b, (3, 3), parity="O-42"),
    OpRecord("Mult",      lambda a, b: a * b, (40, 1)),
    OpRecord("Divide",    lambda a, b: a / b, (3, 3), low=0.5, parity="O-43"),
    OpRecord("Divide",    lambda a, b: a / b, (1, 3), low=0.5),
    OpRecord("Divide",    lambda a, b: a / b, (3, 1), low=0.5),
    OpRecord("Minus",     lambda x: -x, (3,), parity="O-10"),
    OpRecord("Square",    lambda x: x * x, (3,), parity="O-20"),
    OpRecord("Inv",       lambda x: 1 / x, (3,), low=0.5, parity="O-23"),
    OpRecord("Exp",       np.exp, (3,), low=-20.0, high=5.0, parity="O-11"),
    OpRecord("Log",       np.log, (3,), low=1e-2, high=50.0, parity="O-12"),
    OpRecord("XLogX",     lambda x: x * np.log(x), (3,), low=0.1, parity="O-13"),
    OpRecord("Sin",       np.sin, (3,), low=-50.0, high=50.0, parity="O-14"),
    OpRecord("Cos",       np.cos, (3,), low=-50.0, high=50.0, parity="O-15"),
    OpRecord("SinXDivX",  lambda x: np.sinc(x / np.pi), (3,), low=0.3, high=9.0, parity="O-16"),
    OpRecord("Asin",      np.arcsin, (3,), low=-0.9, high=0.9, parity="O-17"),
    OpRecord("Acos",      np.arccos, (3,), low=-0.9, high=0.9, parity="O-18"),
    OpRecord("Atan",      np.arctan, (3,), parity="O-19"),
    OpRecord("Sqrt",      np.sqrt, (3,), low=0.1, parity="O-21"),
    OpRecord("Rsqrt",     lambda x: 1 / np.sqrt(x), (3,), low=0.1, parity="O-22"),
    OpRecord("Abs",       np.abs, (3,), low=0.1, parity="O-25"),
    OpRecord("Sign",      np.sign, (3,), parity="O-26"),
    OpRecord("Step",      lambda x: (x >= 0) * 1.0, (3,), parity="O-27"),
    OpRecord("ReLU",      lambda x: np.maximum(x, 0), (3,), parity="O-28"),
    OpRecord("Floor",     np.floor, (3,), parity="O-29"),
    OpRecord("Round",     lambda x: _round(x, 0), (3,), params=(0,), high=9.0, parity="O-30"),
    OpRecord("Round",     lambda x: _round(x, 2), (3,), params=(2,)),
    OpRecord("Round",     lambda x: _round(x, -1), (3,), params=(-1,), low=-99.0, high=99.0),
    OpRecord("ClampInt",  lambda x: np.clip(x, -1, 1), (3,), params=(-1, 1), parity="O-31"),
    OpRecord("DiffClampInt", lambda x: (np.abs(x) <= 1) * 1.0, (3,), params=(-1, 1), parity="O-32"),
    OpRecord("Pow",       lambda x: x**3, (3,), params=(3,), parity="O-24"),
    OpRecord("Pow",       lambda x: x**7, (2,), params=(7,)),
    OpRecord("Pow",       lambda x: 1 / x**2, (3,), params=(-2,), low=0.5),
    OpRecord("Pow",       np.ones_like, (3,), params=(0,)),
    OpRecord("Powf",      np.power, (3, 3), low=0.3, parity="O-44"),
    OpRecord("Powf",      np.power, (3, 1), low=0.3),
    OpRecord("Powf",      np.power, (1, 3), low=0.3),
    OpRecord("Atan2",     np.arctan2, (3, 3), low=0.2, parity="O-45"),
    OpRecord("Atan2",     np.arctan2, (3, 1), low=0.2),
    OpRecord("Equal",     lambda a, b: (np.round(a) == np.round(b)) * 1.0, (3, 3), parity="O-46", whole=True),
    OpRecord("NotEqual",  lambda a, b: (np.round(a) != np.round(b)) * 1.0, (3, 3), parity="O-47", whole=True),
    OpRecord("LessThan",  lambda a, b: (a < b) * 1.0, (3, 1), parity="O-48", whole=True),
    OpRecord("LessOrEqual", lambda a, b: (a <= b) * 1.0, (3, 1), parity="O-49", whole=True),
    OpRecord("Clamp",     lambda f, a, b: np.where(f < a, a, np.where(f > b, b, f)), (3, 1, 3), parity="O-50"),
    OpRecord("IfElse",    lambda f, a, b: (f >= 0) * a + (f < 0) * b, (3, 3, 1), parity="O-51"),
    OpRecord("Mod",       lambda f, n, o: f - n * np.floor((f - o) / n), (3, 1, 3), low=0.7, high=5.0, parity="O-52"),
    OpRecord("Sum",       _total, (1,)),
    OpRecord("Sum",       _total, (5,), parity="O-60"),
    OpRecord("Sum",       _total, (101,)),
    OpRecord("SumT",      lambda x: np.repeat(x, 4, -1), (1,), params=(4,), parity="O-61"),
    OpRecord("Max",       lambda x: x.max(-1, keepdims=True), (4,), parity="O-62"),
    OpRecord("Max",       lambda x: x.max(-1, keepdims=True), (40,)),
    OpRecord("Min",       lambda x: x.min(-1, keepdims=True), (4,)),
    OpRecord("ArgMax",    lambda x: x.argmax(-1)[..., None] * 1.0, (4,), parity="O-63"),
    OpRecord("ArgMax",    lambda x: x.argmax(-1)[..., None] * 1.0, (41,)),
    OpRecord("ArgMin",    lambda x: x.argmin(-1)[..., None] * 1.0, (4,)),
    OpRecord("Elem",      lambda x: x[..., 2:3], (4,), params=(2,), parity="O-64"),
    OpRecord("ElemT",     _embed(1, 4), (1,), params=(4, 1), parity="O-65"),
    OpRecord("Extract",   lambda x: x[..., 1:3], (5,), params=(1, 2), parity="O-66"),
    OpRecord("Extract",   lambda x: x[..., 1:31], (50,), params=(1, 30)),
    OpRecord("ExtractT",  _embed(1, 5), (2,), params=(1, 5), parity="O-67"),
    OpRecord("ExtractT",  _embed(10, 50), (20,), params=(10, 50)),
    OpRecord("Concat",    _last(lambda a, b: np.concatenate([a, b])), (2, 3), parity="O-68"),
    OpRecord("Concat",    _last(lambda a, b: np.concatenate([a, b])), (20, 11)),
    OpRecord("OneHot",    _one_hot(4), (1,), params=(4,), low=-2.0, high=5.0, parity="O-69"),
    OpRecord("Scalprod",  lambda a, b: _total(a * b), (3, 3), parity="O-75"),
    OpRecord("Scalprod",  lambda a, b: _total(a * b), (1, 4)),
    OpRecord("SqNorm2",   lambda x: _total(x * x), (3,), parity="O-76"),
    OpRecord("SqNorm2",   lambda x: _total(x * x), (64,)),
    OpRecord("Norm2",     _norm, (3,), low=0.1, parity="O-77"),
    OpRecord("Normalize", lambda x: x / _norm(x), (3,), low=0.1, parity="O-78"),
    OpRecord("SqDist",    lambda a, b: _total((a - b) ** 2), (3, 3), parity="O-79"),
    OpRecord("SqDist",    lambda a, b: _total((a - b) ** 2), (100, 100)),
    OpRecord("SqDist",    lambda a, b: _total((a - b) ** 2), (3, 1)),
    OpRecord("SqNormIso", lambda s, f: s * _total(f * f), (3, 2), parity="O-80"),
    OpRecord("SqNormDiag", lambda s, f: _total(s * f * f), (3, 3), parity="O-81"),
    OpRecord("SymSqNorm", _last(lambda a, f: f @ a.reshape(3, 3) @ f), (9, 3), parity="O-82"),
    OpRecord("WeightedSqNorm", lambda s, f: s * _total(f * f), (1, 3), parity="O-83"),
    OpRecord("WeightedSqNorm", lambda s, f: _total(s * f * f), (3, 3)),
    OpRecord("WeightedSqNorm", _last(lambda a, f: f @ a.reshape(3, 3) @ f), (9, 3)),
    OpRecord("WeightedSqDist", lambda s, f, g: _total(s * (f - g) ** 2), (3, 3, 3), parity="O-84"),
    OpRecord("MatVecMult", _last(lambda a, b: a.reshape(-1, len(b)) @ b), (6, 3), parity="O-90"),
    OpRecord("MatVecMult", _last(lambda a, b: a.reshape(-1, len(b)) @ b), (200, 20)),
    OpRecord("VecMatMult", _last(lambda b, a: b @ a.reshape(len(b), -1)), (2, 6), parity="O-91"),
    OpRecord("TensorProd", _last(np.outer), (2, 3), parity="O-92"),
    OpRecord("TensorProd", _last(np.outer), (5, 7)),
    OpRecord("TensorDot", _tensordot((2, 3), (3, 2), (1,), (0,), ()), (6, 6), params=((2, 3), (3, 2), (1,), (0,), ()), parity="O-93"),
    OpRecord("TensorDot", _tensordot((2, 3, 2), (2, 3), (0, 1), (0, 1), ()), (12, 6), params=((2, 3, 2), (2, 3), (0, 1), (0, 1), ())),
    OpRecord("TensorDot", _tensordot((2, 3, 2), (2, 2), (2,), (0,), (2, 0, 1)), (12, 4), params=((2, 3, 2), (2, 2), (2,), (0,), (2, 0, 1))),
    OpRecord("TensorDot", _tensordot((2, 3, 2), (3, 2), (2, 1), (1, 0), ()), (12, 6), params=((2, 3, 2), (3, 2), (2, 1), (1, 0), ())),
    OpRecord("Kron",      _last(lambda f, g: np.kron(f.reshape(2, 3), g.reshape(1, 2))), (6, 2), params=((2, 3), (1, 2)), parity="O-94"),
    OpRecord("BSpline",   lambda t, x: _bspline(2)(x, t), (6, 1), params=(2,), parity="O-95", fixed={0: np.arange(6.0)}, high=4.9, low=0.1),
    OpRecord("SoftDTW_SqDist", _last(_softdtw), (3, 2, 1), low=0.3, high=1.5, parity="O-96"),
    OpRecord("Real2Complex", lambda x: _complex(lambda a: a + 0j, (True,))(x), (3,), parity="O-120"),
    OpRecord("Imag2Complex", lambda x: _complex(lambda a: 1j * a, (True,))(x), (3,), parity="O-121"),
    OpRecord("ComplexReal", lambda x: x[..., ::2], (6,), parity="O-122"),
    OpRecord("ComplexImag", lambda x: x[..., 1::2], (20,)),
    OpRecord("Interleave", lambda a, b: np.stack(np.broadcast_arrays(a, b), -1).reshape(*np.broadcast_shapes(a.shape, b.shape)[:-1], -1), (10, 10)),
    OpRecord("Conj",      _complex(np.conj), (4,), parity="O-123"),
    OpRecord("ComplexAdd", _complex(lambda a, b: a + b), (4, 4), parity="O-124"),
    OpRecord("ComplexSubtract", _complex(lambda a, b: a - b), (2, 4)),
    OpRecord("ComplexMult", _complex(lambda a, b: a * b), (4, 4), parity="O-125"),
    OpRecord("ComplexMult", _complex(lambda a, b: a * b), (2, 4)),
    OpRecord("ComplexMult", _complex(lambda a, b: a * b), (20, 20)),
    OpRecord("ComplexDivide", _complex(lambda a, b: a / b), (4, 4), low=0.5, parity="O-126"),
    OpRecord("ComplexRealScal", _complex(lambda a, b: a * b, (True, False)), (1, 4), parity="O-127"),
    OpRecord("ComplexSquareAbs", _complex(lambda a: np.abs(a) ** 2), (4,), parity="O-128"),
    OpRecord("ComplexAbs", _complex(np.abs), (4,), low=0.2, parity="O-129"),
    OpRecord("ComplexAngle", _complex(np.angle), (4,), low=0.2, parity="O-130"),
    OpRecord("ComplexExp", _complex(np.exp), (4,), parity="O-131"),
    OpRecord("ComplexExp1j", _complex(lambda a: np.exp(1j * a), (True,)), (3,), parity="O-132"),
    OpRecord("ComplexSum", _complex(lambda a: a.sum(-1, keepdims=True)), (6,), parity="O-133"),
    OpRecord("ComplexSumT", _complex(lambda a: np.repeat(a, 3, -1)), (2,), params=(6,), parity="O-134"),
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


def _shifted(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    """max and the sums of exp(f - max)·g, side by side."""
    top = f.max(1, keepdims=True)
    return np.concatenate([top[:, 0], (np.exp(f - top) * g).sum(1)], -1)


def _softmax(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    p = np.exp(f - f.max(1, keepdims=True))
    return (p * g).sum(1) / p.sum(1)


def _log_weighted(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    raw = _shifted(f, g)
    return raw[:, :1] + np.log(raw[:, 1:])


# Each maps F of shape (M, N, D), and the weight (M, N, W) or K, to the outputs.
REDUCTIONS: dict[str, Callable[..., tuple[np.ndarray, ...]]] = {
    "Sum": lambda f: (f.sum(1),),
    "LogSumExp": lambda f, g=None: (_lse(f) if g is None else _log_weighted(f, g),),
    "LogSumExpWeight": lambda f, g: (_log_weighted(f, g),),
    "SumSoftMaxWeight": lambda f, g: (_softmax(f, g),),
    "SoftMax": lambda f, g: (_softmax(f, g),),
    "Max_SumShiftExp": lambda f: (_shifted(f, np.ones_like(f)),),
    "Max_SumShiftExpWeight": lambda f, g=None: (_shifted(f, np.ones_like(f) if g is None else g),),
    "Min": lambda f: (f.min(1),),
    "Max": lambda f: (f.max(1),),
    "ArgMin": lambda f: (f.argmin(1),),
    "ArgMax": lambda f: (f.argmax(1),),
    "Min_ArgMin": lambda f: (f.min(1), f.argmin(1)),
    "MinArgMin": lambda f: (f.min(1), f.argmin(1)),
    "Max_ArgMax": lambda f: (f.max(1), f.argmax(1)),
    "MaxArgMax": lambda f: (f.max(1), f.argmax(1)),
    "KMin": lambda f, k: (_lists(_take(f, k)),),
    "ArgKMin": lambda f, k: (_lists(_k_best(f, k)),),
    "KMin_ArgKMin": lambda f, k: (_lists(_take(f, k)), _lists(_k_best(f, k))),
    "KMinArgKMin": lambda f, k: (_lists(_take(f, k)), _lists(_k_best(f, k))),
}
