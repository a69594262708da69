"""Programs as messages. A program that arrives is made anew, so all its checks run again."""

from __future__ import annotations

from farsum_kernels.errors import FormulaError, FormulaTooLarge
from farsum_kernels.program import (
    MAX_INPUTS,
    MAX_STEPS,
    Carried,
    Eigen,
    Loop,
    Method,
    Program,
    Solve,
    Step,
    Value,
)
from farsum_proto.specs import decode_spec, encode_spec
from farsum_proto.v1 import farsum_pb2 as pb

MAX_AXES = 16


def encode_program(program: Program) -> pb.Program:
    message = pb.Program(outputs=program.outputs)
    for value in program.inputs:
        message.inputs.add(name=value.name, dtype=value.dtype, shape=value.shape)
    for item in program.body:
        if isinstance(item, Loop):
            message.body.add(loop=_loop(item))
        else:
            message.body.add(step=_step(item))
    return message


def _step(step: Step) -> pb.Step:
    message = pb.Step(outputs=step.outputs, spec=encode_spec(step.spec))
    for place, name in step.arguments:
        message.arguments.add(place=place, name=name)
    match step.method:
        case Solve() as method:
            message.solve.CopyFrom(pb.Solve(
                unknown=method.unknown, rule=method.rule, ridge=method.ridge, tolerance=method.tolerance,
                cap=method.cap, rank=method.rank, seed=method.seed,
            ))  # fmt: skip
        case Eigen() as method:
            message.eigen.CopyFrom(pb.Eigen(
                unknown=method.unknown, count=method.count, which=method.which, tolerance=method.tolerance,
                cap=method.cap,
            ))  # fmt: skip
    return message


def _loop(loop: Loop) -> pb.Loop:
    message = pb.Loop(times=loop.times, below=loop.below)
    for carried in loop.state:
        message.state.add(name=carried.name, first=carried.first, next=carried.next)
    message.body.extend(map(_step, loop.body))
    if loop.measure is not None:
        message.measure = loop.measure
    if loop.history is not None:
        message.history = loop.history
    return message


def decode_program(message: pb.Program) -> Program:
    """The inverse. Raises what `Program` raises, before anything that grows with a declared size is made."""
    steps = sum(len(item.loop.body) or 1 for item in message.body)
    if steps > MAX_STEPS or len(message.body) > MAX_STEPS:
        raise FormulaTooLarge(f"a program has at most {MAX_STEPS} steps; this one has {steps}")
    if len(message.inputs) > MAX_INPUTS:
        raise FormulaTooLarge(
            f"a program has at most {MAX_INPUTS} inputs; this one has {len(message.inputs)}"
        )
    if any(len(v.shape) > MAX_AXES for v in message.inputs):
        raise FormulaTooLarge(f"an input of a program has at most {MAX_AXES} axes")
    inputs = tuple(Value(v.name, v.dtype, tuple(v.shape)) for v in message.inputs)
    return Program(inputs, tuple(map(_decode_item, message.body)), tuple(message.outputs))


def _decode_item(message: pb.Item) -> Step | Loop:
    match message.WhichOneof("item"):
        case "step":
            return _decode_step(message.step)
        case "loop":
            loop = message.loop
            return Loop(
                tuple(Carried(c.name, c.first, c.next) for c in loop.state),
                tuple(map(_decode_step, loop.body)),
                loop.times,
                loop.measure if loop.HasField("measure") else None,
                loop.below,
                loop.history if loop.HasField("history") else None,
            )
    raise FormulaError("a part of the program is neither a step nor a loop")


def _decode_step(message: pb.Step) -> Step:
    arguments = tuple((a.place, a.name) for a in message.arguments)
    return Step(tuple(message.outputs), decode_spec(message.spec), arguments, _method(message))


def _method(message: pb.Step) -> Method | None:
    match message.WhichOneof("method"):
        case "solve":
            s = message.solve
            return Solve(s.unknown, s.rule, s.ridge, s.tolerance, s.cap, s.rank, s.seed)
        case "eigen":
            e = message.eigen
            return Eigen(e.unknown, e.count, e.which, e.tolerance, e.cap)
    return None
