"""Tells an agent which of its leases were lost: one thread that follows the daemon's Watch stream.

It goes on from the last position after a reconnect. A Reset, or a first connection, comes with a snapshot: what is lost
in it is told, and a lease held here that is missing in it is looked up by its token, for the daemon may have forgotten
all leases (a reboot, a new incarnation). Each loss is told once.

What can go wrong: the daemon is away. That alone loses no lease, so nothing is told; the thread reconnects for as long
as the client is open. An exception of a callback is logged and changes nothing.

Deliberately does not know: what an agent does about a loss.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional

import grpc

from .calls import Backoff, Connection
from .errors import NspoolError, from_rpc
from .lease import Lease, LeaseState
from .v1 import pool_pb2

if TYPE_CHECKING:
    from .client import Client

log = logging.getLogger("nspool")

# So many losses are remembered as told; a bound, far above what one reset can bring.
_TOLD = 65_536


@dataclass(frozen=True)
class LostLease:
    """A lease of this client's owner whose namespace is gone or not to be trusted."""

    lease_id: str
    namespace_id: str
    # In the daemon's words.
    cause: str
    # The lease itself when this client holds it: to be released once the function has ended.
    lease: Optional[Lease]


LostCallback = Callable[[LostLease], None]


class LostWatch:
    """The thread. `add` callbacks at any time; `close` ends and joins it."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._connection: Connection = client.connection
        self._lock = threading.Lock()
        self._callbacks: List[LostCallback] = []
        self._call: Optional[Any] = None
        self._position: Optional[int] = None
        self._told: "OrderedDict[str, None]" = OrderedDict()
        self._backoff = Backoff(0.1, 5.0)
        self._thread = threading.Thread(target=self._run, name="nspool-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, callback: LostCallback) -> None:
        with self._lock:
            self._callbacks.append(callback)

    def close(self) -> None:
        """Ends the stream and joins the thread; the connection must be marked as closed before."""
        with self._lock:
            call = self._call
        if call is not None:
            call.cancel()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def tell(self, lost: LostLease) -> None:
        """Calls the callbacks, once for each lease."""
        with self._lock:
            if lost.lease_id in self._told:
                return
            self._told[lost.lease_id] = None
            while len(self._told) > _TOLD:
                self._told.popitem(last=False)
            callbacks = list(self._callbacks)
        if lost.lease is not None:
            lost.lease.state = LeaseState.LOST
            lost.lease.cause = lost.cause
        for callback in callbacks:
            try:
                callback(lost)
            except Exception:
                log.exception("a callback for the lost lease %s failed", lost.lease_id)

    def _run(self) -> None:
        closed = self._connection.closed
        while not closed.is_set():
            try:
                self._follow()
            except grpc.RpcError as raised:
                if not closed.is_set():
                    log.info("%s; connecting again", from_rpc(raised, "watch", self._connection.endpoint))
            except NspoolError as error:
                # A lease could not be looked up: only a new snapshot will show it again.
                self._position = None
                log.info("%s; connecting again", error)
            closed.wait(self._backoff.pause())

    def _follow(self) -> None:
        # Taken before the stream is opened: a lease that is allocated later may well be missing in its snapshot.
        held = self._client.held()
        request = pool_pb2.WatchRequest(position=self._position)
        call = self._connection.stub.Watch(request)
        with self._lock:
            self._call = call
        if self._connection.closed.is_set():
            call.cancel()
        try:
            for message in call:
                self._backoff.reset()
                if not self._on_message(message, held):
                    held = self._client.held()
        finally:
            call.cancel()

    def _on_message(self, message: pool_pb2.WatchResponse, held: Dict[str, Lease]) -> bool:
        """Handles one message, then notes its position. False after a snapshot, which used `held` up."""
        kind: Optional[str] = message.WhichOneof("event")
        if kind == "lost":
            self._on_lost(message.lost)
        elif kind == "snapshot":
            self._on_snapshot(message.snapshot, held)
        elif kind == "ending" and message.ending.state == pool_pb2.LEASE_STATE_ENDED:
            self._client.forget_id(message.ending.lease_id)
        # A reset is followed by a snapshot, which says all there is to know; the other kinds are not for us.
        self._position = message.position
        return kind != "snapshot"

    def _on_lost(self, event: pool_pb2.LeaseEvent) -> None:
        lease = self._client.held().get(event.lease_id)
        owner = self._client.owner
        if lease is None and not (owner and event.owner == owner):
            return
        self.tell(LostLease(event.lease_id, event.namespace_id, event.cause, lease))

    def _on_snapshot(self, snapshot: pool_pb2.Snapshot, held: Dict[str, Lease]) -> None:
        present = set()
        for event in snapshot.leases:
            present.add(event.lease_id)
            if event.state == pool_pb2.LEASE_STATE_LOST:
                self._on_lost(event)
        for lease in held.values():
            if lease.lease_id not in present and not lease.released:
                self._look_up(lease)

    def _look_up(self, lease: Lease) -> None:
        try:
            state = lease.refresh(retry_for=0.0)
        except NspoolError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            state, lease.cause = LeaseState.LOST, "the daemon does not know the lease any more"
        if state is LeaseState.LOST:
            self.tell(LostLease(lease.lease_id, lease.namespace_id, lease.cause, lease))
        elif state is LeaseState.ENDED:
            self._client.forget(lease)
