"""Tensors in, tensors of the same kind out: dtypes, devices, every way of writing a reduction, every mistake."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import farsum.numpy
import farsum.torch
from farsum.cluster import (
    cluster_centroids,
    cluster_ranges,
    cluster_ranges_centroids,
    from_matrix,
    grid_cluster,
    sort_clusters,
    swap_axes,
)
from farsum.solve import ConjugateGradientSolver, KernelLinearSolver
from farsum.torch import (
    ComplexLazyTensor,
    Genred,
    KernelSolve,
    LazyTensor,
    Pm,
    Vi,
    Vj,
    generic_argkmin,
    generic_argmin,
    generic_logsumexp,
    generic_sum,
)
from farsum_kernels.errors import DtypeError, FarsumError, NoDerivative, OperandError, ShapeError

mark = pytest.mark
close = torch.testing.assert_close
generator = torch.Generator().manual_seed(0)


def rand(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)


x, y, b, p = rand(6, 3), rand(8, 3), rand(8, 2), rand(1)
SQUARES = (x[:, None] - y).square().sum(-1)
GAUSS, ALIASES = "Exp(-p*SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)", "p = Pm(1)"]


@mark.parity("T-14")
def test_the_names_of_the_front_end_are_those_of_numpy() -> None:
    assert set(farsum.torch.__all__) == set(farsum.numpy.__all__)
    assert all(getattr(farsum.torch, n) is getattr(farsum.numpy, n) for n in farsum.torch.__all__)


def test_importing_it_does_not_load_the_compiler_of_torch() -> None:
    script = "import sys, farsum.torch; raise SystemExit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_numpy_arrays_never_load_torch() -> None:
    script = (
        "import sys, numpy as np\n"
        "from farsum.numpy import Vi, Vj, KernelSolve, Genred\n"
        "x = np.random.rand(9, 3); K = (-Vi(x).sqdist(Vj(x))).exp()\n"
        "K.sum(axis=1); K @ x; K.solve(Vi(x), alpha=1.0); K.dense(); K[[0]]; K.sum(axis=1, radius=0.5)\n"
        "a = Vi(x); (a - Vj(x)).sqnorm2().min(axis=1, call=False).grad(a, np.ones((9, 1)))\n"
        "raise SystemExit('torch' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@mark.parity("L-161", "L-47", "G-25", "L-23", "G-82")
@mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)]
)  # fmt: skip
def test_dtypes_go_in_and_come_out(dtype: torch.dtype, error: float) -> None:
    inputs = [a.to(dtype).clone().requires_grad_() for a in (x, y, b, p)]
    exact = [a.detach().double().clone().requires_grad_() for a in inputs]
    by_name = Genred(GAUSS, ALIASES, axis=1)(*inputs)
    a, c, e, s = inputs
    by_tensor = (-Pm(s) * Vi(a).sqdist(Vj(c))).exp()
    assert by_tensor.dtype == str(dtype).removeprefix("torch.")
    dense = torch.exp(-exact[3] * (exact[0][:, None] - exact[1]).square().sum(-1)) @ exact[2]
    dense.sum().backward()
    for found in (by_name, (by_tensor * Vj(e)).sum(axis=1), by_tensor @ e):
        assert found.dtype == dtype and found.device == a.device
        close(found.double(), dense, rtol=error, atol=error * 4)
    by_name.sum().backward()
    for have, want in zip(inputs, exact, strict=True):
        assert have.grad is not None and have.grad.dtype == dtype
        close(have.grad.double(), want.grad, rtol=error * 4, atol=error * 16)
    assert Vi(a.detach()).sqdist(Vj(c)).argmin(axis=1).dtype == torch.int64


@mark.parity("R-63", "L-154", "L-155")
def test_a_choice_has_its_gradient_in_halves_of_many_rows_too() -> None:
    far = torch.linspace(0, 1, 3000).reshape(-1, 1)  # a place past 2048 is no float16
    at = torch.tensor([[0.999]], dtype=torch.bfloat16, requires_grad=True)
    values, places = Vi(at).sqdist(Vj(far.to(torch.bfloat16))).min_argmin(axis=1)
    values.sum().backward()
    assert at.grad is not None and places.dtype == torch.int64
    chosen = far.to(torch.bfloat16).float()[places.ravel()]
    close(at.grad.float(), 2 * (at.detach().float() - chosen), rtol=1e-2, atol=1e-3)


@mark.parity("L-241", "L-230", "L-231", "L-232", "L-240")
@mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_numbers_and_their_gradients(dtype: torch.dtype) -> None:
    z = (rand(5, 2) + 1j * rand(5, 2)).to(dtype).requires_grad_()
    w = (rand(6, 2) + 1j * rand(6, 2)).to(dtype).requires_grad_()
    r = rand(6, 1).to(z.real.dtype).requires_grad_()  # an odd number of reals takes part

    def lazy(z: Any, w: Any, r: Any) -> Any:
        a, c, s = Vi(z), Vj(w), Vj(r)
        assert isinstance(a, ComplexLazyTensor)
        return (a * c.conj() + a.exp() / (c + 2) * s).sum(axis=1) + ((a * c).abs() * s + (a + c).real).sum(
            axis=1
        )

    def dense(z: Any, w: Any, r: Any) -> Any:
        a, c, s = z[:, None], w[None], r[None]
        return (a * c.conj() + a.exp() / (c + 2) * s).sum(1) + ((a * c).abs() * s + (a + c).real).sum(1)

    assert lazy(z, w, r).dtype == dtype
    close(lazy(z, w, r), dense(z, w, r))
    weights = torch.randn(5, 2, dtype=dtype)
    for found, want in zip(*(torch.autograd.grad((f(z, w, r) * weights).sum().real, (z, w, r)) for f in (lazy, dense)), strict=True):  # fmt: skip
        close(found, want)


@mark.parity("L-07", "L-06", "L-24", "X-52", "G-84", "G-76")
def test_what_becomes_a_parameter() -> None:
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    weights = torch.nn.Parameter(rand(3))
    lazy = ((Vi(x) - Vj(y)).square() * weights).sum(-1) * scale
    close(lazy.sum(axis=1), ((x[:, None] - y).square() * weights).sum(-1).sum(1, keepdim=True) * scale)
    lazy.sum(axis=1).sum().backward()
    assert scale.grad is not None and scale.grad.shape == ()
    assert weights.grad is not None and weights.grad.shape == (3,)
    rows = torch.nn.Parameter(x.clone())
    Genred(GAUSS, ALIASES, axis=1)(rows, y, b, p).sum().backward()
    assert rows.grad is not None
    assert Pm(2.5).dtype is None and LazyTensor(torch.tensor(2.5)).shape == (1, 1)


@mark.parity("L-70", "L-69")
def test_a_tensor_may_stand_on_either_side() -> None:
    rows = y[None]
    for op in ("__add__", "__sub__", "__mul__", "__truediv__", "__or__", "__lt__", "__ge__", "__eq__"):
        right = getattr(Vi(x), op)(rows).sum(axis=1)
        assert type(right) is torch.Tensor
    close((rows - Vi(x)).sum(axis=1), (y - x[:, None]).sum(1))
    close((rows * Vi(x)).sum(axis=1), (y * x[:, None]).sum(1))
    close((rows / (Vi(x) + 1)).sum(axis=1), (y / (x[:, None] + 1)).sum(1))
    close((rows | Vi(x)).sum(axis=1), (y * x[:, None]).sum(-1).sum(1, keepdim=True))
    close((rows < Vi(x)).sum(axis=1), (y < x[:, None]).double().sum(1))


@mark.parity("G-40", "G-41", "G-42", "G-43")
def test_the_generic_helpers() -> None:
    names, rows = ["x = Vi(3)", "y = Vj(3)"], torch.exp(-SQUARES)
    close(generic_sum("Exp(-SqDist(x,y))", "a = Vi(1)", *names)(x, y), rows.sum(1, keepdim=True))
    close(generic_logsumexp("-SqDist(x,y)", "a = Vj(1)", *names)(x, y), (-SQUARES).logsumexp(0)[:, None])
    close(generic_argmin("SqDist(x,y)", "a = Vi(1)", *names)(x, y), SQUARES.argmin(1, keepdim=True))
    close(
        generic_argkmin("SqDist(x,y)", "a = Vi(3)", *names)(x, y), SQUARES.topk(3, 1, largest=False).indices
    )


@mark.parity("L-190", "L-191", "L-193", "L-195", "L-26")
def test_a_lazy_matrix_of_tensors() -> None:
    K, dense, v = (-Vi(x).sqdist(Vj(y))).exp(), torch.exp(-SQUARES), rand(8)
    close(K @ v, dense @ v)
    close(K @ (v + 1j), dense.to(torch.complex128) @ (v + 1j))
    close(K.T @ x, dense.T @ x)
    close(K.rmatvec(x[:, 0]), dense.T @ x[:, 0])
    close(K.dense(), dense)
    close(K[torch.tensor([4, 1])].dense(), dense[[4, 1]])
    close(K[::-1, :].dense(), dense.flip(0))
    close(K[torch.tensor([1, 2]), torch.tensor([3, 3])], dense[[1, 2], [3, 3]])
    close(K[2, :], dense[2])
    square = (-Vi(x).sqdist(Vj(x))).exp()
    close(square.diagonal(), torch.ones(6, dtype=torch.float64))
    assert float(square.trace()) == pytest.approx(6)
    deferred, kept = K.sum(axis=1, call=False), x.clone()
    x.mul_(2)
    close(deferred(), torch.exp(-(x[:, None] - y).square().sum(-1)).sum(1, keepdim=True))
    x.copy_(kept)


@mark.parametrize("options", [{"mask": "causal"}, {"radius": 0.6}, {"mask": SQUARES < 0.3}])
def test_which_pairs_take_part_and_their_gradient(options: dict[str, Any]) -> None:
    leaf = x.clone().requires_grad_()
    keep = (SQUARES < 0.36) if "radius" in options else options["mask"]
    keep = torch.ones(6, 8).tril().bool() if isinstance(keep, str) else keep
    found = (-Vi(leaf).sqdist(Vj(y))).exp().sum(axis=1, **options)
    dense = (torch.exp(-(leaf[:, None] - y).square().sum(-1)) * keep).sum(1, keepdim=True)
    close(found, dense)
    close(torch.autograd.grad(found.sum(), leaf)[0], torch.autograd.grad(dense.sum(), leaf)[0])
    places = Vi(x).sqdist(Vj(y)).argmin(axis=1, **options)
    close(places, torch.where(keep, SQUARES, torch.inf).argmin(1, keepdim=True))


@mark.parity("L-180", "L-182", "L-187")
def test_symbols_filled_with_tensors() -> None:
    reduced = (-Vi(0, 3).sqdist(Vj(1, 3)) * Pm(2, 1)).exp().sum(axis=1)
    leaf = x.clone().requires_grad_()
    found = reduced(leaf, y, 0.5)
    close(found, torch.exp(-0.5 * SQUARES).sum(1, keepdim=True))
    assert found.requires_grad
    assert reduced(x.float(), y.float(), p.float()).dtype == torch.float32
    np.testing.assert_allclose(reduced(x.numpy(), y.numpy(), 0.5), found.detach().numpy())


@mark.parity("G-31", "L-174")
def test_out_takes_part_in_the_graph() -> None:
    out, leaf = torch.empty(6, 1, dtype=torch.float64), x.clone().requires_grad_()
    found = (-Vi(leaf).sqdist(Vj(y))).exp().sum(axis=1, out=out)
    assert found is out and out.requires_grad
    out.sum().backward()
    assert leaf.grad is not None and leaf.grad.any()
    for wrong in (out.detach().float(), out.detach()[:3], np.empty((6, 1))):
        with pytest.raises((ValueError, RuntimeError)):
            Vi(x).sqdist(Vj(y)).sum(axis=1, out=wrong)


@mark.parity("L-25", "X-12")
def test_strides_are_followed() -> None:
    wide = rand(8, 6).T
    close(Vi(wide).sum(-1).sum(axis=1), wide.sum(-1, keepdim=True))
    close((Vi(x.flip(0)[::2]) - Vj(y.T.contiguous().T)).sum(axis=1), (x.flip(0)[::2][:, None] - y).sum(1))
    close((Vi(x.expand(6, 3)) + Vj(y[:1].expand(5, 3))).sum(axis=1), 5 * (x + y[0]))
    close(Vi(torch.conj(x + 1j * x)).sum(-1).sum(axis=1), (x - 1j * x).sum(-1, keepdim=True))


@mark.parity("L-67")
def test_one_tensor_is_one_variable_and_its_detached_twin_another() -> None:
    leaf = x.clone().requires_grad_()
    assert len((Vi(leaf) + Vi(leaf)).variables) == 1
    both = Vi(leaf) * Vi(leaf.detach())
    assert len(both.variables) == 2
    (found,) = torch.autograd.grad(both.sum(axis=1).sum(), leaf)
    close(found, x)  # not 2x


@mark.parity("L-56", "G-13")
def test_copies_compute_the_same() -> None:
    lazy = (-Vi(x).sqdist(Vj(y)) * 0.5).exp()
    want = lazy.sum(axis=1)
    for again in (copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy))):
        close(again.sum(axis=1), want)
    red = Genred(GAUSS, ALIASES, axis=1)
    close(pickle.loads(pickle.dumps(red))(x, y, b, p), red(x, y, b, p))


@mark.parity("C-01", "C-02", "C-03", "C-04", "C-05", "X-57")
def test_clusters_of_tensors() -> None:
    points, weights = rand(40, 2, dtype=torch.float32), rand(40, dtype=torch.float32)
    labels = grid_cluster(points, 0.4)
    want = grid_cluster(points.numpy(), 0.4)
    assert labels.dtype == torch.int64
    np.testing.assert_array_equal(labels.numpy(), want)
    np.testing.assert_array_equal(grid_cluster(points, torch.tensor([0.4, 0.4])).numpy(), want)
    (sorted_, heavy), order = sort_clusters((points, weights), labels)
    assert type(sorted_) is torch.Tensor and bool((order[1:] >= order[:-1]).all())
    ranges, centroids, totals = cluster_ranges_centroids(points, labels, weights=weights)
    assert (ranges.dtype, centroids.dtype, totals.dtype) == (torch.int64, torch.float32, torch.float32)
    close(totals.sum(), heavy.sum())
    leaf = points.clone().requires_grad_()
    sort_clusters(leaf, labels)[0][0].sum().backward()  # the gradient finds its row
    assert leaf.grad is not None and leaf.grad.nonzero()[:, 0].unique().tolist() == [
        int((labels == 0).nonzero()[0])
    ]
    close(cluster_ranges(labels), ranges)
    close(cluster_centroids(points, labels, weights=weights), centroids)
    nothing = torch.zeros(40)
    assert cluster_ranges_centroids(points, labels, weights=nothing)[1].isfinite().all()


@mark.parity("C-06", "C-07", "X-64")
def test_ranges_of_tensors() -> None:
    ends = torch.tensor([[0.0, 3.0], [3.0, 6.0]])  # whole floats are taken
    ranges = from_matrix(ends, torch.tensor([[0, 8]]), torch.tensor([[True], [False]]))
    assert all(r.dtype == torch.int64 for r in ranges)
    found = Vi(x).sqdist(Vj(y)).sum(axis=1, ranges=ranges)
    close(found[:3], SQUARES.sum(1, keepdim=True)[:3])
    assert not found[3:].any()
    swapped = swap_axes(ranges)
    assert swapped is not None and swapped[0] is ranges[3]


@mark.parity("G-50", "X-63")
def test_the_options_of_a_solver_go_by_name_after_axis() -> None:
    with pytest.raises(FarsumError):
        KernelSolve(GAUSS, ALIASES, "b", 1, "auto")  # dtype_acc stands here in pykeops.torch
    assert "dtype_acc" in inspect.signature(KernelSolve).parameters


@mark.parity("G-65", "G-66", "G-67")
def test_the_lower_solvers_take_tensors() -> None:
    a = rand(6, 6)
    spd, rhs = a @ a.T + torch.eye(6, dtype=torch.float64), rand(6, 2)
    close(ConjugateGradientSolver("torch", lambda v: spd @ v, rhs, eps=1e-12), torch.linalg.solve(spd, rhs))
    gram = torch.exp(-(x[:, None] - x).square().sum(-1) / 0.25) + 0.1 * torch.eye(6, dtype=torch.float64)
    for kernel in (
        ("gaussian", 3, 2, 0.5),
        lambda u, v, c: torch.exp(-(u[:, None] - v).square().sum(-1) / 0.25) @ c,
    ):
        for precond in (False, True):
            got = KernelLinearSolver("torch", kernel, x, rhs, alpha=0.1, eps=1e-10, precond=precond)
            close(got, torch.linalg.solve(gram, rhs), rtol=1e-6, atol=1e-6)
    with pytest.raises(OperandError, match="Tensor"):
        ConjugateGradientSolver("numpy", lambda v: v, rhs)


# fmt: off
MISTAKES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: Vi(x) + Vj(y.float()), DtypeError, "same dtype, but found float64 and float32"),
    (lambda: Genred(GAUSS, ALIASES, axis=1)(x, y, b, p.float()), DtypeError, "p expected tensors of the same dtype"),
    (lambda: Vi(x) + Vj(y.numpy()), OperandError, "NumPy arrays with tensors"),
    (lambda: Genred(GAUSS, ALIASES, axis=1)(x, y.numpy(), b, p), OperandError, "y combines NumPy arrays with tensors"),
    (lambda: Vi(x).sqdist(Vj(y)) @ rand(8).numpy(), OperandError, "NumPy arrays with tensors"),
    (lambda: Vi(0, 3).sqdist(Vj(y)).sum(axis=1)(x.numpy()), OperandError, "NumPy arrays with tensors"),
    (lambda: Vi(x.int()), DtypeError, "torch.int32"),
    (lambda: Vi(x > 0), DtypeError, "torch.bool"),
    (lambda: Vi(x.to(torch.float8_e4m3fn)), DtypeError, "float8"),
    (lambda: Vi(x.to_sparse()), OperandError, "sparse"),
    (lambda: Vi(torch.ones(3, 3, device="meta")), OperandError, "meta"),
    (lambda: LazyTensor(x), ShapeError, "2-D"),
    (lambda: Vi(x[0]), ShapeError, "2-D array of points"),
    (lambda: Pm(x), ShapeError, "one vector"),
    (lambda: LazyTensor(rand(2, 3, 4)), ShapeError, "no row of points"),
    (lambda: Vi(0, 3).sqdist(Vj(1, 3)).sum(axis=1)(x), ShapeError, "expected 2 inputs .* received 1"),
    (lambda: Vi(0, 3).sqdist(Vj(1, 3)).sum(axis=1)(x, y, x), ShapeError, "expected 2 inputs .* received 3"),
    (lambda: Genred(GAUSS, ALIASES, axis=1)(x, y, b), ShapeError, "expected 4 arguments .* received 3"),
    (lambda: Genred(GAUSS, ALIASES, axis=1)(x, y[:, :2], b, p), ShapeError, "y has shape"),
    (lambda: Genred(GAUSS, ALIASES, axis=1)(x, y, b, 0.5), OperandError, "p must be a NumPy array or a tensor"),
]
# fmt: on


@mark.parity("L-22", "L-61", "E-30", "E-43", "G-21", "L-60")
@mark.parametrize(("wrong", "error", "words"), MISTAKES)
def test_mistakes_are_named_before_anything_is_sent(
    wrong: Callable[[], Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        wrong()


@mark.parity("G-34")
def test_two_devices_are_refused() -> None:
    # No second device is needed: the check looks at devices alone.
    from farsum.tensors import one_home

    with pytest.raises(
        OperandError, match=r"expected all tensors to be on the same device, but found cpu and cuda:0"
    ):
        one_home(torch.device("cpu"), torch.device("cuda", 0), "Add")
    assert one_home(None, torch.device("cpu"), "Add") == torch.device("cpu")


@mark.parity("R-63", "G-75", "R-62", "E-41", "G-78")
def test_what_has_no_derivative_says_so() -> None:
    leaf = x.clone().requires_grad_()
    squares = Vi(leaf).sqdist(Vj(y))
    for places in (squares.argmin(axis=1), squares.argKmin(2, axis=1), squares.min_argmin(axis=1)[1]):
        assert places.dtype == torch.int64 and not places.requires_grad
        with pytest.raises(RuntimeError, match="does not require grad"):
            places.sum().backward()
    raw = squares.reduction("Max_SumShiftExp", axis=1)
    with pytest.raises(NoDerivative, match="LogSumExp") as caught:
        raw.sum().backward()
    assert isinstance(caught.value, NotImplementedError)


@mark.parity("G-70")
def test_a_tensor_changed_between_forward_and_backward_is_noticed() -> None:
    leaf = x.clone().requires_grad_()
    moving = leaf * 1
    found = (-Vi(moving).sqdist(Vj(y))).exp().sum(axis=1)
    moving.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


def test_a_future_of_a_tensor_is_refused() -> None:
    x = torch.rand(4, 3)
    call = Vi(0, 3).sqdist(Vj(1, 3)).sum(axis=1)
    with pytest.raises(OperandError, match="call the reduction instead"):
        call.submit(x, x)
