from farsum_proto.v1 import farsum_pb2 as _farsum_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Place(_message.Message):
    __slots__ = ("offset", "inline", "digest")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    offset: int
    inline: bytes
    digest: bytes
    def __init__(self, offset: _Optional[int] = ..., inline: _Optional[bytes] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Action(_message.Message):
    __slots__ = ("job", "start", "step", "drop", "prepare")
    JOB_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    job: int
    start: Start
    step: Step
    drop: Drop
    prepare: Prepare
    def __init__(self, job: _Optional[int] = ..., start: _Optional[_Union[Start, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., drop: _Optional[_Union[Drop, _Mapping]] = ..., prepare: _Optional[_Union[Prepare, _Mapping]] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("form", "places", "outputs", "outlook", "watch_s", "keep")
    FORM_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTLOOK_FIELD_NUMBER: _ClassVar[int]
    WATCH_S_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    form: bytes
    places: _containers.RepeatedCompositeFieldContainer[Place]
    outputs: _containers.RepeatedScalarFieldContainer[int]
    outlook: bool
    watch_s: float
    keep: bool
    def __init__(self, form: _Optional[bytes] = ..., places: _Optional[_Iterable[_Union[Place, _Mapping]]] = ..., outputs: _Optional[_Iterable[int]] = ..., outlook: bool = ..., watch_s: _Optional[float] = ..., keep: bool = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Drop(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Prepare(_message.Message):
    __slots__ = ("number", "form", "forget")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    number: int
    form: bytes
    forget: int
    def __init__(self, number: _Optional[int] = ..., form: _Optional[bytes] = ..., forget: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("job", "ready", "progressed", "finished", "failed", "compiling", "prepared")
    JOB_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    PROGRESSED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    COMPILING_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    job: int
    ready: Ready
    progressed: Progressed
    finished: Finished
    failed: _farsum_pb2.Error
    compiling: Compiling
    prepared: Prepared
    def __init__(self, job: _Optional[int] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., progressed: _Optional[_Union[Progressed, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., failed: _Optional[_Union[_farsum_pb2.Error, _Mapping]] = ..., compiling: _Optional[_Union[Compiling, _Mapping]] = ..., prepared: _Optional[_Union[Prepared, _Mapping]] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("name", "kind", "threads")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    threads: int
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., threads: _Optional[int] = ...) -> None: ...

class Compiling(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Prepared(_message.Message):
    __slots__ = ("number", "plan", "alone")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    number: int
    plan: bytes
    alone: bool
    def __init__(self, number: _Optional[int] = ..., plan: _Optional[bytes] = ..., alone: bool = ...) -> None: ...

class Progressed(_message.Message):
    __slots__ = ("share", "values")
    SHARE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    share: float
    values: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, share: _Optional[float] = ..., values: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("values", "plan", "stopped", "digests")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[bytes]
    plan: bytes
    stopped: _farsum_pb2.Stopped
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, values: _Optional[_Iterable[bytes]] = ..., plan: _Optional[bytes] = ..., stopped: _Optional[_Union[_farsum_pb2.Stopped, _Mapping]] = ..., digests: _Optional[_Iterable[bytes]] = ...) -> None: ...
