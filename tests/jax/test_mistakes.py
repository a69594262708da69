"""What is wrong with shapes and dtypes is said while JAX traces, in our words; what goes wrong later comes out too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import grad, jit

from farsum.jax import Genred, KernelSolve, LazyTensor, Vi, Vj
from farsum.solve import ConjugateGradientSolver
from farsum_kernels.errors import (
    DeadlineExceeded,
    DimensionError,
    DtypeError,
    FormulaError,
    OperandError,
    ShapeError,
    SolverDidNotConverge,
)
from tests.jax.pairs import inputs

mark = pytest.mark
x, y, b, p = (jnp.asarray(a, "float32") for a in inputs())
gauss = Genred("Exp(-p*SqDist(x,y))*b", ["x=Vi(2)", "y=Vj(2)", "b=Vj(3)", "p=Pm(1)"], axis=1)
system = KernelSolve("Exp(-SqDist(x,y))*b", ["x=Vi(2)", "y=Vj(2)", "b=Vj(3)"], "b", axis=1)


def D(x: Any, y: Any = y) -> Any:
    return Vi(x).sqdist(Vj(y))


# fmt: off
KNOWN_FROM_SHAPES: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "dimension": (lambda x: D(x, b), DimensionError, "2 and 3"),
    "rows": (lambda x: gauss(x, y, b[:4], p), ShapeError, "b has 4 rows along j where y has 5"),
    "rows of a formula": (lambda x: D(x) + Vj(b[:4]).sum(-1), ShapeError, "5 rows with 4 rows along j"),
    "deferred": (lambda x: Vi(0, 2).sqdist(Vj(1, 2)).sum(axis=1)(x, b), ShapeError, r"\(5, 3\)"),
    "batch": (lambda x: LazyTensor(jnp.ones((3, 4, 1, 2))) * LazyTensor(jnp.ones((2, 1, 5, 2))), ShapeError, "do not broadcast"),
    "which axis": (lambda x: LazyTensor(x), ShapeError, "Vi"),
    "ints": (lambda x: Vi(jnp.arange(4)[:, None]), DtypeError, "int32.*astype"),
    "keys": (lambda x: Vi(jax.random.split(jax.random.key(0), 4)[:, None]), DtypeError, "key"),
    "the dtype that was asked for": (lambda x: Genred("SqDist(x,y)", ["x=Vi(2)", "y=Vj(2)"], axis=1, dtype="float64")(x, y), DtypeError, "float32"),
    "two libraries": (lambda x: Vi(x).sqdist(Vj(torch.ones(5, 2))), OperandError, "PyTorch with arrays of JAX"),
    "out": (lambda x: D(x).sum(axis=1, out=jnp.ones((4, 1))), OperandError, "never changes"),
    "out of another kind": (lambda x: D(x).sum(axis=1, out=np.ones((4, 1), "f4")), OperandError, "ndarray"),
    "keep": (lambda x: D(x).sum(axis=1, keep=True), OperandError, "handle"),
    "keep a solution": (lambda x: system(x, x, x @ b[:2], keep=True), OperandError, "handle"),
    "submit": (lambda x: D(x).sum(axis=1, call=False).submit(), OperandError, "wait"),
    "alpha": (lambda x: system(x, x, x @ b[:2], alpha=jnp.ones(2)), OperandError, r"shape \(2,\)"),
    "alpha is a word": (lambda x: system(x, x, x @ b[:2], alpha="x"), OperandError, "alpha is a real number"),
    "the cap of a solution": (lambda x: system(x, x, x @ b[:2], max_iterations=-1), FormulaError, "count from 0"),
    "rows of a system": (lambda x: system(x, x, b), ShapeError, "5 rows along j where y has 4"),
    "ranges": (lambda x: D(x).sum(axis=1, ranges=(np.ones((1, 2)),) * 6), DtypeError, "ints"),
    "ranges beyond the rows": (lambda x: D(x).sum(axis=1, ranges=(np.array([[0, 9]]), np.array([1]), np.array([[0, 5]])) * 2), ShapeError, "within 0 to"),
}
# fmt: on


@mark.parametrize("binding", ["numpy", "torch"])
def test_a_solver_of_another_library(binding: str) -> None:
    with pytest.raises(OperandError, match="the arrays are not"):
        ConjugateGradientSolver(binding, lambda p: 2 * p, b)


@mark.parametrize("what", KNOWN_FROM_SHAPES)
@mark.parametrize("around", [lambda f: f, jit, jax.make_jaxpr], ids=["eager", "jit", "traced"])
def test_said_before_anything_is_computed(what: str, around: Any) -> None:
    wrong, error, words = KNOWN_FROM_SHAPES[what]
    with pytest.raises(error, match=words):
        around(wrong)(x)


@mark.parametrize(
    "around", [jit, jax.vmap, lambda f: jit(grad(lambda x: f(x).sum()))], ids=["jit", "vmap", "grad"]
)
def test_numbers_that_are_not_there_yet(around: Any) -> None:
    for wrong in (
        lambda x: D(x).sum(axis=1, radius=0.5),
        lambda x: D(x).sum(axis=1, mask=x.sum() > jnp.zeros((4, 5))),
        lambda x: D(x)[x[:, 0] > 0.5].dense(),
        lambda x: D(x).explain().pairs * x,
    ):
        with pytest.raises(OperandError, match=r"traced by jax\.jit"):
            around(wrong)(x[None] if around is jax.vmap else x)


def test_what_goes_wrong_in_a_callback_comes_out_in_our_words() -> None:
    def solve(b: Any) -> Any:
        return system(y, y, b, alpha=1e-3, max_iterations=1, eps=1e-9)

    with pytest.raises(SolverDidNotConverge, match="residual") as found:
        solve(b)
    assert found.value.iterate is not None and found.value.iterate.shape == b.shape
    words = r"SolverDidNotConverge: conjugate gradients .* larger alpha"
    for compiled, given in (
        (solve, b),
        (lambda b: jax.lax.fori_loop(0, 3, lambda _, b: solve(b), b), b),
        (jax.vmap(solve), jnp.stack([b, 2 * b])),
        (grad(lambda b: solve(b).sum()), b),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=words):
            jax.block_until_ready(jit(compiled)(given))
    # Afterwards all is as it was.
    assert jit(lambda b: system(y, y, b, alpha=1.0))(b).shape == b.shape


def test_a_deadline() -> None:
    many = jnp.linspace(0, 1, 60_000).reshape(-1, 2)

    def late(x: Any) -> Any:
        return D(x, x).exp().sum(axis=1, deadline_s=1e-3)

    with pytest.raises(DeadlineExceeded):
        late(many)
    with pytest.raises(jax.errors.JaxRuntimeError, match="DeadlineExceeded"):
        jax.block_until_ready(jit(late)(many))


def test_64_bits_in_one_thread_alone_are_no_silent_32() -> None:
    with jax.enable_x64(True):
        many = jnp.linspace(0, 1, 300_000).reshape(-1, 3)
        small = many[:8]
        try:  # JAX says by itself in which thread it calls
            found = jax.block_until_ready(jit(lambda x: Vi(x).sqdist(Vj(small)).sum(axis=1))(many))
        except jax.errors.JaxRuntimeError as error:
            assert "jax_enable_x64" in str(error)
        else:
            assert found.dtype == jnp.float64
