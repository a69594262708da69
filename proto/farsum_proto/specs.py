"""Formulas and reductions as messages, every rule of a local formula checked again when they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from farsum_kernels.errors import FormulaError, FormulaTooLarge
from farsum_kernels.formula.expr import MAX_NODES, Flat, decode, encode
from farsum_kernels.job import MAX_PARTS, Part, Spec
from farsum_proto.v1 import farsum_pb2 as pb


def _param(value: Any) -> pb.Param:
    if isinstance(value, tuple):
        return pb.Param(integers=pb.IntegerList(values=value))
    return pb.Param(integer=value) if isinstance(value, int) else pb.Param(real=value)


def encode_spec(spec: Spec) -> pb.Spec:
    flat, roots = encode(*spec.roots)
    nodes = [pb.Node(op=op, args=args, params=map(_param, params)) for op, args, params in flat]
    message = pb.Spec(nodes=nodes, axis=spec.axis, dtype=spec.dtype)
    place = iter(roots)
    for part in spec.parts:
        made = message.parts.add(reduction=part.reduction, k=part.k)
        made.formula = next(place)
        if part.weight is not None:
            made.weight = next(place)
    return message


def _literal(param: pb.Param) -> Any:
    match param.WhichOneof("kind"):
        case "integer":
            return param.integer
        case "real":
            return param.real
        case "integers":
            return tuple(param.integers.values)
    raise FormulaError("a parameter of a node has no value")


def _check_leaf(op: str, params: tuple[Any, ...]) -> None:
    # Every other operation checks its parameters itself, by its dims rule.
    if op == "Var" and [type(p) for p in params] != [int] * 3:
        raise FormulaError(f"Var takes three integers, not {params!r:.100}")
    if op == "Const" and [type(p) for p in params] not in ([int], [float]):
        raise FormulaError(f"Const takes one number, not {params!r:.100}")


def _flat(nodes: Sequence[pb.Node]) -> Flat:
    flat = []
    for node in nodes:
        params = tuple(map(_literal, node.params))
        if node.op in ("Var", "Const"):
            _check_leaf(node.op, params)
            if node.args:
                raise FormulaError(f"{node.op} takes no operands; {len(node.args)} were given")
        flat.append((node.op, tuple(node.args), params))
    return tuple(flat)


def decode_spec(message: pb.Spec) -> Spec:
    """The inverse of `encode_spec`, with every rule of a local formula checked again."""
    if len(message.nodes) > MAX_NODES:
        raise FormulaTooLarge(f"the formula has {len(message.nodes)} nodes; at most {MAX_NODES} are allowed")
    if not 1 <= len(message.parts) <= MAX_PARTS:
        raise FormulaError(f"a job has 1 to {MAX_PARTS} reductions; this one has {len(message.parts)}")
    roots = [
        root
        for p in message.parts
        for root in ((p.formula, p.weight) if p.HasField("weight") else (p.formula,))
    ]
    try:
        root = iter(decode(_flat(message.nodes), tuple(roots)))
        first, *also = [
            Part(next(root), p.reduction, next(root) if p.HasField("weight") else None, p.k)
            for p in message.parts
        ]
        return Spec(
            first.formula, first.reduction, message.axis, message.dtype, first.weight, first.k, tuple(also)
        )
    except (TypeError, OverflowError, RecursionError) as error:
        # A dims rule met a literal of a kind that no local caller can pass.
        raise FormulaError(f"the formula does not decode: {error}") from error
