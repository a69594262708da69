"""A job without its numbers, as bytes and as a checked value. Holds no array."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from farsum_kernels.errors import (
    DtypeError,
    FormulaTooLarge,
    MessageTooLarge,
    ShapeError,
    WireError,
)
from farsum_kernels.job import ITEMSIZE, RANGES, ArrayRef, Spec, extent_of, output_dtypes, output_shapes
from farsum_kernels.program import Program, cost_of
from farsum_proto.programs import decode_program, encode_program
from farsum_proto.specs import decode_spec, encode_spec
from farsum_proto.v1 import farsum_pb2 as pb
from farsum_proto.wire.limits import (
    MAX_ARRAY_BYTES,
    MAX_ARRAYS,
    MAX_FORM_BYTES,
    MAX_NDIM,
    MAX_WATCHED_BYTES,
    parse,
)


@dataclass(frozen=True, slots=True)
class Face:
    """What an array is: dtype, shape, and the number of bytes that follows."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """A job without its numbers, checked: the spec or program, the faces of its arrays, what comes out.

    cost     a rough number of node evaluations
    nbytes   what a program holds between its steps
    results  the bytes of all results
    """

    spec: Spec | Program
    indices: tuple[int, ...]
    faces: tuple[Face, ...]
    outputs: tuple[Face, ...]
    cost: float
    nbytes: int = 0
    results: int = 0


def _face(dtype: str, shape: tuple[int, ...]) -> Face:
    return Face(dtype, shape, ArrayRef(b"", dtype, shape).nbytes)


def checked_face(dtype: str, dims: Iterable[int]) -> Face:
    shape = tuple(dims)
    if dtype not in ITEMSIZE:
        raise DtypeError(f"arrays of dtype {dtype!r:.40} do not travel; allowed are {', '.join(ITEMSIZE)}")
    if len(shape) > MAX_NDIM:
        raise ShapeError(f"an array has {len(shape)} axes; at most {MAX_NDIM} are allowed")
    face = _face(dtype, shape)
    # Zero times anything is zero, so a zero must not hide a dimension that no machine can index.
    if face.nbytes > MAX_ARRAY_BYTES or (shape and max(shape) > MAX_ARRAY_BYTES):
        raise MessageTooLarge(f"an array of shape {shape} is larger than {MAX_ARRAY_BYTES} bytes")
    return face


def encode_form(spec: Spec | Program, shapes: Mapping[int, tuple[int, ...]]) -> bytes:
    """A job without its numbers, as bytes that are equal for equal jobs of one process.

    A program says itself which shapes it is for.
    """
    if isinstance(spec, Program):
        return pb.Form(program=encode_program(spec)).SerializeToString(deterministic=True)
    faces = [
        pb.Face(index=n, dtype="int64" if n in RANGES else spec.dtype, shape=shape)
        for n, shape in shapes.items()
    ]
    return pb.Form(spec=encode_spec(spec), faces=faces).SerializeToString(deterministic=True)


def decode_form(data: bytes) -> Form:
    """The inverse, with every check that needs no array: formula, dtypes, shapes, sizes."""
    if len(data) > MAX_FORM_BYTES:
        raise FormulaTooLarge(f"the formula takes {len(data)} bytes; at most {MAX_FORM_BYTES} are allowed")
    message = parse(pb.Form(), data)
    if message.HasField("program"):
        return _program_form(message)
    if len(message.faces) > MAX_ARRAYS:
        raise MessageTooLarge(f"the job names {len(message.faces)} arrays; at most {MAX_ARRAYS} are allowed")
    spec = decode_spec(message.spec)
    faces = {face.index: checked_face(face.dtype, face.shape) for face in message.faces}
    if len(faces) != len(message.faces):
        raise WireError("the job names one argument twice")
    for n, face in faces.items():
        if n not in spec.inputs and n not in RANGES:
            raise WireError(f"the job brings an argument {n} that its formula does not use")
        wanted = "int64" if n in RANGES else spec.dtype
        if face.dtype != wanted:
            raise DtypeError(f"argument {n} is {face.dtype} where the job takes {wanted}")
    extent = extent_of(spec, {n: face.shape for n, face in faces.items() if n not in RANGES})
    outputs = tuple(map(checked_face, output_dtypes(spec), output_shapes(spec, extent)))
    nodes = len(message.spec.nodes) + sum(v.dim for v in spec.inputs.values())
    cost, size = float(extent.pairs) * nodes, sum(face.nbytes for face in outputs)
    return Form(spec, tuple(faces), tuple(faces.values()), outputs, cost, results=size)


def _program_form(message: pb.Form) -> Form:
    if message.HasField("spec") or message.faces:
        raise WireError("a form holds a formula or a program, not both")
    program = decode_program(message.program)
    faces = [checked_face(value.dtype, value.shape) for value in program.inputs]
    outputs = tuple(checked_face(value.dtype, value.shape) for value in program.results)
    cost, held, size = cost_of(program), program.layout.nbytes, sum(face.nbytes for face in outputs)
    return Form(program, tuple(range(len(faces))), tuple(faces), outputs, cost, held, size)


class FormCache:
    """Decoded forms by their bytes, least recently used out first.

    Bounded by bytes rather than by count: nodes in memory are about fifty times their encoding.
    """

    def __init__(self, limit_bytes: int = 2 << 20) -> None:
        self._limit = limit_bytes
        self._size = 0
        self._forms: OrderedDict[bytes, Form] = OrderedDict()

    def known(self, data: bytes) -> bool:
        """Was the form decoded before, and is it still here?"""
        return data in self._forms

    def get(self, data: bytes) -> Form:
        if form := self._forms.get(data):
            self._forms.move_to_end(data)
            return form
        form = decode_form(data)
        self._forms[data] = form
        self._size += len(data)
        while self._size > self._limit:
            self._size -= len(self._forms.popitem(last=False)[0])
        return form


def check_watched(form: Form) -> None:
    """Raise MessageTooLarge for results that are too large to be watched."""
    nbytes = sum(face.nbytes for face in form.outputs)
    if nbytes > MAX_WATCHED_BYTES:
        raise MessageTooLarge(
            f"the results take {nbytes} bytes; up to {MAX_WATCHED_BYTES} can be watched while they are computed"
        )
