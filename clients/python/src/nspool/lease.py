"""What a function start gets: a `Lease` on a ready namespace, or a `PlainNetwork` that looks like one.

Both have `network_mode`, `host_config`, `merge_into` and `release`, and both are context managers, so that the code that
starts a container need not know which one it has. A lease that leaves its `with` block by an exception is released as
doubtful: nobody knows then whether a create or a start is still under way in its namespace.

Releasing never raises for what the daemon does or says: the function has run by then. What could not be told to the
daemon is logged and returned; such a lease ends by its lifetime.

Deliberately does not know: how leases are got, and engines.
"""

from __future__ import annotations

import enum
import json
import logging
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple, Type, TypeVar, Union

import grpc
from google.protobuf import duration_pb2

from .errors import NspoolError
from .v1 import pool_pb2

if TYPE_CHECKING:
    from .client import Client

log = logging.getLogger("nspool")

_Self = TypeVar("_Self", bound="_Placement")


class LeaseState(enum.IntEnum):
    """As the daemon last said. LOST: the namespace is gone or not to be trusted; release it."""

    UNSPECIFIED = pool_pb2.LEASE_STATE_UNSPECIFIED
    ACTIVE = pool_pb2.LEASE_STATE_ACTIVE
    LOST = pool_pb2.LEASE_STATE_LOST
    ENDED = pool_pb2.LEASE_STATE_ENDED


class ReleaseOutcome(enum.Enum):
    """What became of a release."""

    RETURNED = "returned"
    # Returned, but a container is still in the namespace; the slot waits for that one.
    JOINER_STILL_THERE = "joiner still there"
    ALREADY_RELEASED = "already released"
    # It had ended by itself; `Released.cause` says why.
    ALREADY_ENDED = "already ended"
    # The daemon does not know the lease (any more).
    UNKNOWN = "unknown"
    # The daemon could not be told; `Released.error` says why. The lease ends by its lifetime.
    NOT_DELIVERED = "not delivered"
    # It was the plain network: there was nothing to release.
    NOT_LEASED = "not leased"


_OUTCOMES = {
    pool_pb2.RELEASE_OUTCOME_RETURNED: ReleaseOutcome.RETURNED,
    pool_pb2.RELEASE_OUTCOME_JOINER_STILL_THERE: ReleaseOutcome.JOINER_STILL_THERE,
    pool_pb2.RELEASE_OUTCOME_ALREADY_RELEASED: ReleaseOutcome.ALREADY_RELEASED,
    pool_pb2.RELEASE_OUTCOME_ALREADY_ENDED: ReleaseOutcome.ALREADY_ENDED,
}


# A restart of the daemon is over within this time, in seconds, or the function's end should not wait for it: a lease that
# nobody releases ends by its lifetime, and costs the pool one buddy.
_RELEASE_RETRY_FOR = 0.5


@dataclass(frozen=True)
class Released:
    """The answer to a release."""

    outcome: ReleaseOutcome
    cause: str = ""
    error: Optional[NspoolError] = None


def duration(seconds: Optional[float]) -> Optional[duration_pb2.Duration]:
    """Seconds as a message; None stays None (an absent field)."""
    if seconds is None:
        return None
    message = duration_pb2.Duration()
    message.FromNanoseconds(round(seconds * 1_000_000_000))
    return message


def seconds(message: duration_pb2.Duration) -> float:
    """A message as seconds."""
    return float(message.seconds + message.nanos / 1e9)


def _state(value: int) -> LeaseState:
    try:
        return LeaseState(value)
    except ValueError:  # A newer daemon may know states that this client does not.
        return LeaseState.UNSPECIFIED


class _Placement:
    """What a lease and the plain network have in common."""

    # True for a namespace of the pool, False for the plain network.
    leased: bool
    # For HostConfig.NetworkMode, or `--network` of the engine's command line.
    network_mode: str
    # {"HostConfig": {…}, "Labels": {…}}: to be merged into the body of a container create.
    host_config: Dict[str, Any]
    # The name of the namespace in the engine; empty for the plain network.
    namespace_id: str

    def merge_into(self, create_body: Dict[str, Any]) -> Dict[str, Any]:
        """A copy of the body of a container create with `host_config` merged in: objects key by key, lists joined
        without repeats, and for all else the lease's value in place of the body's."""
        merged: Dict[str, Any] = _merge(create_body, self.host_config)
        merged.setdefault("HostConfig", {})["NetworkMode"] = self.network_mode
        return merged

    def mark_doubtful(self) -> None:
        """Says that a create or start in this namespace may be under way, so that the release will say it too."""
        raise NotImplementedError

    def release(self, doubtful: Optional[bool] = None, timeout: float = 2.0) -> Released:
        """Gives it back. See the two classes."""
        raise NotImplementedError

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if kind is not None:
            self.mark_doubtful()
        self.release()


class PlainNetwork(_Placement):
    """The way out when there is no lease: the engine's own network. `cause` is the error that led here."""

    leased = False
    namespace_id = ""
    token = ""
    lease_id = ""
    container_id = ""
    netns_path = ""

    def __init__(self, network: str, cause: Optional[BaseException] = None) -> None:
        self.network = network
        self.network_mode = network
        self.host_config = {"HostConfig": {"NetworkMode": network}, "Labels": {}}
        self.cause = cause

    def mark_doubtful(self) -> None:
        """Nothing to mark: the engine makes and removes this namespace."""

    def release(self, doubtful: Optional[bool] = None, timeout: float = 2.0) -> Released:
        """Nothing to release."""
        return Released(ReleaseOutcome.NOT_LEASED)

    def __repr__(self) -> str:
        return f"<nspool.PlainNetwork {self.network_mode}>"


class Lease(_Placement):
    """One hand-out of a ready namespace. `token` is a secret: whoever has it can release the lease.

    The fields hold what the daemon said at the allocation, `state` and `cause` what it said last.
    """

    leased = True

    def __init__(self, client: "Client", message: pool_pb2.Lease) -> None:
        self._client = client
        self._doubtful = False
        self._delivered: Optional[Released] = None
        self.message = message
        self.token: str = message.token
        self.lease_id: str = message.lease_id
        self.slot: int = message.slot
        self.generation: int = message.generation
        self.use: int = message.use
        self.namespace_id = message.namespace_id
        self.network_mode = message.network_mode or f"container:{message.namespace_id}"
        self.host_config = json.loads(message.host_config) if message.host_config else {}
        self.container_id: str = message.container_id
        self.netns_path: str = message.netns_path
        self.oci_namespaces: List[Tuple[str, str]] = [(n.type, n.path) for n in message.oci_namespaces]
        self.network: str = message.network
        self.ip_addresses: List[str] = list(message.ip_addresses)
        self.gateways: List[str] = list(message.gateways)
        self.mtu: int = message.mtu
        self.resolv_conf: str = message.resolv_conf
        self.owner: str = message.owner
        self.tenant: str = message.tenant
        self.labels: Dict[str, str] = dict(message.labels)
        self.state = _state(message.state)
        self.cause: str = message.cause
        # Seconds left when the daemon last said so; None when nothing was pending.
        self.remaining: Optional[float] = seconds(message.remaining) if message.HasField("remaining") else None

    @property
    def has_ttl(self) -> bool:
        """Ends at its expiry unless it is renewed."""
        return bool(self.message.lifetime == pool_pb2.LIFETIME_TTL)

    @property
    def released(self) -> bool:
        """A release reached the daemon."""
        return self._delivered is not None

    def mark_doubtful(self) -> None:
        self._doubtful = True

    def release(self, doubtful: Optional[bool] = None, timeout: float = 2.0) -> Released:
        """Gives the lease back. Never raises NspoolError; safe to repeat.

        `doubtful=False` says that no create or start of the caller's is under way in the namespace; only then may its
        buddy be used again. None: what this layer knows, that is, whether `mark_doubtful` was called or a `with` block
        was left by an exception. `timeout` in seconds bounds the time for reaching the daemon.
        """
        if self._delivered is not None:
            return Released(ReleaseOutcome.ALREADY_RELEASED, self._delivered.cause)
        request = pool_pb2.ReleaseRequest(token=self.token, doubtful=self._doubtful if doubtful is None else doubtful)
        what = f"release of lease {self.lease_id}"
        connection = self._client.connection
        try:
            answer = connection.unary(connection.stub.Release, request, what, timeout, _RELEASE_RETRY_FOR)
        except NspoolError as error:
            return self._release_failed(error)
        self._delivered = Released(_OUTCOMES.get(answer.outcome, ReleaseOutcome.RETURNED), answer.cause)
        self._client.forget(self)
        return self._delivered

    def _release_failed(self, error: NspoolError) -> Released:
        if error.code is grpc.StatusCode.NOT_FOUND:
            self._delivered = Released(ReleaseOutcome.UNKNOWN, error=error)
            self._client.forget(self)
            return self._delivered
        log.warning("%s; the lease ends by its lifetime", error)
        return Released(ReleaseOutcome.NOT_DELIVERED, error=error)

    def renew(self, ttl: Optional[float] = None, timeout: float = 5.0) -> float:
        """Moves the expiry of a lease with lifetime "ttl"; returns the seconds that remain. Raises NspoolError, with
        reason LEASE_LOST or LEASE_ENDED when there is nothing left to renew."""
        request = pool_pb2.RenewRequest(token=self.token, ttl=duration(ttl))
        connection = self._client.connection
        answer = connection.unary(connection.stub.Renew, request, f"renewal of lease {self.lease_id}", timeout, None)
        self.remaining = seconds(answer.remaining)
        return self.remaining

    def refresh(self, timeout: float = 5.0, retry_for: Optional[float] = None) -> LeaseState:
        """Asks the daemon for the state. Raises NspoolError, with code NOT_FOUND when it does not know the lease."""
        request = pool_pb2.GetLeaseRequest(token=self.token)
        connection = self._client.connection
        answer = connection.unary(
            connection.stub.GetLease, request, f"look at lease {self.lease_id}", timeout, retry_for
        )
        self.state = _state(answer.lease.state)
        self.cause = answer.lease.cause
        return self.state

    def __repr__(self) -> str:
        # Without the token: this text ends up in logs.
        return f"<nspool.Lease {self.lease_id} {self.network_mode} {self.state.name}>"


Placement = Union[Lease, PlainNetwork]


def _merge(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        merged = dict(below)
        for key, value in above.items():
            merged[key] = _merge(below.get(key), value)
        return merged
    if isinstance(below, list) and isinstance(above, list):
        return below + [value for value in above if value not in below]
    return dict(above) if isinstance(above, dict) else list(above) if isinstance(above, list) else above
