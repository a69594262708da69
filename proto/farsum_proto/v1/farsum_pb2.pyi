from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Param(_message.Message):
    __slots__ = ("integer", "real", "integers")
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    integer: int
    real: float
    integers: IntegerList
    def __init__(self, integer: _Optional[int] = ..., real: _Optional[float] = ..., integers: _Optional[_Union[IntegerList, _Mapping]] = ...) -> None: ...

class IntegerList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("op", "args", "params")
    OP_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    op: str
    args: _containers.RepeatedScalarFieldContainer[int]
    params: _containers.RepeatedCompositeFieldContainer[Param]
    def __init__(self, op: _Optional[str] = ..., args: _Optional[_Iterable[int]] = ..., params: _Optional[_Iterable[_Union[Param, _Mapping]]] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("formula", "weight", "reduction", "k")
    FORMULA_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    REDUCTION_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    formula: int
    weight: int
    reduction: str
    k: int
    def __init__(self, formula: _Optional[int] = ..., weight: _Optional[int] = ..., reduction: _Optional[str] = ..., k: _Optional[int] = ...) -> None: ...

class Spec(_message.Message):
    __slots__ = ("nodes", "parts", "axis", "dtype")
    NODES_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    AXIS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    axis: int
    dtype: str
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., axis: _Optional[int] = ..., dtype: _Optional[str] = ...) -> None: ...

class Face(_message.Message):
    __slots__ = ("index", "dtype", "shape")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    index: int
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, index: _Optional[int] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Form(_message.Message):
    __slots__ = ("spec", "faces", "program")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    FACES_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    spec: Spec
    faces: _containers.RepeatedCompositeFieldContainer[Face]
    program: Program
    def __init__(self, spec: _Optional[_Union[Spec, _Mapping]] = ..., faces: _Optional[_Iterable[_Union[Face, _Mapping]]] = ..., program: _Optional[_Union[Program, _Mapping]] = ...) -> None: ...

class Program(_message.Message):
    __slots__ = ("inputs", "body", "outputs")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[Declared]
    body: _containers.RepeatedCompositeFieldContainer[Item]
    outputs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, inputs: _Optional[_Iterable[_Union[Declared, _Mapping]]] = ..., body: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., outputs: _Optional[_Iterable[str]] = ...) -> None: ...

class Declared(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("step", "loop")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOOP_FIELD_NUMBER: _ClassVar[int]
    step: Step
    loop: Loop
    def __init__(self, step: _Optional[_Union[Step, _Mapping]] = ..., loop: _Optional[_Union[Loop, _Mapping]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("outputs", "spec", "arguments", "solve", "eigen")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    SOLVE_FIELD_NUMBER: _ClassVar[int]
    EIGEN_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedScalarFieldContainer[str]
    spec: Spec
    arguments: _containers.RepeatedCompositeFieldContainer[Argument]
    solve: Solve
    eigen: Eigen
    def __init__(self, outputs: _Optional[_Iterable[str]] = ..., spec: _Optional[_Union[Spec, _Mapping]] = ..., arguments: _Optional[_Iterable[_Union[Argument, _Mapping]]] = ..., solve: _Optional[_Union[Solve, _Mapping]] = ..., eigen: _Optional[_Union[Eigen, _Mapping]] = ...) -> None: ...

class Argument(_message.Message):
    __slots__ = ("place", "name")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    place: int
    name: str
    def __init__(self, place: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class Solve(_message.Message):
    __slots__ = ("unknown", "rule", "ridge", "tolerance", "cap", "rank", "seed")
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    RIDGE_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    CAP_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    unknown: int
    rule: str
    ridge: float
    tolerance: float
    cap: int
    rank: int
    seed: int
    def __init__(self, unknown: _Optional[int] = ..., rule: _Optional[str] = ..., ridge: _Optional[float] = ..., tolerance: _Optional[float] = ..., cap: _Optional[int] = ..., rank: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class Eigen(_message.Message):
    __slots__ = ("unknown", "count", "which", "tolerance", "cap")
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    WHICH_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    CAP_FIELD_NUMBER: _ClassVar[int]
    unknown: int
    count: int
    which: str
    tolerance: float
    cap: int
    def __init__(self, unknown: _Optional[int] = ..., count: _Optional[int] = ..., which: _Optional[str] = ..., tolerance: _Optional[float] = ..., cap: _Optional[int] = ...) -> None: ...

class Loop(_message.Message):
    __slots__ = ("state", "body", "times", "measure", "below", "history")
    STATE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    state: _containers.RepeatedCompositeFieldContainer[Carried]
    body: _containers.RepeatedCompositeFieldContainer[Step]
    times: int
    measure: str
    below: float
    history: str
    def __init__(self, state: _Optional[_Iterable[_Union[Carried, _Mapping]]] = ..., body: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., times: _Optional[int] = ..., measure: _Optional[str] = ..., below: _Optional[float] = ..., history: _Optional[str] = ...) -> None: ...

class Carried(_message.Message):
    __slots__ = ("name", "first", "next")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    first: str
    next: str
    def __init__(self, name: _Optional[str] = ..., first: _Optional[str] = ..., next: _Optional[str] = ...) -> None: ...

class Content(_message.Message):
    __slots__ = ("digest", "inline")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    inline: bytes
    def __init__(self, digest: _Optional[bytes] = ..., inline: _Optional[bytes] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("digest", "dtype", "shape", "stream_bytes", "hold", "offset", "resumable", "codec")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    STREAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    RESUMABLE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    stream_bytes: int
    hold: bytes
    offset: int
    resumable: bool
    codec: str
    def __init__(self, digest: _Optional[bytes] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., stream_bytes: _Optional[int] = ..., hold: _Optional[bytes] = ..., offset: _Optional[int] = ..., resumable: bool = ..., codec: _Optional[str] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("stored_bytes",)
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    stored_bytes: int
    def __init__(self, stored_bytes: _Optional[int] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("ticket", "digest", "dtype", "shape", "offset")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ticket: bytes
    digest: bytes
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    offset: int
    def __init__(self, ticket: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., offset: _Optional[int] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("dtype", "shape", "inline", "ticket", "kept", "stream_bytes")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    STREAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    inline: bytes
    ticket: bytes
    kept: bytes
    stream_bytes: int
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., inline: _Optional[bytes] = ..., ticket: _Optional[bytes] = ..., kept: _Optional[bytes] = ..., stream_bytes: _Optional[int] = ...) -> None: ...

class ReduceRequest(_message.Message):
    __slots__ = ("form", "contents", "deadline_s", "progress", "protocol", "watch_s", "outlook", "keep")
    FORM_FIELD_NUMBER: _ClassVar[int]
    CONTENTS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    WATCH_S_FIELD_NUMBER: _ClassVar[int]
    OUTLOOK_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    form: bytes
    contents: _containers.RepeatedCompositeFieldContainer[Content]
    deadline_s: float
    progress: bool
    protocol: int
    watch_s: float
    outlook: bool
    keep: bytes
    def __init__(self, form: _Optional[bytes] = ..., contents: _Optional[_Iterable[_Union[Content, _Mapping]]] = ..., deadline_s: _Optional[float] = ..., progress: bool = ..., protocol: _Optional[int] = ..., watch_s: _Optional[float] = ..., outlook: bool = ..., keep: _Optional[bytes] = ...) -> None: ...

class ReduceReply(_message.Message):
    __slots__ = ("outputs", "need", "outlook")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    NEED_FIELD_NUMBER: _ClassVar[int]
    OUTLOOK_FIELD_NUMBER: _ClassVar[int]
    outputs: Outputs
    need: Need
    outlook: Outlook
    def __init__(self, outputs: _Optional[_Union[Outputs, _Mapping]] = ..., need: _Optional[_Union[Need, _Mapping]] = ..., outlook: _Optional[_Union[Outlook, _Mapping]] = ...) -> None: ...

class Outputs(_message.Message):
    __slots__ = ("values", "plan", "again", "stopped")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[Value]
    plan: bytes
    again: int
    stopped: Stopped
    def __init__(self, values: _Optional[_Iterable[_Union[Value, _Mapping]]] = ..., plan: _Optional[bytes] = ..., again: _Optional[int] = ..., stopped: _Optional[_Union[Stopped, _Mapping]] = ...) -> None: ...

class Stopped(_message.Message):
    __slots__ = ("error", "residuals")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RESIDUALS_FIELD_NUMBER: _ClassVar[int]
    error: Error
    residuals: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, error: _Optional[_Union[Error, _Mapping]] = ..., residuals: _Optional[_Iterable[float]] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("entries",)
    class EntriesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.ScalarMap[str, str]
    def __init__(self, entries: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Need(_message.Message):
    __slots__ = ("digests", "reasons", "received")
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    reasons: _containers.RepeatedScalarFieldContainer[str]
    received: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, digests: _Optional[_Iterable[bytes]] = ..., reasons: _Optional[_Iterable[str]] = ..., received: _Optional[_Iterable[int]] = ...) -> None: ...

class Residency(_message.Message):
    __slots__ = ("hold", "release")
    HOLD_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    hold: _containers.RepeatedCompositeFieldContainer[Claim]
    release: _containers.RepeatedCompositeFieldContainer[Claim]
    def __init__(self, hold: _Optional[_Iterable[_Union[Claim, _Mapping]]] = ..., release: _Optional[_Iterable[_Union[Claim, _Mapping]]] = ...) -> None: ...

class Claim(_message.Message):
    __slots__ = ("digest", "token")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    token: bytes
    def __init__(self, digest: _Optional[bytes] = ..., token: _Optional[bytes] = ...) -> None: ...

class Outlook(_message.Message):
    __slots__ = ("plan", "missing")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    plan: bytes
    missing: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, plan: _Optional[bytes] = ..., missing: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ClientMessage(_message.Message):
    __slots__ = ("id", "hello", "reduce", "cancel", "residency")
    ID_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REDUCE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    id: int
    hello: Hello
    reduce: ReduceRequest
    cancel: Cancel
    residency: Residency
    def __init__(self, id: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., reduce: _Optional[_Union[ReduceRequest, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., residency: _Optional[_Union[Residency, _Mapping]] = ...) -> None: ...

class ServerMessage(_message.Message):
    __slots__ = ("id", "welcome", "reply", "progress", "error", "draining")
    ID_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    id: int
    welcome: Welcome
    reply: ReduceReply
    progress: Progress
    error: Error
    draining: Draining
    def __init__(self, id: _Optional[int] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., reply: _Optional[_Union[ReduceReply, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("oldest_protocol", "newest_protocol", "client", "holder")
    OLDEST_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NEWEST_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    oldest_protocol: int
    newest_protocol: int
    client: str
    holder: bytes
    def __init__(self, oldest_protocol: _Optional[int] = ..., newest_protocol: _Optional[int] = ..., client: _Optional[str] = ..., holder: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "server", "inline_bytes", "passage")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    INLINE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    server: str
    inline_bytes: int
    passage: Passage
    def __init__(self, protocol: _Optional[int] = ..., server: _Optional[str] = ..., inline_bytes: _Optional[int] = ..., passage: _Optional[_Union[Passage, _Mapping]] = ...) -> None: ...

class Passage(_message.Message):
    __slots__ = ("path", "server")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    path: str
    server: bytes
    def __init__(self, path: _Optional[str] = ..., server: _Optional[bytes] = ...) -> None: ...

class Packet(_message.Message):
    __slots__ = ("window", "upload", "download", "ahead", "filled", "taken", "stored", "error")
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    FILLED_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    window: Window
    upload: UploadHeader
    download: DownloadRequest
    ahead: Ahead
    filled: Filled
    taken: Taken
    stored: UploadReply
    error: Error
    def __init__(self, window: _Optional[_Union[Window, _Mapping]] = ..., upload: _Optional[_Union[UploadHeader, _Mapping]] = ..., download: _Optional[_Union[DownloadRequest, _Mapping]] = ..., ahead: _Optional[_Union[Ahead, _Mapping]] = ..., filled: _Optional[_Union[Filled, _Mapping]] = ..., taken: _Optional[_Union[Taken, _Mapping]] = ..., stored: _Optional[_Union[UploadReply, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("server", "places", "place_bytes")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    PLACE_BYTES_FIELD_NUMBER: _ClassVar[int]
    server: bytes
    places: int
    place_bytes: int
    def __init__(self, server: _Optional[bytes] = ..., places: _Optional[int] = ..., place_bytes: _Optional[int] = ...) -> None: ...

class Ahead(_message.Message):
    __slots__ = ("stream_bytes",)
    STREAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    stream_bytes: int
    def __init__(self, stream_bytes: _Optional[int] = ...) -> None: ...

class Filled(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class Taken(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Cancel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Progress(_message.Message):
    __slots__ = ("share", "values")
    SHARE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    share: float
    values: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, share: _Optional[float] = ..., values: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("name", "message", "retry_after_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    message: str
    retry_after_s: float
    def __init__(self, name: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoReply(_message.Message):
    __slots__ = ("version", "oldest_protocol", "newest_protocol", "devices", "ready")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OLDEST_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NEWEST_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    version: str
    oldest_protocol: int
    newest_protocol: int
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    ready: bool
    def __init__(self, version: _Optional[str] = ..., oldest_protocol: _Optional[int] = ..., newest_protocol: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., ready: bool = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("name", "kind", "threads", "restarts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    threads: int
    restarts: int
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., threads: _Optional[int] = ..., restarts: _Optional[int] = ...) -> None: ...
