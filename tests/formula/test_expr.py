"""Formulas as data: interning, dimensions, the flat form, limits, hostile messages."""

from __future__ import annotations

import gc
import pickle
from typing import Any

import pytest

from farsum_kernels.errors import (
    AxisError,
    DimensionError,
    DtypeError,
    FormulaError,
    FormulaTooLarge,
    ShapeError,
    UnknownOperation,
)
from farsum_kernels.formula import expr as language
from farsum_kernels.formula.expr import I, J, P, constant, decode, encode, node, swap_axes, variable, walk
from farsum_kernels.job import Extent, Spec, extent_of, output_shapes

x, y, p = variable(0, 3, I), variable(1, 3, J), variable(2, 1, P)


def _gaussian() -> language.Expr:
    return node("Exp", node("Mult", p, node("SqDist", x, y)))


def test_equal_formulas_are_one_object() -> None:
    assert _gaussian() is _gaussian()
    assert constant(1) is not constant(1.0)
    assert node("Pow", x, params=(2,)) is not node("Pow", x, params=(3,))


def test_nodes_are_forgotten_with_their_last_user() -> None:
    digest = node("Sin", variable(777, 5, I)).digest
    gc.collect()
    assert all(n.digest != digest for n in language._nodes.values())


def test_dimension_and_index_set_are_known_at_birth() -> None:
    f = _gaussian()
    assert (f.dim, f.indices) == (1, 3)
    assert (node("Add", x, p).dim, node("Add", x, p).indices) == (3, 1)
    assert swap_axes(x) is variable(0, 3, J)
    assert p.indices == 0


@pytest.mark.parity("L-222")
def test_text_is_the_string_language() -> None:
    assert str(node("Subtract", x, y)) == "(Var(0,3,0) - Var(1,3,1))"
    assert str(_gaussian()) == "Exp((Var(2,1,2) * SqDist(Var(0,3,0), Var(1,3,1))))"
    assert str(node("Pow", x, params=(3,))) == "Pow(Var(0,3,0),3)"


def test_flat_form_round_trips_and_keeps_sharing() -> None:
    f = node("Add", _gaussian(), _gaussian())
    flat, (root,) = encode(f)
    assert len(flat) == len(list(walk(f)))
    assert root == len(flat) - 1
    assert decode(flat, (root,)) == (f,)
    assert pickle.loads(pickle.dumps(f)) is f


def test_digest_does_not_depend_on_the_process() -> None:
    assert _gaussian().digest.hex() == "01ba98e47d140a5c84474a67eb7ff1c4"


@pytest.mark.parity("E-07")
def test_dimensions_that_do_not_fit() -> None:
    with pytest.raises(DimensionError, match=r"Add .* 3 and 4"):
        node("Add", x, variable(1, 4, J))
    with pytest.raises(DimensionError, match="SqDist"):
        node("SqDist", x, variable(1, 4, J))


def test_unknown_operation_names_its_neighbours() -> None:
    with pytest.raises(UnknownOperation, match="did you mean SqDist"):
        node("SqDst", x, y)
    with pytest.raises(NameError):
        node("os.system", x)


@pytest.mark.parametrize(
    ("flat", "error"),
    [
        ([("Exp", (0,), ())], FormulaError),  # its own operand
        ([("Exp", (5,), ())], FormulaError),  # a later operand
        ([("Exp", (-1,), ())], FormulaError),
        ([("Evil", (), ())], UnknownOperation),
        ([("Var", (), (0, 0, 0))], DimensionError),
        ([("Var", (), (0, 1 << 40, 0))], DimensionError),
        ([("Var", (), (0, 3))], FormulaError),
        ([("Var", (), (0, 3, 7))], FormulaError),
        ([("Var", (), ("0", 3, 0))], FormulaError),
        ([("Const", (), ("x",))], FormulaError),
        ([("Const", (), ())], FormulaError),
        ([("Var", (), (0, 3, 0)), ("Exp", (0, 0), ())], FormulaError),  # arity
        ([("Var", (), (0, 3, 0)), ("Pow", (0,), (1 << 30,))], FormulaError),
        ([("Var", (), (0, 3, 0))] * 5000, FormulaTooLarge),
        ([("Var", (), (0, 3, 0)), ("BasisSum", (0,), (-1, 10**12))], FormulaError),
        (
            [("Var", (), (0, 1, 0)), ("TensorDot", (0, 0), ((10**300,) * 20_000, (1,), (), (), ()))],
            FormulaTooLarge,
        ),
        ([("Var", (), (0, 60_000, 2)), ("Var", (), (1, 1, 0)), ("BSpline", (0, 1), (30,))], FormulaTooLarge),
        ([("Var", (), (0, 300, 0)), ("SoftDTW_SqDist", (0, 0, 0), ())], FormulaError),
        ([], FormulaError),
    ],
)
def test_hostile_messages_are_refused(flat: list, error: type[Exception]) -> None:
    with pytest.raises(error):
        decode(tuple(flat), (max(0, len(flat) - 1),))


def test_a_formula_that_doubles_at_each_level_stays_small() -> None:
    f = x
    for _ in range(200):
        f = node("Add", f, f)
    assert len(list(walk(f))) == 201
    assert len(str(f)) < 100_000


@pytest.mark.parity("E-24", "E-44", "R-16", "R-18")
def test_a_spec_refuses_what_cannot_be_reduced() -> None:
    with pytest.raises(DimensionError, match="LogSumExp reduces scalars"):
        Spec(node("Subtract", x, y), "LogSumExp", 1, "float32")
    with pytest.raises(AxisError, match="axis must be 0"):
        Spec(x, "Sum", 2, "float32")
    with pytest.raises(UnknownOperation, match="unknown reduction 'Summ'"):
        Spec(x, "Summ", 1, "float32")
    with pytest.raises(FormulaError, match="K, an int from 1"):
        Spec(x, "KMin", 1, "float32")
    with pytest.raises(FormulaError, match="takes no K"):
        Spec(x, "Sum", 1, "float32", k=3)
    with pytest.raises(DtypeError):
        Spec(x, "Sum", 1, "int32")
    with pytest.raises(FormulaError, match="declare one input in two ways"):
        Spec(node("Add", x, variable(0, 3, J)), "Sum", 1, "float32")


def _merged(*shapes: Any) -> dict[int, tuple[int, ...]]:
    return {index: shape for some in shapes for index, shape in some.items()}


@pytest.mark.parity("X-14", "X-17")
def test_shapes_are_checked_with_the_name_of_the_argument() -> None:
    spec = Spec(_gaussian(), "Sum", 1, "float32")
    good = {0: (5, 3), 1: (7, 3), 2: (1,)}
    assert extent_of(spec, good) == Extent(5, 7, ())
    assert output_shapes(spec, Extent(5, 7, (2,))) == ((2, 5, 1),)
    for bad, words in [
        ({0: (5, 4)}, r"points has shape \(5, 4\)"),
        ({2: (3,)}, "argument 2"),
        ({0: (5,)}, "points"),
        ({1: (2, 7, 3), 0: (3, 5, 3)}, "do not broadcast"),
    ]:
        with pytest.raises(ShapeError, match=words):
            extent_of(spec, _merged(good, bad), {0: "points"})
    two = Spec(node("Add", x, variable(3, 3, I)), "Sum", 1, "float32")
    with pytest.raises(ShapeError, match="6 rows along i where argument 0 has 5"):
        extent_of(two, {0: (5, 3), 3: (6, 3)})
    with pytest.raises(ShapeError, match="missing"):
        extent_of(spec, {0: (5, 3)})
