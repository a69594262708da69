"""Each operation of complex vectors: its values, the cotangents of its operands, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from farsum_kernels.errors import DimensionError, FormulaError
from farsum_kernels.formula.expr import node
from tests.evaluate import BACKENDS
from tests.parity.rows import at, check_all, dense_rows, joined, rows, same, total

case, mark = pytest.param, pytest.mark
both = mark.parametrize("backend", BACKENDS)


def _z(x: np.ndarray) -> np.ndarray:
    return x[..., ::2] + 1j * x[..., 1::2]


def _pairs(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], -1).reshape(*z.shape[:-1], -1)


def _c(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A rule on complex vectors as one on pairs."""
    return lambda *args: _pairs(f(*map(_z, args)))


def _c_vjp(f: Callable[..., tuple]) -> Callable[..., tuple]:
    """Cotangents written in complex numbers; a broadcast scalar gets the complex sum."""

    def vjp(e: np.ndarray, *args: np.ndarray) -> tuple:
        parts = [np.broadcast_to(c, _z(e).shape) for c in f(_z(e), *map(_z, args))]
        return tuple(
            _pairs(c if c.shape[-1] * 2 == a.shape[-1] else c.sum(-1, keepdims=True))
            for c, a in zip(parts, args, strict=True)
        )

    return vjp


# fmt: off
COMPLEX = [
    case("Real2Complex", (), (3,), lambda x: _pairs(x + 0j), lambda e, x: (e[:, ::2],), id="Real2Complex", marks=mark.parity("O-120", "X-22")),
    case("Imag2Complex", (), (3,), lambda x: _pairs(1j * x), lambda e, x: (e[:, 1::2],), id="Imag2Complex", marks=mark.parity("O-121", "X-22")),
    case("ComplexReal", (), (6,), lambda x: x[:, ::2], lambda e, x: (_pairs(e + 0j),), id="ComplexReal", marks=mark.parity("O-122")),
    case("ComplexImag", (), (6,), lambda x: x[:, 1::2], lambda e, x: (_pairs(1j * e),), id="ComplexImag", marks=mark.parity("O-122")),
    case("ComplexImag", (), (40,), lambda x: x[:, 1::2], lambda e, x: (_pairs(1j * e),), id="ComplexImag-40", marks=mark.parity("O-122")),
    case("Conj", (), (4,), _c(np.conj), _c_vjp(lambda e, z: (e.conj(),)), id="Conj", marks=mark.parity("O-123")),
    case("ComplexAdd", (), (4, 4), _c(lambda a, b: a + b), _c_vjp(lambda e, a, b: (e, e)), id="ComplexAdd", marks=mark.parity("O-124")),
    case("ComplexAdd", (), (2, 6), _c(lambda a, b: a + b), _c_vjp(lambda e, a, b: (e, e)), id="ComplexAdd-26", marks=mark.parity("O-124")),
    case("ComplexSubtract", (), (6, 2), _c(lambda a, b: a - b), _c_vjp(lambda e, a, b: (e, -e)), id="ComplexSubtract", marks=mark.parity("O-124")),
    case("ComplexMult", (), (4, 4), _c(lambda a, b: a * b), _c_vjp(lambda e, a, b: (b.conj() * e, a.conj() * e)), id="ComplexMult", marks=mark.parity("O-125")),
    case("ComplexMult", (), (2, 6), _c(lambda a, b: a * b), _c_vjp(lambda e, a, b: (b.conj() * e, a.conj() * e)), id="ComplexMult-26", marks=mark.parity("O-125")),
    case("ComplexDivide", (), (4, 4), _c(lambda a, b: a / b), _c_vjp(lambda e, a, b: (e / b.conj(), -e * (a / b**2).conj())), id="ComplexDivide", marks=mark.parity("O-126")),
    case("ComplexDivide", (), (2, 6), _c(lambda a, b: a / b), _c_vjp(lambda e, a, b: (e / b.conj(), -e * (a / b**2).conj())), id="ComplexDivide-26", marks=mark.parity("O-126")),
    case("ComplexRealScal", (), (1, 4), lambda s, z: s * z, lambda e, s, z: (total(e * z), e * s), id="ComplexRealScal", marks=mark.parity("O-127", "X-22")),
    case("ComplexRealScal", (), (4, 1), lambda z, s: s * z, lambda e, z, s: (e * s, total(e * z)), id="ComplexRealScal-41", marks=mark.parity("O-127")),
    case("ComplexSquareAbs", (), (4,), lambda x: np.abs(_z(x)) ** 2, lambda e, x: (_pairs(2 * e * _z(x)),), id="ComplexSquareAbs", marks=mark.parity("O-128")),
    case("ComplexAbs", (), (4,), lambda x: np.abs(_z(x)), lambda e, x: (_pairs(e * _z(x) / np.abs(_z(x))),), id="ComplexAbs", marks=mark.parity("O-129")),
    case("ComplexAngle", (), (4,), lambda x: np.angle(_z(x)), lambda e, x: (_pairs(e * 1j * _z(x) / np.abs(_z(x)) ** 2),), id="ComplexAngle", marks=mark.parity("O-130")),
    case("ComplexExp", (), (4,), _c(np.exp), _c_vjp(lambda e, z: (e * np.exp(z).conj(),)), id="ComplexExp", marks=mark.parity("O-131")),
    case("ComplexExp1j", (), (3,), lambda x: _pairs(np.exp(1j * x)), lambda e, x: ((_z(e) * (1j * np.exp(1j * x)).conj()).real,), id="ComplexExp1j", marks=mark.parity("O-132", "X-22")),
    case("ComplexSum", (), (6,), lambda x: _pairs(_z(x).sum(-1, keepdims=True)), lambda e, x: (np.tile(e, 3),), id="ComplexSum", marks=mark.parity("O-133")),
    case("ComplexSumT", (6,), (2,), lambda x: np.tile(x, 3), lambda e, x: (_pairs(_z(e).sum(-1, keepdims=True)),), id="ComplexSumT", marks=mark.parity("O-134")),
]
ODD = ["ComplexReal", "ComplexImag", "Conj", "ComplexSquareAbs", "ComplexAbs", "ComplexAngle", "ComplexExp", "ComplexSum"]
# fmt: on


@mark.parametrize(("op", "params", "dims", "value", "vjp"), COMPLEX)
@both
def test_complex(backend: str, op: str, params: tuple, dims: tuple, value: Callable, vjp: Callable) -> None:
    check_all(backend, op, params, dense_rows(dims, 0.2, 2.0), value, vjp)


@mark.parity("O-129")
@both
def test_the_modulus_has_no_slope_at_zero(backend: str) -> None:
    z, e = rows(2, 1)
    f = node("ComplexAbs", z)
    same(at(backend, joined(f, node("Grad", f, z, e)), [[0.0, 0.0]], [[3.0]]), [[0, 0, 0]], atol=0)


@mark.parity("O-122", "O-123", "O-128", "O-131", "O-133", "O-135")
@mark.parametrize("op", ODD)
def test_a_complex_vector_has_an_even_number_of_reals(op: str) -> None:
    with pytest.raises(DimensionError, match="even number of reals; received 3"):
        node(op, *rows(3))


@mark.parity("O-124", "O-125", "O-126", "O-127", "O-134")
def test_complex_operands_that_do_not_fit() -> None:
    for op in ("ComplexAdd", "ComplexSubtract", "ComplexMult", "ComplexDivide"):
        with pytest.raises(DimensionError, match="even number of reals"):
            node(op, *rows(3, 3))
        with pytest.raises(DimensionError, match="one dimension, or a complex scalar; received 4 and 6"):
            node(op, *rows(4, 6))
    with pytest.raises(DimensionError, match="real scalar"):
        node("ComplexRealScal", *rows(2, 4))
    with pytest.raises(FormulaError, match="even number of reals; received 2 and 5"):
        node("ComplexSumT", *rows(2), params=(5,))


@mark.parity("O-135", "X-22")
@both
def test_complex_operations_of_real_variables_of_odd_dimension_have_gradients(backend: str) -> None:
    x, z, e = rows(3, 6, 6)
    f = node("ComplexMult", node("ComplexExp1j", x), z)
    data = dense_rows((3, 6, 6))
    got = at(backend, node("Grad", f, x, e), *data)
    slope = 1j * np.exp(1j * data[0]) * _z(data[1])
    same(got, (_z(data[2]) * slope.conj()).real)
