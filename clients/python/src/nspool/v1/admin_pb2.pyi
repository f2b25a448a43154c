from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from nspool.v1 import pool_pb2 as _pool_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListSlotsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSlotsResponse(_message.Message):
    __slots__ = ("slots", "detached")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    DETACHED_FIELD_NUMBER: _ClassVar[int]
    slots: _containers.RepeatedCompositeFieldContainer[Slot]
    detached: _containers.RepeatedCompositeFieldContainer[DetachedBuddy]
    def __init__(self, slots: _Optional[_Iterable[_Union[Slot, _Mapping]]] = ..., detached: _Optional[_Iterable[_Union[DetachedBuddy, _Mapping]]] = ...) -> None: ...

class Slot(_message.Message):
    __slots__ = ("slot", "generation", "use", "state", "namespace_id", "container_id", "network", "since", "failures", "last_error", "lease_id", "doomed", "joiners", "pid")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    USE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    DOOMED_FIELD_NUMBER: _ClassVar[int]
    JOINERS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    slot: int
    generation: int
    use: int
    state: str
    namespace_id: str
    container_id: str
    network: str
    since: _timestamp_pb2.Timestamp
    failures: int
    last_error: str
    lease_id: str
    doomed: bool
    joiners: _containers.RepeatedScalarFieldContainer[str]
    pid: int
    def __init__(self, slot: _Optional[int] = ..., generation: _Optional[int] = ..., use: _Optional[int] = ..., state: _Optional[str] = ..., namespace_id: _Optional[str] = ..., container_id: _Optional[str] = ..., network: _Optional[str] = ..., since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., failures: _Optional[int] = ..., last_error: _Optional[str] = ..., lease_id: _Optional[str] = ..., doomed: bool = ..., joiners: _Optional[_Iterable[str]] = ..., pid: _Optional[int] = ...) -> None: ...

class DetachedBuddy(_message.Message):
    __slots__ = ("container_id", "name", "slot", "generation", "joiners", "since")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    JOINERS_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    name: str
    slot: int
    generation: int
    joiners: _containers.RepeatedScalarFieldContainer[str]
    since: _timestamp_pb2.Timestamp
    def __init__(self, container_id: _Optional[str] = ..., name: _Optional[str] = ..., slot: _Optional[int] = ..., generation: _Optional[int] = ..., joiners: _Optional[_Iterable[str]] = ..., since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListLeasesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListLeasesResponse(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedCompositeFieldContainer[_pool_pb2.Lease]
    def __init__(self, leases: _Optional[_Iterable[_Union[_pool_pb2.Lease, _Mapping]]] = ...) -> None: ...

class ResizeRequest(_message.Message):
    __slots__ = ("ready", "max")
    READY_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    ready: int
    max: int
    def __init__(self, ready: _Optional[int] = ..., max: _Optional[int] = ...) -> None: ...

class ResizeResponse(_message.Message):
    __slots__ = ("ready", "max")
    READY_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    ready: int
    max: int
    def __init__(self, ready: _Optional[int] = ..., max: _Optional[int] = ...) -> None: ...

class CordonRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class CordonResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UncordonRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UncordonResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("timeout",)
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    timeout: _duration_pb2.Duration
    def __init__(self, timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("leased", "waiting", "drained", "timed_out")
    LEASED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    TIMED_OUT_FIELD_NUMBER: _ClassVar[int]
    leased: int
    waiting: int
    drained: bool
    timed_out: bool
    def __init__(self, leased: _Optional[int] = ..., waiting: _Optional[int] = ..., drained: bool = ..., timed_out: bool = ...) -> None: ...

class RecycleSlotRequest(_message.Message):
    __slots__ = ("slot", "force")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    slot: int
    force: bool
    def __init__(self, slot: _Optional[int] = ..., force: bool = ...) -> None: ...

class RecycleSlotResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...

class ForceReleaseRequest(_message.Message):
    __slots__ = ("lease_id",)
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    def __init__(self, lease_id: _Optional[str] = ...) -> None: ...

class ForceReleaseResponse(_message.Message):
    __slots__ = ("outcome",)
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    outcome: _pool_pb2.ReleaseOutcome
    def __init__(self, outcome: _Optional[_Union[_pool_pb2.ReleaseOutcome, str]] = ...) -> None: ...

class AuditRequest(_message.Message):
    __slots__ = ("fix",)
    FIX_FIELD_NUMBER: _ClassVar[int]
    fix: bool
    def __init__(self, fix: bool = ...) -> None: ...

class AuditResponse(_message.Message):
    __slots__ = ("findings", "slots", "leases", "containers", "at", "more")
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    findings: _containers.RepeatedCompositeFieldContainer[AuditFinding]
    slots: int
    leases: int
    containers: int
    at: _timestamp_pb2.Timestamp
    more: int
    def __init__(self, findings: _Optional[_Iterable[_Union[AuditFinding, _Mapping]]] = ..., slots: _Optional[int] = ..., leases: _Optional[int] = ..., containers: _Optional[int] = ..., at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., more: _Optional[int] = ...) -> None: ...

class InspectRequest(_message.Message):
    __slots__ = ("slot",)
    SLOT_FIELD_NUMBER: _ClassVar[int]
    slot: int
    def __init__(self, slot: _Optional[int] = ...) -> None: ...

class InspectResponse(_message.Message):
    __slots__ = ("slot", "differences", "leftovers")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    LEFTOVERS_FIELD_NUMBER: _ClassVar[int]
    slot: Slot
    differences: _containers.RepeatedCompositeFieldContainer[Difference]
    leftovers: _containers.RepeatedCompositeFieldContainer[Leftover]
    def __init__(self, slot: _Optional[_Union[Slot, _Mapping]] = ..., differences: _Optional[_Iterable[_Union[Difference, _Mapping]]] = ..., leftovers: _Optional[_Iterable[_Union[Leftover, _Mapping]]] = ...) -> None: ...

class Difference(_message.Message):
    __slots__ = ("kind", "subject", "was")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    WAS_FIELD_NUMBER: _ClassVar[int]
    IS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    subject: str
    was: str
    def __init__(self, kind: _Optional[str] = ..., subject: _Optional[str] = ..., was: _Optional[str] = ..., **kwargs) -> None: ...

class Leftover(_message.Message):
    __slots__ = ("kind", "count")
    KIND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    count: int
    def __init__(self, kind: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class AuditFinding(_message.Message):
    __slots__ = ("kind", "subject", "detail", "fixable", "fixed")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    FIXABLE_FIELD_NUMBER: _ClassVar[int]
    FIXED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    subject: str
    detail: str
    fixable: bool
    fixed: bool
    def __init__(self, kind: _Optional[str] = ..., subject: _Optional[str] = ..., detail: _Optional[str] = ..., fixable: bool = ..., fixed: bool = ...) -> None: ...
