from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnsureImageRequest(_message.Message):
    __slots__ = ("reference", "auth")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    AUTH_FIELD_NUMBER: _ClassVar[int]
    reference: str
    auth: RegistryAuth
    def __init__(self, reference: _Optional[str] = ..., auth: _Optional[_Union[RegistryAuth, _Mapping]] = ...) -> None: ...

class RegistryAuth(_message.Message):
    __slots__ = ("username", "password", "identity_token")
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    PASSWORD_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    username: str
    password: str
    identity_token: str
    def __init__(self, username: _Optional[str] = ..., password: _Optional[str] = ..., identity_token: _Optional[str] = ...) -> None: ...

class EnsureImageResponse(_message.Message):
    __slots__ = ("progress", "image")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    progress: FetchProgress
    image: EnsuredImage
    def __init__(self, progress: _Optional[_Union[FetchProgress, _Mapping]] = ..., image: _Optional[_Union[EnsuredImage, _Mapping]] = ...) -> None: ...

class FetchProgress(_message.Message):
    __slots__ = ("attempt", "layers", "layers_done", "bytes", "bytes_total", "last_error")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    layers: int
    layers_done: int
    bytes: int
    bytes_total: int
    last_error: str
    def __init__(self, attempt: _Optional[int] = ..., layers: _Optional[int] = ..., layers_done: _Optional[int] = ..., bytes: _Optional[int] = ..., bytes_total: _Optional[int] = ..., last_error: _Optional[str] = ...) -> None: ...

class EnsuredImage(_message.Message):
    __slots__ = ("id", "digest", "fetched", "reference", "stale_since")
    ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    STALE_SINCE_FIELD_NUMBER: _ClassVar[int]
    id: str
    digest: str
    fetched: bool
    reference: str
    stale_since: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., digest: _Optional[str] = ..., fetched: bool = ..., reference: _Optional[str] = ..., stale_since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class BuildImageRequest(_message.Message):
    __slots__ = ("definition", "context")
    DEFINITION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    definition: BuildDefinition
    context: bytes
    def __init__(self, definition: _Optional[_Union[BuildDefinition, _Mapping]] = ..., context: _Optional[bytes] = ...) -> None: ...

class BuildDefinition(_message.Message):
    __slots__ = ("context_folder", "dockerfile", "dockerfile_content", "target", "build_args", "platform", "anew", "context_device", "context_inode")
    class BuildArgsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONTEXT_FOLDER_FIELD_NUMBER: _ClassVar[int]
    DOCKERFILE_FIELD_NUMBER: _ClassVar[int]
    DOCKERFILE_CONTENT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    BUILD_ARGS_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    ANEW_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_DEVICE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_INODE_FIELD_NUMBER: _ClassVar[int]
    context_folder: str
    dockerfile: str
    dockerfile_content: str
    target: str
    build_args: _containers.ScalarMap[str, str]
    platform: str
    anew: bool
    context_device: int
    context_inode: int
    def __init__(self, context_folder: _Optional[str] = ..., dockerfile: _Optional[str] = ..., dockerfile_content: _Optional[str] = ..., target: _Optional[str] = ..., build_args: _Optional[_Mapping[str, str]] = ..., platform: _Optional[str] = ..., anew: bool = ..., context_device: _Optional[int] = ..., context_inode: _Optional[int] = ...) -> None: ...

class BuildImageResponse(_message.Message):
    __slots__ = ("log", "image")
    LOG_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    log: BuildLog
    image: BuiltImage
    def __init__(self, log: _Optional[_Union[BuildLog, _Mapping]] = ..., image: _Optional[_Union[BuiltImage, _Mapping]] = ...) -> None: ...

class BuildLog(_message.Message):
    __slots__ = ("lines", "missed")
    LINES_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedScalarFieldContainer[str]
    missed: int
    def __init__(self, lines: _Optional[_Iterable[str]] = ..., missed: _Optional[int] = ...) -> None: ...

class BuiltImage(_message.Message):
    __slots__ = ("id", "key", "reference", "reused", "built", "used", "held_until")
    ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    BUILT_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    HELD_UNTIL_FIELD_NUMBER: _ClassVar[int]
    id: str
    key: str
    reference: str
    reused: bool
    built: _timestamp_pb2.Timestamp
    used: _timestamp_pb2.Timestamp
    held_until: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., key: _Optional[str] = ..., reference: _Optional[str] = ..., reused: bool = ..., built: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., used: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., held_until: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class PushImageRequest(_message.Message):
    __slots__ = ("source", "target", "auth")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    AUTH_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    auth: RegistryAuth
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., auth: _Optional[_Union[RegistryAuth, _Mapping]] = ...) -> None: ...

class PushImageResponse(_message.Message):
    __slots__ = ("progress", "pushed")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PUSHED_FIELD_NUMBER: _ClassVar[int]
    progress: PushProgress
    pushed: PushedImage
    def __init__(self, progress: _Optional[_Union[PushProgress, _Mapping]] = ..., pushed: _Optional[_Union[PushedImage, _Mapping]] = ...) -> None: ...

class PushProgress(_message.Message):
    __slots__ = ("layers", "layers_done", "bytes", "bytes_total")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    layers: int
    layers_done: int
    bytes: int
    bytes_total: int
    def __init__(self, layers: _Optional[int] = ..., layers_done: _Optional[int] = ..., bytes: _Optional[int] = ..., bytes_total: _Optional[int] = ...) -> None: ...

class PushedImage(_message.Message):
    __slots__ = ("digest", "target", "layers", "uploaded", "mounted", "seen", "present", "bytes", "id")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    UPLOADED_FIELD_NUMBER: _ClassVar[int]
    MOUNTED_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    digest: str
    target: str
    layers: int
    uploaded: int
    mounted: int
    seen: int
    present: int
    bytes: int
    id: str
    def __init__(self, digest: _Optional[str] = ..., target: _Optional[str] = ..., layers: _Optional[int] = ..., uploaded: _Optional[int] = ..., mounted: _Optional[int] = ..., seen: _Optional[int] = ..., present: _Optional[int] = ..., bytes: _Optional[int] = ..., id: _Optional[str] = ...) -> None: ...

class ListImagesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListImagesResponse(_message.Message):
    __slots__ = ("images", "failures", "built", "built_unknown")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    BUILT_FIELD_NUMBER: _ClassVar[int]
    BUILT_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[KnownImage]
    failures: _containers.RepeatedCompositeFieldContainer[ImageFailure]
    built: _containers.RepeatedCompositeFieldContainer[BuiltImage]
    built_unknown: bool
    def __init__(self, images: _Optional[_Iterable[_Union[KnownImage, _Mapping]]] = ..., failures: _Optional[_Iterable[_Union[ImageFailure, _Mapping]]] = ..., built: _Optional[_Iterable[_Union[BuiltImage, _Mapping]]] = ..., built_unknown: bool = ...) -> None: ...

class KnownImage(_message.Message):
    __slots__ = ("reference", "state", "since", "id", "digest", "failure", "error", "private", "checked", "stale_since", "stale_why", "placeholder", "used", "held_until")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    CHECKED_FIELD_NUMBER: _ClassVar[int]
    STALE_SINCE_FIELD_NUMBER: _ClassVar[int]
    STALE_WHY_FIELD_NUMBER: _ClassVar[int]
    PLACEHOLDER_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    HELD_UNTIL_FIELD_NUMBER: _ClassVar[int]
    reference: str
    state: str
    since: _timestamp_pb2.Timestamp
    id: str
    digest: str
    failure: str
    error: str
    private: bool
    checked: _timestamp_pb2.Timestamp
    stale_since: _timestamp_pb2.Timestamp
    stale_why: str
    placeholder: bool
    used: _timestamp_pb2.Timestamp
    held_until: _timestamp_pb2.Timestamp
    def __init__(self, reference: _Optional[str] = ..., state: _Optional[str] = ..., since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., id: _Optional[str] = ..., digest: _Optional[str] = ..., failure: _Optional[str] = ..., error: _Optional[str] = ..., private: bool = ..., checked: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., stale_since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., stale_why: _Optional[str] = ..., placeholder: bool = ..., used: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., held_until: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ImageFailure(_message.Message):
    __slots__ = ("reference", "at", "failure", "error", "private")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    at: _timestamp_pb2.Timestamp
    failure: str
    error: str
    private: bool
    def __init__(self, reference: _Optional[str] = ..., at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., failure: _Optional[str] = ..., error: _Optional[str] = ..., private: bool = ...) -> None: ...

class PruneImagesRequest(_message.Message):
    __slots__ = ("dry_run", "room")
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    ROOM_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    room: int
    def __init__(self, dry_run: bool = ..., room: _Optional[int] = ...) -> None: ...

class PruneImagesResponse(_message.Message):
    __slots__ = ("image", "summary")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    image: PrunedImage
    summary: PruneSummary
    def __init__(self, image: _Optional[_Union[PrunedImage, _Mapping]] = ..., summary: _Optional[_Union[PruneSummary, _Mapping]] = ...) -> None: ...

class PrunedImage(_message.Message):
    __slots__ = ("id", "names", "bytes", "frees", "used", "created", "ours", "outcome", "why")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FREES_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    OURS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    id: str
    names: _containers.RepeatedScalarFieldContainer[str]
    bytes: int
    frees: int
    used: _timestamp_pb2.Timestamp
    created: _timestamp_pb2.Timestamp
    ours: bool
    outcome: str
    why: str
    def __init__(self, id: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., bytes: _Optional[int] = ..., frees: _Optional[int] = ..., used: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., created: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., ours: bool = ..., outcome: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class PruneSummary(_message.Message):
    __slots__ = ("bytes_before", "bytes_after", "bytes_ours", "bytes_wanted", "removed")
    BYTES_BEFORE_FIELD_NUMBER: _ClassVar[int]
    BYTES_AFTER_FIELD_NUMBER: _ClassVar[int]
    BYTES_OURS_FIELD_NUMBER: _ClassVar[int]
    BYTES_WANTED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    bytes_before: int
    bytes_after: int
    bytes_ours: int
    bytes_wanted: int
    removed: int
    def __init__(self, bytes_before: _Optional[int] = ..., bytes_after: _Optional[int] = ..., bytes_ours: _Optional[int] = ..., bytes_wanted: _Optional[int] = ..., removed: _Optional[int] = ...) -> None: ...
