"""A lazy tensor seen as a matrix of M rows and N columns: products, entries, rows, solutions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from farsum.arrays import Array, Input, as_numbers, as_reals, checked, described, is_complex
from farsum.compute import computation
from farsum.handle import Handle
from farsum.lazy import Lazy, make, of_input
from farsum.reductions import Reductions
from farsum.tensors import NUMPY, is_array, is_tensor, plain, repeated, rows_of
from farsum_kernels.errors import AxisError, DimensionError, FormulaError, OperandError, ShapeError
from farsum_kernels.formula.expr import Expr, I, J, P, substitute, variable
from farsum_kernels.job import ITEMSIZE

if TYPE_CHECKING:
    from farsum.explain import Explanation

MAX_DENSE_BYTES = 1 << 30


class Matrix(Reductions):
    """The part of a lazy tensor that behaves like a matrix, or like M × N vectors."""

    __slots__ = ()

    # ── linear operator ───────────────────────────────────────────────────────────────────────────

    @property
    def T(self) -> Self:
        """The transpose: i and j trade places, in the formula and in `ranges`."""
        return self._swapped()

    def t(self) -> Self:
        """The transpose: i and j trade places."""
        return self._swapped()

    def __matmul__(self, v: Any, **options: Any) -> Any:
        return self._product(v, **options)

    def matvec(self, v: Any, **options: Any) -> Any:
        """K @ v."""
        return self._product(v, **options)

    def rmatvec(self, v: Any, **options: Any) -> Any:
        """The adjoint product: K.T @ v, of the conjugate if K is complex."""
        return self._adjoint()._product(v, **options)

    def _adjoint(self) -> Self:
        return self._swapped()

    def _product(self, v: Any, **options: Any) -> Any:
        """K @ v for an array v of shape (N,) or (..., N, E): the sum over j of K_ij v_j, of shape (..., M[, E]).

        Raises ShapeError for a K of vectors and a v of the wrong length.
        """
        if self._numbers(self.expr.dim) != 1:
            raise ShapeError(
                f"K @ v needs a scalar K; this one has shape {self.shape}: write (K * Vj(v)).sum(axis="
                f"{self.nbatchdims + 1}), or pick an entry with K[:, :, k]"
            )
        if isinstance(v, Lazy):
            raise OperandError(
                f"K @ v needs an array v, not a LazyTensor of shape {v.shape}: two lazy matrices have no lazy product; "
                f"write K @ (L @ v) for an array v"
            )
        if not is_array(v):
            raise OperandError(f"K @ v needs an array v, not {described(v)}")
        if v.ndim == 0:
            raise ShapeError("K @ v needs a vector or a matrix, not a number; write K * v")
        columns = checked(as_reals(v.reshape(-1, 1) if v.ndim == 1 else v), "the array v in K @ v")
        held = Input(columns, J, source=v if is_tensor(v) else None)
        leaf = of_input(held, is_complex(v))
        found = (self * leaf)._reduce("Sum", 1, **options)
        if v.ndim == 1:
            return found.reshape(found.shape[:-1]) if isinstance(found, Handle) else found[..., 0]
        return found

    def solve(self, other: Any, var: Any = None, call: bool = True, **options: Any) -> Any:
        """The a with (alpha·Id + K) a = other, by conjugate gradients; K symmetric, positive definite.

        other   an array (N, E) or a LazyTensor Vi(b) or Vj(b); symbolic: the result is called with b
        var     the variable that K is linear in, when K is a formula such as K_ij * Vj(0, E)
        call    False gives a callable object instead of solving
        alpha, eps, max_iterations, method, precond, backend, device_id, ranges, dtype_acc, use_double_acc, sum_scheme
                see `farsum.numpy.KernelSolve`

        Raises SolverDidNotConverge, which holds what was reached.
        """
        from farsum.inverse import solve

        return solve(self, other, var, call, options)

    def eigsh(
        self,
        k: int = 6,
        which: str = "LM",
        *,
        tol: float = 0,
        max_products: int | None = None,
        seed: int = 0,
        deadline_s: float | None = None,
    ) -> tuple[Array, Array]:
        """k eigenvalues (k,), rising, and eigenvectors (N, k), of a symmetric K, which is not checked.

        which         "LM" the largest in magnitude, "LA" the largest, "SA" the smallest; as in SciPy
        tol           of the residuals, relative to the largest eigenvalue; 0 for what the dtype allows
        max_products  give up after so many products K @ v; None for 100·(2k + 20)
        seed          of the vector that the iteration starts from

        On a server the whole iteration is one call. Of tensors, eigenvalues that stand alone have a first derivative.
        Raises SolverDidNotConverge, with both as they stood.
        """
        from farsum.spectrum import eigsh

        return eigsh(self, k, which, tol, max_products, seed, deadline_s)

    # ── as an array ───────────────────────────────────────────────────────────────────────────────

    def dense(self, max_bytes: int = MAX_DENSE_BYTES) -> Array:
        """All of it as an array of shape `shape`.

        Raises ShapeError if that takes more than `max_bytes`, FormulaError with symbolic variables.
        """
        self._need_whole("dense")
        size = prod(self._shape) * ITEMSIZE[self.frame.dtype or "float64"]
        if size > max_bytes:
            raise ShapeError(
                f"a dense array of shape {self.shape} takes {size:,} bytes, more than max_bytes={max_bytes:,}; "
                f"reduce it, take rows K[rows], or pass max_bytes"
            )
        # Each row of x becomes a batch of its own, and a reduction over no axis at all gives each pair.
        expr = _recast(self.expr, {I: P})
        inputs = tuple(_beside_rows(held, bool(self.frame.batch)) for held in self._arrays())
        return self._evaluated(expr, inputs, 0, self._shape[:-1])

    def diagonal(self) -> Array:
        """The entries K_ii: an array (*batch, M), or (*batch, M, D).

        Raises ShapeError unless there are as many rows as columns.
        """
        self._need_whole("diagonal")
        m, n = self._shape[-3:-1]
        if m != n:
            raise ShapeError(
                f"a LazyTensor of shape {self.shape} has {m} rows and {n} columns: it has no diagonal"
            )
        inputs = tuple(Input(h.array, I, h.loose) if h.category == J else h for h in self._arrays())
        return self._evaluated(_recast(self.expr, {J: I}), inputs, 1, (*self.frame.batch, m))

    def trace(self) -> Any:
        """The sum of the entries K_ii: a number, or an array (*batch[, D])."""
        return self.diagonal().sum(axis=self.nbatchdims)

    def explain(self) -> Explanation:
        """What a sum over j of this computes, sends and costs, without computing anything."""
        return self.sum(axis=self.nbatchdims + 1, call=False).explain()

    def _need_whole(self, method: str) -> None:
        """Raise FormulaError where entries are not all there to be read."""
        if self.frame.slots:
            raise FormulaError(f"{method} needs arrays; {self.formula} has symbolic variables")
        if self.frame.ranges is not None:
            raise FormulaError(
                f"{method} is of all pairs, and this LazyTensor has ranges: set X.ranges = None first"
            )

    def _arrays(self) -> tuple[Input, ...]:
        found = (held for held in self.frame.inputs if isinstance(held, Input))
        return tuple(
            h if h.source is None or h.home is not NUMPY else Input(h.of(h.array.dtype.name), h.category)
            for h in found
        )

    def _evaluated(self, expr: Expr, inputs: Sequence[Input], axis: int, lead: tuple[int, ...]) -> Array:
        """The values of a formula in which no axis is left to reduce: an array (*lead, D), or (*lead) for scalars."""
        dtype, home = self.frame.dtype or "float64", self.frame.home or NUMPY
        found = computation(expr, None, "Sum", axis).run(
            {n: held.of(dtype, home) for n, held in enumerate(inputs)}, dtype
        )
        found = as_numbers(found) if self.is_complex else found
        tail = found.shape[-1:]
        if found.shape != (*lead, *tail):  # an axis that no array has counts once
            found = repeated(found, (*lead, *tail))
        return found[..., 0] if tail == (1,) else found

    # ── entries ───────────────────────────────────────────────────────────────────────────────────

    def __getitem__(self, key: Any) -> Any:
        """X[k], X[a:b]: the vector axis. X[rows] with a list, an array or a mask: rows. X[rows, cols]: NumPy's meaning.

        Lazy where a matrix is left, an array where single rows, columns or entries are asked for.
        """
        key = tuple(map(plain, key)) if isinstance(key, tuple) else plain(key)
        if not isinstance(key, tuple):
            if isinstance(key, list | np.ndarray):
                return self._taken(I, key)
            return self if key is Ellipsis else self._entry(key)
        rows, columns, entry = self._keys(key)
        lazy = self if _all(entry) else self._entry(entry)
        if not isinstance(rows, slice) and not isinstance(columns, slice):
            rows, columns = np.asarray(rows), np.asarray(columns)
            if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != 1 or columns.shape[0] != 1:
                return lazy._entries(rows, columns)
            rows, columns = rows[:, 0], columns[0]  # as np.ix_ writes a sub-matrix
        taken = lazy._taken(I, [rows] if _is_int(rows) else rows)
        taken = taken._taken(J, [columns] if _is_int(columns) else columns)
        if _is_int(rows) or _is_int(columns):
            return taken.dense().squeeze(self.nbatchdims + (not _is_int(rows)))
        return taken

    def _keys(self, key: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        """The keys of i, of j and of the vector axis."""
        nb, full = self.nbatchdims, slice(None)
        dots = [n for n, k in enumerate(key) if k is Ellipsis]
        if len(dots) == 1:
            missing = nb + 3 - (len(key) - 1)
            key = (*key[: dots[0]], *(full,) * max(0, missing), *key[dots[0] + 1 :])
        if len(key) == nb + 2 and not dots:
            key = (*key, full)
        if (
            len(key) != nb + 3
            or any(not _all(k) for k in key[:nb])
            or any(not _is_key(k) for k in key[nb:-1])
        ):
            raise AxisError(
                f"a LazyTensor of shape {self.shape} is indexed as X[k] or X[a:b] along its vector axis, X[rows] with a "
                f"list or array of ints or a mask, X[{':, ' * nb}rows, columns], or X[{':, ' * (nb + 2)}k]"
            )
        return key[nb], key[nb + 1], key[nb + 2]

    def _entry(self, key: Any) -> Self:
        """One entry, or a slice of entries, of the vector axis."""
        size = self._numbers(self.expr.dim)
        if isinstance(key, slice):
            start, stop = 0 if key.start is None else key.start, size if key.stop is None else key.stop
            if key.step not in (None, 1):
                raise DimensionError("a slice of the vector axis has step 1")
            if type(start) is not int or type(stop) is not int or not 0 <= start < stop <= size:
                raise DimensionError(
                    f"{_text(key)} is no slice of a vector axis of {size} entries; {self._hint(key)}"
                )
            return self.extract(start, stop - start)  # type: ignore[attr-defined]
        if isinstance(key, np.integer):
            key = int(key)
        if type(key) is not int or not 0 <= key < size:
            raise DimensionError(
                f"the entry {key!r} of a vector is an int from 0 to {size - 1}; {self._hint(key)}"
            )
        return self.elem(key)  # type: ignore[attr-defined]

    def _hint(self, key: Any) -> str:
        return f"for rows of the matrix write X[{':, ' * self.nbatchdims}{_text(key)}, :]"

    def _taken(self, category: int, key: Any) -> Self:
        """These rows of x_i or of y_j."""
        if _all(key):
            return self
        self._need_whole("indexing")
        rows = self.frame.ni if category == I else self.frame.nj
        chosen = _chosen(key, 1 if rows is None else rows, self.shape, category)
        count = len(chosen) if isinstance(chosen, np.ndarray) else len(range(*chosen.indices(rows or 1)))
        if rows is None and count != 1:
            raise FormulaError(
                f"no array of this LazyTensor of shape {self.shape} runs along {'ij'[category]}: it has one row there, "
                f"and {count} cannot be taken; combine it with an array first"
            )
        inputs = tuple(
            Input(rows_of(h.array, chosen), category, h.loose) if h.category == category else h
            for h in self._arrays()
        )
        frame = self.frame
        ni, nj = frame.ni, frame.nj
        if category == I:
            ni = None if ni is None else count
        else:
            nj = None if nj is None else count
        return make(self.expr, frame.but(inputs=inputs, ni=ni, nj=nj, ranges=None), self.is_complex)

    def _entries(self, rows: Array, columns: Array) -> Any:
        """The entries at pairs of indices, shaped as they broadcast."""
        self._need_whole("indexing")
        m, n = self._shape[-3:-1]
        paired = [_chosen(rows, m, self.shape, I), _chosen(columns, n, self.shape, J)]
        try:
            i, j = np.broadcast_arrays(*paired)
        except ValueError:
            raise ShapeError(
                f"the indices of rows, of shape {paired[0].shape}, and of columns, of shape {paired[1].shape}, do not "
                f"pair up; for a sub-matrix write X[np.ix_(rows, columns)]"
            ) from None
        at = {I: i.reshape(-1), J: j.reshape(-1)}
        inputs = tuple(
            h if h.category == P else Input(rows_of(h.array, at[h.category]), I, h.loose)
            for h in self._arrays()
        )
        found = self._evaluated(_recast(self.expr, {J: I}), inputs, 1, (*self.frame.batch, i.size))
        found = found.reshape((*self.frame.batch, *i.shape, *self.shape[self.nbatchdims + 2 :]))
        return found[()] if found.ndim == 0 else found


def _recast(expr: Expr, categories: dict[int, int]) -> Expr:
    """The formula with variables of some categories made into others."""
    return substitute(
        expr, lambda v: variable(v.params[0], v.params[1], categories.get(v.params[2], v.params[2]))
    )


def _beside_rows(held: Input, batched: bool) -> Input:
    """An input of a job whose batch has one more axis at its end, for the rows of x."""
    if held.category == I:
        return Input(held.array, P, held.loose)
    if not batched:
        return held
    own = 1 if held.category == P else 2
    shape = held.array.shape
    return Input(held.array.reshape(*shape[:-own], 1, *shape[-own:]), held.category, held.loose)


def _all(key: Any) -> bool:
    return isinstance(key, slice) and key == slice(None)


def _is_int(key: Any) -> bool:
    return isinstance(key, int | np.integer) and not isinstance(key, bool)


def _is_key(key: Any) -> bool:
    return _is_int(key) or isinstance(key, slice | list | np.ndarray)


def _text(key: Any) -> str:
    if not isinstance(key, slice):
        return repr(key)
    text = f"{'' if key.start is None else key.start}:{'' if key.stop is None else key.stop}"
    return text if key.step is None else f"{text}:{key.step}"


def _chosen(key: Any, rows: int, shape: tuple[int, ...], category: int) -> Any:
    """A key of rows as a slice or as an array of indices from 0, each within the rows."""
    axis = "ij"[category]
    if isinstance(key, slice):
        return key
    indices = np.asarray(key)
    if indices.dtype == bool:
        if indices.shape != (rows,):
            raise ShapeError(
                f"a mask along {axis} has shape ({rows},) here, not {indices.shape} (X has shape {shape})"
            )
        return np.flatnonzero(indices)
    if indices.dtype.kind not in "iu" and indices.size:
        raise AxisError(f"rows along {axis} are chosen by ints or by a mask, not by {indices.dtype}")
    indices = indices.astype(np.int64)
    if indices.size and not (-rows <= indices.min() and indices.max() < rows):
        raise AxisError(
            f"indices along {axis} go from {-rows} to {rows - 1} in a LazyTensor of shape {shape}"
        )
    return np.where(indices < 0, indices + rows, indices)
