from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Lifetime(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LIFETIME_UNSPECIFIED: _ClassVar[Lifetime]
    LIFETIME_JOINERS: _ClassVar[Lifetime]
    LIFETIME_TTL: _ClassVar[Lifetime]
    LIFETIME_CONNECTION: _ClassVar[Lifetime]

class LeaseState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEASE_STATE_UNSPECIFIED: _ClassVar[LeaseState]
    LEASE_STATE_ACTIVE: _ClassVar[LeaseState]
    LEASE_STATE_LOST: _ClassVar[LeaseState]
    LEASE_STATE_ENDED: _ClassVar[LeaseState]

class ReleaseOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RELEASE_OUTCOME_UNSPECIFIED: _ClassVar[ReleaseOutcome]
    RELEASE_OUTCOME_RETURNED: _ClassVar[ReleaseOutcome]
    RELEASE_OUTCOME_JOINER_STILL_THERE: _ClassVar[ReleaseOutcome]
    RELEASE_OUTCOME_ALREADY_RELEASED: _ClassVar[ReleaseOutcome]
    RELEASE_OUTCOME_ALREADY_ENDED: _ClassVar[ReleaseOutcome]
LIFETIME_UNSPECIFIED: Lifetime
LIFETIME_JOINERS: Lifetime
LIFETIME_TTL: Lifetime
LIFETIME_CONNECTION: Lifetime
LEASE_STATE_UNSPECIFIED: LeaseState
LEASE_STATE_ACTIVE: LeaseState
LEASE_STATE_LOST: LeaseState
LEASE_STATE_ENDED: LeaseState
RELEASE_OUTCOME_UNSPECIFIED: ReleaseOutcome
RELEASE_OUTCOME_RETURNED: ReleaseOutcome
RELEASE_OUTCOME_JOINER_STILL_THERE: ReleaseOutcome
RELEASE_OUTCOME_ALREADY_RELEASED: ReleaseOutcome
RELEASE_OUTCOME_ALREADY_ENDED: ReleaseOutcome

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("version", "pool", "engine", "incarnation", "networks", "reuse", "started_at", "at_stop", "state_dir")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NETWORKS_FIELD_NUMBER: _ClassVar[int]
    REUSE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    AT_STOP_FIELD_NUMBER: _ClassVar[int]
    STATE_DIR_FIELD_NUMBER: _ClassVar[int]
    version: str
    pool: str
    engine: Engine
    incarnation: str
    networks: _containers.RepeatedScalarFieldContainer[str]
    reuse: str
    started_at: _timestamp_pb2.Timestamp
    at_stop: str
    state_dir: str
    def __init__(self, version: _Optional[str] = ..., pool: _Optional[str] = ..., engine: _Optional[_Union[Engine, _Mapping]] = ..., incarnation: _Optional[str] = ..., networks: _Optional[_Iterable[str]] = ..., reuse: _Optional[str] = ..., started_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., at_stop: _Optional[str] = ..., state_dir: _Optional[str] = ...) -> None: ...

class Engine(_message.Message):
    __slots__ = ("kind", "id", "endpoint", "version")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    kind: str
    id: str
    endpoint: str
    version: str
    def __init__(self, kind: _Optional[str] = ..., id: _Optional[str] = ..., endpoint: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class AllocateRequest(_message.Message):
    __slots__ = ("request_id", "owner", "tenant", "network", "lifetime", "join_by", "ttl", "wait", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    JOIN_BY_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    owner: str
    tenant: str
    network: str
    lifetime: Lifetime
    join_by: _duration_pb2.Duration
    ttl: _duration_pb2.Duration
    wait: _duration_pb2.Duration
    labels: _containers.ScalarMap[str, str]
    def __init__(self, request_id: _Optional[str] = ..., owner: _Optional[str] = ..., tenant: _Optional[str] = ..., network: _Optional[str] = ..., lifetime: _Optional[_Union[Lifetime, str]] = ..., join_by: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class AllocateResponse(_message.Message):
    __slots__ = ("lease", "repeated_request")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REPEATED_REQUEST_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    repeated_request: bool
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., repeated_request: bool = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("token", "lease_id", "state", "slot", "generation", "use", "namespace_id", "network_mode", "host_config", "container_id", "engine", "netns_path", "oci_namespaces", "network", "ip_addresses", "gateways", "mtu", "resolv_conf", "lifetime", "expires_at", "remaining", "allocated_at", "owner", "tenant", "labels", "cause")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    USE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    NETWORK_MODE_FIELD_NUMBER: _ClassVar[int]
    HOST_CONFIG_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    NETNS_PATH_FIELD_NUMBER: _ClassVar[int]
    OCI_NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    IP_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    GATEWAYS_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    RESOLV_CONF_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_AT_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    token: str
    lease_id: str
    state: LeaseState
    slot: int
    generation: int
    use: int
    namespace_id: str
    network_mode: str
    host_config: str
    container_id: str
    engine: Engine
    netns_path: str
    oci_namespaces: _containers.RepeatedCompositeFieldContainer[OciNamespace]
    network: str
    ip_addresses: _containers.RepeatedScalarFieldContainer[str]
    gateways: _containers.RepeatedScalarFieldContainer[str]
    mtu: int
    resolv_conf: str
    lifetime: Lifetime
    expires_at: _timestamp_pb2.Timestamp
    remaining: _duration_pb2.Duration
    allocated_at: _timestamp_pb2.Timestamp
    owner: str
    tenant: str
    labels: _containers.ScalarMap[str, str]
    cause: str
    def __init__(self, token: _Optional[str] = ..., lease_id: _Optional[str] = ..., state: _Optional[_Union[LeaseState, str]] = ..., slot: _Optional[int] = ..., generation: _Optional[int] = ..., use: _Optional[int] = ..., namespace_id: _Optional[str] = ..., network_mode: _Optional[str] = ..., host_config: _Optional[str] = ..., container_id: _Optional[str] = ..., engine: _Optional[_Union[Engine, _Mapping]] = ..., netns_path: _Optional[str] = ..., oci_namespaces: _Optional[_Iterable[_Union[OciNamespace, _Mapping]]] = ..., network: _Optional[str] = ..., ip_addresses: _Optional[_Iterable[str]] = ..., gateways: _Optional[_Iterable[str]] = ..., mtu: _Optional[int] = ..., resolv_conf: _Optional[str] = ..., lifetime: _Optional[_Union[Lifetime, str]] = ..., expires_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., remaining: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., allocated_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., owner: _Optional[str] = ..., tenant: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., cause: _Optional[str] = ...) -> None: ...

class OciNamespace(_message.Message):
    __slots__ = ("type", "path")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    type: str
    path: str
    def __init__(self, type: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("token", "ttl")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    token: str
    ttl: _duration_pb2.Duration
    def __init__(self, token: _Optional[str] = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("expires_at", "remaining")
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    expires_at: _timestamp_pb2.Timestamp
    remaining: _duration_pb2.Duration
    def __init__(self, expires_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., remaining: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class KeepAliveRequest(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, tokens: _Optional[_Iterable[str]] = ...) -> None: ...

class KeepAliveResponse(_message.Message):
    __slots__ = ("token", "remaining", "reason")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    token: str
    remaining: _duration_pb2.Duration
    reason: str
    def __init__(self, token: _Optional[str] = ..., remaining: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("token", "doubtful")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    DOUBTFUL_FIELD_NUMBER: _ClassVar[int]
    token: str
    doubtful: bool
    def __init__(self, token: _Optional[str] = ..., doubtful: bool = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ("outcome", "cause")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    outcome: ReleaseOutcome
    cause: str
    def __init__(self, outcome: _Optional[_Union[ReleaseOutcome, str]] = ..., cause: _Optional[str] = ...) -> None: ...

class GetLeaseRequest(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: str
    def __init__(self, token: _Optional[str] = ...) -> None: ...

class GetLeaseResponse(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("owner",)
    OWNER_FIELD_NUMBER: _ClassVar[int]
    owner: str
    def __init__(self, owner: _Optional[str] = ...) -> None: ...

class ResumeResponse(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class GetUsageRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetUsageResponse(_message.Message):
    __slots__ = ("total", "networks", "engine_state", "engine_error", "image_state", "image_error", "cordoned", "draining", "engine", "pool", "ledger_error")
    class NetworksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Usage
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    NETWORKS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_STATE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_ERROR_FIELD_NUMBER: _ClassVar[int]
    IMAGE_STATE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ERROR_FIELD_NUMBER: _ClassVar[int]
    CORDONED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    LEDGER_ERROR_FIELD_NUMBER: _ClassVar[int]
    total: Usage
    networks: _containers.MessageMap[str, Usage]
    engine_state: str
    engine_error: str
    image_state: str
    image_error: str
    cordoned: bool
    draining: bool
    engine: Engine
    pool: str
    ledger_error: str
    def __init__(self, total: _Optional[_Union[Usage, _Mapping]] = ..., networks: _Optional[_Mapping[str, Usage]] = ..., engine_state: _Optional[str] = ..., engine_error: _Optional[str] = ..., image_state: _Optional[str] = ..., image_error: _Optional[str] = ..., cordoned: bool = ..., draining: bool = ..., engine: _Optional[_Union[Engine, _Mapping]] = ..., pool: _Optional[str] = ..., ledger_error: _Optional[str] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("vacant", "filling", "ready", "leased", "vacating", "renewing", "cooling", "quarantined", "retiring", "detached", "lost", "target", "max", "waiting", "misses", "allocations")
    VACANT_FIELD_NUMBER: _ClassVar[int]
    FILLING_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    VACATING_FIELD_NUMBER: _ClassVar[int]
    RENEWING_FIELD_NUMBER: _ClassVar[int]
    COOLING_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    RETIRING_FIELD_NUMBER: _ClassVar[int]
    DETACHED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    ALLOCATIONS_FIELD_NUMBER: _ClassVar[int]
    vacant: int
    filling: int
    ready: int
    leased: int
    vacating: int
    renewing: int
    cooling: int
    quarantined: int
    retiring: int
    detached: int
    lost: int
    target: int
    max: int
    waiting: int
    misses: int
    allocations: int
    def __init__(self, vacant: _Optional[int] = ..., filling: _Optional[int] = ..., ready: _Optional[int] = ..., leased: _Optional[int] = ..., vacating: _Optional[int] = ..., renewing: _Optional[int] = ..., cooling: _Optional[int] = ..., quarantined: _Optional[int] = ..., retiring: _Optional[int] = ..., detached: _Optional[int] = ..., lost: _Optional[int] = ..., target: _Optional[int] = ..., max: _Optional[int] = ..., waiting: _Optional[int] = ..., misses: _Optional[int] = ..., allocations: _Optional[int] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: int
    def __init__(self, position: _Optional[int] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("position", "snapshot", "capacity", "joined", "lost", "ending", "cordon", "reset")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    ENDING_FIELD_NUMBER: _ClassVar[int]
    CORDON_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    position: int
    snapshot: Snapshot
    capacity: Usage
    joined: LeaseEvent
    lost: LeaseEvent
    ending: LeaseEvent
    cordon: CordonEvent
    reset: Reset
    def __init__(self, position: _Optional[int] = ..., snapshot: _Optional[_Union[Snapshot, _Mapping]] = ..., capacity: _Optional[_Union[Usage, _Mapping]] = ..., joined: _Optional[_Union[LeaseEvent, _Mapping]] = ..., lost: _Optional[_Union[LeaseEvent, _Mapping]] = ..., ending: _Optional[_Union[LeaseEvent, _Mapping]] = ..., cordon: _Optional[_Union[CordonEvent, _Mapping]] = ..., reset: _Optional[_Union[Reset, _Mapping]] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("usage", "cordoned", "draining", "leases", "incarnation")
    USAGE_FIELD_NUMBER: _ClassVar[int]
    CORDONED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    usage: Usage
    cordoned: bool
    draining: bool
    leases: _containers.RepeatedCompositeFieldContainer[LeaseEvent]
    incarnation: str
    def __init__(self, usage: _Optional[_Union[Usage, _Mapping]] = ..., cordoned: bool = ..., draining: bool = ..., leases: _Optional[_Iterable[_Union[LeaseEvent, _Mapping]]] = ..., incarnation: _Optional[str] = ...) -> None: ...

class LeaseEvent(_message.Message):
    __slots__ = ("lease_id", "namespace_id", "slot", "generation", "use", "owner", "state", "cause")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    USE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    namespace_id: str
    slot: int
    generation: int
    use: int
    owner: str
    state: LeaseState
    cause: str
    def __init__(self, lease_id: _Optional[str] = ..., namespace_id: _Optional[str] = ..., slot: _Optional[int] = ..., generation: _Optional[int] = ..., use: _Optional[int] = ..., owner: _Optional[str] = ..., state: _Optional[_Union[LeaseState, str]] = ..., cause: _Optional[str] = ...) -> None: ...

class CordonEvent(_message.Message):
    __slots__ = ("cordoned", "draining")
    CORDONED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    cordoned: bool
    draining: bool
    def __init__(self, cordoned: bool = ..., draining: bool = ...) -> None: ...

class Reset(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
