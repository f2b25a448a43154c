"""The client: leases on ready namespaces, or the plain network when there are none to be had.

`allocate` raises when it gets no lease; `allocate_or_fallback` and `run_with` do not, but for a mistake of the caller
(INVALID_ARGUMENT, PERMISSION_DENIED): no function start fails because the daemon is slow, restarting, empty or gone.

A client is safe to use from many threads, and not to be used on both sides of a fork. `close` joins what it started.

Deliberately does not know: engines, containers.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
import weakref
from types import TracebackType
from typing import Any, Callable, Dict, List, Mapping, Optional, Type, TypeVar

import grpc

from . import start as start_module
from .calls import Connection
from .errors import CallerMistake, NspoolError, Refused
from .keepalive import KeepAlive
from .lease import Lease, LeaseState, Placement, PlainNetwork, duration
from .start import Started
from .v1 import image_pb2, pool_pb2
from .watch import LostCallback, LostLease, LostWatch

log = logging.getLogger("nspool")

T = TypeVar("T")

DEFAULT_ENDPOINT = "unix:/run/nspool/nspool.sock"

_LIFETIMES = {
    "joiners": pool_pb2.LIFETIME_JOINERS,
    "ttl": pool_pb2.LIFETIME_TTL,
    "connection": pool_pb2.LIFETIME_CONNECTION,
}

# Seconds beyond `wait`. The strict call has time for a restart of the daemon; the one with a way out has not, since the
# plain network costs a start less than waiting would. A healthy daemon answers within a millisecond.
_ALLOCATE_TIMEOUT = 5.0
_FALLBACK_TIMEOUT = 0.5
_FALLBACK_RETRY_FOR = 0.02


class Client:
    """Speaks with one daemon, as one `owner`: the agent's name for itself, stable over its restarts.

    `endpoint` is `unix:/path` or `host:port`; None takes `NSPOOL_ENDPOINT`, else the daemon's usual socket. Connects at
    the first call. With `owner=""` there is no `resume`, and `on_lost` tells only of leases this client holds.
    """

    def __init__(self, endpoint: Optional[str] = None, owner: str = "") -> None:
        self.endpoint = endpoint or os.environ.get("NSPOOL_ENDPOINT") or DEFAULT_ENDPOINT
        self.owner = owner
        self.connection = Connection(self.endpoint)
        # Weak: a lease whose object the program dropped is none of its concern any more, and must not pile up here.
        self._held: "weakref.WeakValueDictionary[str, Lease]" = weakref.WeakValueDictionary()
        self._held_lock = threading.Lock()
        # Guards the two threads below; never held while one of them is joined.
        self._lock = threading.Lock()
        self._watch: Optional[LostWatch] = None
        self._keep_alive: Optional[KeepAlive] = None

    def allocate(
        self,
        *,
        request_id: Optional[str] = None,
        tenant: str = "",
        network: str = "",
        lifetime: str = "joiners",
        join_by: Optional[float] = None,
        ttl: Optional[float] = None,
        wait: float = 0.0,
        labels: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
        retry_for: Optional[float] = None,
    ) -> Lease:
        """Takes a ready namespace. Times are seconds. Raises NspoolError.

        `wait`: how long the daemon may wait for one to become ready. `timeout` bounds the whole call (default: 5 s more
        than `wait`); while it lasts, or for `retry_for`, a lost connection leads to another try with the same
        `request_id` (default: a new random one), which gives the same lease if the first try had got one.
        """
        if lifetime not in _LIFETIMES:
            raise ValueError(f"lifetime {lifetime!r}: must be one of {', '.join(_LIFETIMES)}")
        request = pool_pb2.AllocateRequest(
            request_id=request_id or uuid.uuid4().hex,
            owner=self.owner,
            tenant=tenant,
            network=network,
            lifetime=_LIFETIMES[lifetime],
            join_by=duration(join_by),
            ttl=duration(ttl),
            wait=duration(wait) if wait else None,
            labels=labels,
        )
        if timeout is None:
            timeout = wait + _ALLOCATE_TIMEOUT
        answer = self.connection.unary(self.connection.stub.Allocate, request, "allocate", timeout, retry_for)
        return self._adopt_granted(answer.lease)

    def allocate_or_fallback(self, plain_network: str = "bridge", **allocate: Any) -> Placement:
        """As `allocate`, but gives `PlainNetwork(plain_network)` when there is no lease to be had.

        Raises only CallerMistake. The default `timeout` is 0.5 s more than `wait`, and a daemon that cannot be reached
        is given up after 20 ms: time for one prompt reconnect, not for a restart.
        """
        allocate.setdefault("retry_for", _FALLBACK_RETRY_FOR)
        if allocate.get("timeout") is None:
            allocate["timeout"] = allocate.get("wait", 0.0) + _FALLBACK_TIMEOUT
        try:
            return self.allocate(**allocate)
        except CallerMistake:
            raise
        except NspoolError as error:
            log.info("%s; using network %s", error, plain_network)
            return PlainNetwork(plain_network, error)

    def run_with(
        self,
        start: Callable[[Placement], T],
        *,
        plain_network: str = "bridge",
        explains: Optional[Callable[[Exception, Lease], bool]] = None,
        **allocate: Any,
    ) -> Started[T]:
        """Allocates or falls back, and calls `start` with the outcome; `start` creates and starts a container, and
        undoes what it did when it fails.

        When it fails in a leased namespace and the lease explains that (lost, ended, unknown, the daemon gone, or the
        engine found nothing to join), the lease is released as doubtful and `start` is called once more, with the plain
        network. `explains` may recognise more errors. Any other failure is raised, after the release.
        """
        placement = self.allocate_or_fallback(plain_network, **allocate)
        return start_module.run_with(start, placement, plain_network, explains)

    def ensure_image(
        self,
        reference: str,
        *,
        username: str = "",
        password: str = "",
        identity_token: str = "",
        progress: Optional[Callable[[image_pb2.FetchProgress], None]] = None,
        timeout: float = 600.0,
    ) -> image_pb2.EnsuredImage:
        """Sees to it that an image is on the host, fetched if need be; a container is created from the `id` of the answer.
        Raises NspoolError.

        With `username` and `password`, or an `identity_token`, the registry is asked by these; else by the daemon's own
        credentials, and only if it has to be. `progress` is called on this thread, ten times a second at most. The fetch is
        the daemon's: `timeout` ends the wait for it, and who asks again follows the same one.
        """
        auth = None
        if username or password or identity_token:
            auth = image_pb2.RegistryAuth(username=username, password=password, identity_token=identity_token)
        request = image_pb2.EnsureImageRequest(reference=reference, auth=auth)

        def hear(answer: image_pb2.EnsureImageResponse) -> Optional[image_pb2.EnsuredImage]:
            if answer.HasField("image"):
                return answer.image
            if progress is not None and answer.HasField("progress"):
                progress(answer.progress)
            return None

        return self.connection.follow(self.connection.images.EnsureImage, request, "ensure image", timeout, hear)

    def resume(self, timeout: float = 10.0) -> List[Lease]:
        """All leases of this owner, with their tokens: what an agent asks for after its own restart. Raises NspoolError."""
        if not self.owner:
            raise ValueError("resume: the client has no owner; give one that is stable over restarts")
        request = pool_pb2.ResumeRequest(owner=self.owner)
        answers = self.connection.collect(self.connection.stub.Resume, request, "resume", timeout)
        return [self._adopt(answer.lease, "resume") for answer in answers]

    def on_lost(self, callback: LostCallback) -> None:
        """Has `callback(LostLease)` called for each lease of this owner that is lost, once, on a thread of the client's
        that runs until `close`. It covers what was lost before: a lost lease stays so until it is released."""
        with self._lock:
            self._must_be_open("on_lost")
            if self._watch is not None:
                self._watch.add(callback)
                return
            self._watch = LostWatch(self)
            self._watch.add(callback)
            self._watch.start()

    def keep_alive(self, interval: Optional[float] = None) -> None:
        """Renews all leases with lifetime "ttl" that this client holds, on a thread of its own, until `close`. Default
        `interval`: a third of the shortest remaining time, at most 5 s."""
        with self._lock:
            self._must_be_open("keep_alive")
            if self._keep_alive is None:
                self._keep_alive = KeepAlive(self, interval)
                self._keep_alive.start()

    def info(self, timeout: float = 5.0) -> pool_pb2.GetInfoResponse:
        """Who answers, on which engine, with which networks. Raises NspoolError."""
        request = pool_pb2.GetInfoRequest()
        answer: pool_pb2.GetInfoResponse = self.connection.unary(
            self.connection.stub.GetInfo, request, "get info", timeout, None
        )
        return answer

    def usage(self, timeout: float = 5.0) -> pool_pb2.GetUsageResponse:
        """How many slots are in which state. Raises NspoolError."""
        request = pool_pb2.GetUsageRequest()
        answer: pool_pb2.GetUsageResponse = self.connection.unary(
            self.connection.stub.GetUsage, request, "get usage", timeout, None
        )
        return answer

    def close(self) -> None:
        """Ends what runs in the background, joins it, and closes the connection; releases nothing. Safe to repeat."""
        with self._lock:
            self.connection.closed.set()
            watch, keep_alive = self._watch, self._keep_alive
        # The channel last: to close it under a running call would look like a failure there.
        if watch is not None:
            watch.close()
        if keep_alive is not None:
            keep_alive.close()
        self.connection.close()

    def held(self) -> Dict[str, Lease]:
        """The leases this client got and has not released, by lease id."""
        with self._held_lock:
            return dict(self._held.items())

    def forget(self, lease: Lease) -> None:
        """The lease is over."""
        self.forget_id(lease.lease_id)

    def forget_id(self, lease_id: str) -> None:
        """The lease with this id is over."""
        with self._held_lock:
            self._held.pop(lease_id, None)

    def tell_lost(self, lease: Lease, cause: str) -> None:
        """Hands a loss to the callbacks of `on_lost`, if there are any."""
        lease.state, lease.cause = LeaseState.LOST, cause
        watch = self._watch
        if watch is not None:
            watch.tell(LostLease(lease.lease_id, lease.namespace_id, cause, lease))

    def _adopt_granted(self, message: pool_pb2.Lease) -> Lease:
        lease = self._adopt(message, "allocate")
        if lease.state is LeaseState.ACTIVE:
            return lease
        # A repeated request whose lease was lost in between: it is of no use, but it is still ours to give back.
        lease.release(doubtful=True)
        text = f"lease {lease.lease_id} is {lease.state.name} ({lease.cause})"
        raise Refused("allocate", self.endpoint, grpc.StatusCode.FAILED_PRECONDITION, text, f"LEASE_{lease.state.name}")

    def _adopt(self, message: pool_pb2.Lease, what: str) -> Lease:
        try:
            if not message.token or not message.namespace_id:
                raise ValueError("it has no token or no namespace")
            lease = Lease(self, message)
        except ValueError as error:
            text = f"the daemon's answer is not a lease: {error}"
            raise Refused(what, self.endpoint, grpc.StatusCode.INTERNAL, text) from error
        with self._held_lock:
            self._held[lease.lease_id] = lease
        if lease.has_ttl and self._keep_alive is not None:
            self._keep_alive.wake()
        return lease

    def _must_be_open(self, what: str) -> None:
        if self.connection.closed.is_set():
            raise ValueError(f"{what}: the client is closed")

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
