"""Each operation of tensors, splines and sequences: its values and the cotangents of its operands."""

from __future__ import annotations

import numpy as np
import pytest

from farsum_kernels.formula.expr import I, node, variable
from tests import oracles
from tests.evaluate import BACKENDS
from tests.parity.rows import at, check_all, dense_rows, each, joined, rows, same

mark = pytest.mark
both = mark.parametrize("backend", BACKENDS)


# (shape of f, shape of g, contracted axes of f, of g, places of the kept axes)
TENSORS = [
    ((2, 3), (3, 2), (1,), (0,), ()),
    ((2, 3), (2, 3), (0, 1), (0, 1), ()),
    ((2, 3), (4,), (), (), ()),
    ((2, 3), (4,), (), (), (2, 0, 1)),
    ((2, 3, 4), (4, 3), (2, 1), (0, 1), ()),
    ((2, 3, 4), (3, 5), (1,), (0,), (1, 2, 0)),
    ((5, 2, 3), (3, 2, 4), (2, 1), (0, 1), (1, 0)),
    ((2, 3, 2), (2, 2, 5), (0, 2), (1, 0), (1, 0)),
]


@mark.parity("O-93")
@mark.parametrize(("df", "dg", "over_f", "over_g", "perm"), TENSORS, ids=str)
@both
def test_tensordot(backend: str, df: tuple, dg: tuple, over_f: tuple, over_g: tuple, perm: tuple) -> None:
    letters = iter("abcdefgh")
    in_f = [next(letters) for _ in df]
    in_g = [in_f[over_f[over_g.index(a)]] if a in over_g else next(letters) for a in range(len(dg))]
    kept = [c for a, c in enumerate(in_f) if a not in over_f] + [
        c for a, c in enumerate(in_g) if a not in over_g
    ]
    order = [kept[a] for a in np.argsort(perm)] if perm else kept
    f, g, out = "".join(in_f), "".join(in_g), "".join(order)

    def value(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        z = np.einsum(f"r{f},r{g}->r{out}", x.reshape(-1, *df), y.reshape(-1, *dg))
        return z.reshape(len(x), -1)

    def vjp(e: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple:
        sizes = dict(zip(f + g, df + dg, strict=True))
        e = e.reshape(-1, *(sizes[c] for c in out))
        return (
            np.einsum(f"r{out},r{g}->r{f}", e, y.reshape(-1, *dg)).reshape(len(x), -1),
            np.einsum(f"r{out},r{f}->r{g}", e, x.reshape(-1, *df)).reshape(len(x), -1),
        )

    data = dense_rows((int(np.prod(df)), int(np.prod(dg))))
    check_all(backend, "TensorDot", (df, dg, over_f, over_g, perm), data, value, vjp)


@mark.parity("O-94")
@mark.parametrize(("df", "dg"), [((2, 3), (1, 2)), ((3,), (4,)), ((2, 2, 2), (2, 1, 3))], ids=str)
@both
def test_kron(backend: str, df: tuple, dg: tuple) -> None:
    def kron(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.kron(x.reshape(df), y.reshape(dg))

    def vjp(e: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple:
        to_x = [[np.vdot(er, kron(b, yr)) for b in np.eye(x.shape[-1])] for er, yr in zip(e, y, strict=True)]
        to_y = [[np.vdot(er, kron(xr, b)) for b in np.eye(y.shape[-1])] for er, xr in zip(e, x, strict=True)]
        return np.array(to_x), np.array(to_y)

    def vdot_ready(e: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple:
        shape = np.multiply(df, dg)
        return vjp(e.reshape(-1, *shape), x, y)

    data = dense_rows((int(np.prod(df)), int(np.prod(dg))))
    check_all(backend, "Kron", (df, dg), data, each(kron), vdot_ready)


@mark.parity("O-95", "X-24")
@mark.parametrize("dtype", ["float32", "float64"])
@both
def test_bspline(backend: str, dtype: str) -> None:
    t, x = rows(5, 1)
    points = np.array([[0.5], [1.0], [1.5], [2.5], [4.0], [-0.1], [0.0]])
    knots = np.broadcast_to(np.arange(5.0), (7, 5))
    f = node("BSpline", t, x, params=(2,))
    assert f.dim == 2
    got = at(backend, f, knots, points, dtype=dtype)
    want = [[0.125, 0], [0.5, 0], [0.75, 0.125], [0.125, 0.75], [0, 0], [0, 0], [0, 0]]
    same(got, want, rtol=1e-6 if dtype == "float32" else 1e-14)
    # repeated knots: 0/0 counts as 0; nothing at or after the last knot
    clamped = np.broadcast_to([0.0, 0, 0, 1, 2, 2, 2], (5, 7))
    t = variable(0, 7, I)
    got = at(
        backend, node("BSpline", t, x, params=(2,)), clamped, [[0.0], [0.5], [1.0], [1.5], [2.5]], dtype=dtype
    )
    want = [[1, 0, 0, 0], [0.25, 0.625, 0.125, 0], [0, 0.5, 0.5, 0], [0, 0.125, 0.625, 0.25], [0, 0, 0, 0]]
    same(got, want, rtol=1e-6 if dtype == "float32" else 1e-14)
    # degree 0: the cells, half-open
    got = at(
        backend,
        node("BSpline", t, x, params=(0,)),
        np.broadcast_to(np.arange(7.0), (3, 7)),
        [[0.0], [1.0], [6.0]],
    )
    same(got, [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0] * 6])


@mark.parity("X-24")
@both
def test_bspline_has_a_derivative(backend: str) -> None:
    t, x, e = rows(7, 1, 4)
    slope = node("Grad", node("BSpline", t, x, params=(2,)), x, e)
    clamped = np.broadcast_to([0.0, 0, 0, 1, 2, 2, 2], (2, 7))
    got = at(backend, slope, clamped, [[0.5], [1.5]], [[1.0, 10, 100, 1000]] * 2)
    # on [0, 1): (1-x)², 2x - 1.5x², 0.5x²; the other half mirrors it
    same(got, [[-1 + 10 * 0.5 + 100 * 0.5], [-10 * 0.5 - 100 * 0.5 + 1000]])


@mark.parity("O-96", "X-23")
@both
def test_soft_dtw(backend: str) -> None:
    x, y, gamma, e = rows(2, 2, 1, 1)
    f = node("SoftDTW_SqDist", x, y, gamma)
    data = np.array([[0.2, 0.9]]), np.array([[0.5, 0.1]]), np.array([[0.1]])
    same(at(backend, f, *data), [[0.655486]], rtol=1e-6)
    # the cotangents, gamma's included, and the second order
    step = 1e-5
    got = at(backend, joined(*(node("Grad", f, v, e) for v in (x, y, gamma))), *data, [[2.0]])
    want = []
    for n, k in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)):
        up, down = ([d.copy() for d in data] for _ in range(2))
        up[n][0, k] += step
        down[n][0, k] -= step
        high, low = (oracles._softdtw(*(d[0] for d in moved))[0] for moved in (up, down))
        want.append(2 * (high - low) / (2 * step))
    same(got, [want], rtol=1e-7, atol=1e-8)
    second = node("Laplacian", f, x)
    assert np.isfinite(at(backend, second, *data)).all()


@mark.parity("O-96")
@both
def test_soft_dtw_of_long_sequences(backend: str) -> None:
    x, y, gamma = rows(30, 25, 1)
    data = dense_rows((30, 25, 1), count=2)
    want = [oracles._softdtw(*(d[r] for d in data)) for r in range(2)]
    same(at(backend, node("SoftDTW_SqDist", x, y, gamma), *data), want, rtol=1e-12)
