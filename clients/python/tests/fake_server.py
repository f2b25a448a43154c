"""A daemon in Python: grants leases, and misbehaves as a test tells it to.

In a test it runs in process (`FakePool.serve`); `python fake_server.py unix:/path` is one that can be killed.
It has no namespaces and no engine; it deliberately forgets its leases when it ends.
"""

from __future__ import annotations

import collections
import json
import queue
import signal
import sys
import threading
import time
import uuid
from concurrent import futures
from typing import Any, Callable, Deque, Dict, List, Optional

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from nspool.v1 import image_pb2, image_pb2_grpc, pool_pb2, pool_pb2_grpc


def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, reason: str, retry_after: float = 0.0) -> None:
    """Ends the call as the daemon does: with ErrorInfo, and RetryInfo when there is an estimate."""
    details = []
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(domain="nspool", reason=reason))
    details.append(info)
    if retry_after:
        retry = any_pb2.Any()
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(retry_after * 1000))
        retry.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        details.append(retry)
    status = status_pb2.Status(code=code.value[0], message=f"told to say {reason}", details=details)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, status.message)


# A behaviour gets the context, and a function that does what a healthy daemon would; it returns the answer or aborts.
Behaviour = Callable[[grpc.ServicerContext, Callable[[], Any]], Any]


def refusing(code: grpc.StatusCode, reason: str, retry_after: float = 0.0) -> Behaviour:
    def behave(context: grpc.ServicerContext, healthy: Callable[[], Any]) -> Any:
        refuse(context, code, reason, retry_after)

    return behave


def broken(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, after: bool = True) -> Behaviour:
    """The connection breaks; `after` the daemon did its work (the answer is lost) or before."""

    def behave(context: grpc.ServicerContext, healthy: Callable[[], Any]) -> Any:
        if after:
            healthy()
        context.abort(code, "Socket closed")

    return behave


def hanging(seconds: float) -> Behaviour:
    def behave(context: grpc.ServicerContext, healthy: Callable[[], Any]) -> Any:
        time.sleep(seconds)
        return healthy()

    return behave


class FakePool(pool_pb2_grpc.NamespacePoolServicer, image_pb2_grpc.ImageCacheServicer):
    """Everything a test may look at or change is an attribute; `lock` guards them."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.leases: Dict[str, pool_pb2.Lease] = {}
        self.by_request: Dict[str, str] = {}
        self.requests: List[pool_pb2.AllocateRequest] = []
        self.releases: List[pool_pb2.ReleaseRequest] = []
        self.renewals: List[str] = []
        # What the next calls of a method do, in order; then they are healthy again.
        self.script: Dict[str, Deque[Behaviour]] = collections.defaultdict(collections.deque)
        self.image_requests: List[image_pb2.EnsureImageRequest] = []
        self.incarnation = uuid.uuid4().hex
        self.events: List[pool_pb2.WatchResponse] = []
        self.forgotten_before = 0
        self.watch_requests: List[Optional[int]] = []
        self.watchers: List["queue.Queue[Optional[pool_pb2.WatchResponse]]"] = []

    def serve(self, endpoint: str) -> grpc.Server:
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
        pool_pb2_grpc.add_NamespacePoolServicer_to_server(self, server)
        image_pb2_grpc.add_ImageCacheServicer_to_server(self, server)
        server.add_insecure_port(endpoint)
        server.start()
        return server

    def _scripted(self, method: str, context: grpc.ServicerContext, healthy: Callable[[], Any]) -> Any:
        with self.lock:
            script = self.script[method]
            behave = script.popleft() if script else None
        return behave(context, healthy) if behave else healthy()

    def GetInfo(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pool_pb2.GetInfoResponse(version="fake", pool="fake", incarnation=self.incarnation, networks=["bridge"])

    def Allocate(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self.lock:
            self.requests.append(request)
        return self._scripted("Allocate", context, lambda: self._grant(request))

    def _grant(self, request: pool_pb2.AllocateRequest) -> pool_pb2.AllocateResponse:
        with self.lock:
            token = self.by_request.get(request.request_id)
            if token:
                return pool_pb2.AllocateResponse(lease=self.leases[token], repeated_request=True)
            number = len(self.leases) + 1
            token = uuid.uuid4().hex
            name = f"nspool-fake-{number}-{number}-1"
            host_config = {"HostConfig": {"NetworkMode": f"container:{name}", "CapDrop": ["NET_RAW"]},
                           "Labels": {"nspool.namespace_id": name}}
            lease = pool_pb2.Lease(
                token=token, lease_id=f"lease-{number}", state=pool_pb2.LEASE_STATE_ACTIVE, slot=number,
                generation=number, use=1, namespace_id=name, network_mode=f"container:{name}",
                host_config=json.dumps(host_config), network=request.network or "bridge", lifetime=request.lifetime,
                owner=request.owner, tenant=request.tenant, labels=request.labels,
                ip_addresses=["172.17.0.5/16"], gateways=["172.17.0.1"], mtu=1500,
            )
            if request.HasField("ttl"):
                lease.remaining.CopyFrom(request.ttl)
            self.leases[token] = lease
            self.by_request[request.request_id] = token
            return pool_pb2.AllocateResponse(lease=lease)

    def Release(self, request: Any, context: grpc.ServicerContext) -> Any:
        def healthy() -> Any:
            with self.lock:
                self.releases.append(request)
                lease = self.leases.get(request.token)
                if lease is None:
                    refuse(context, grpc.StatusCode.NOT_FOUND, "UNKNOWN_TOKEN")
                if lease.state == pool_pb2.LEASE_STATE_ENDED:
                    return pool_pb2.ReleaseResponse(outcome=pool_pb2.RELEASE_OUTCOME_ALREADY_RELEASED)
                lease.state = pool_pb2.LEASE_STATE_ENDED
                return pool_pb2.ReleaseResponse(outcome=pool_pb2.RELEASE_OUTCOME_RETURNED)

        return self._scripted("Release", context, healthy)

    def GetLease(self, request: Any, context: grpc.ServicerContext) -> Any:
        def healthy() -> Any:
            with self.lock:
                lease = self.leases.get(request.token)
                if lease is None:
                    refuse(context, grpc.StatusCode.NOT_FOUND, "UNKNOWN_TOKEN")
                return pool_pb2.GetLeaseResponse(lease=lease)

        return self._scripted("GetLease", context, healthy)

    def Renew(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self.lock:
            self.renewals.append(request.token)
            lease = self.leases[request.token]
            if request.HasField("ttl"):
                lease.remaining.CopyFrom(request.ttl)
            return pool_pb2.RenewResponse(remaining=lease.remaining)

    def KeepAlive(self, requests: Any, context: grpc.ServicerContext) -> Any:
        for request in requests:
            for token in request.tokens:
                with self.lock:
                    self.renewals.append(token)
                    lease = self.leases.get(token)
                    reason = "UNKNOWN_TOKEN" if lease is None else ""
                    if lease is not None and lease.state == pool_pb2.LEASE_STATE_LOST:
                        reason = "LEASE_LOST"
                yield pool_pb2.KeepAliveResponse(token=token, remaining=lease and lease.remaining, reason=reason)

    def Resume(self, request: Any, context: grpc.ServicerContext) -> Any:
        def healthy() -> Any:
            with self.lock:
                return [lease for lease in self.leases.values() if lease.owner == request.owner
                        and lease.state != pool_pb2.LEASE_STATE_ENDED]

        for lease in self._scripted("Resume", context, healthy):
            yield pool_pb2.ResumeResponse(lease=lease)

    def EnsureImage(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self.lock:
            self.image_requests.append(request)
        yield image_pb2.EnsureImageResponse(progress=image_pb2.FetchProgress(attempt=1, layers=2, layers_done=1))
        image = image_pb2.EnsuredImage(id="sha256:1", reference=request.reference, fetched=True)
        last = self._scripted("EnsureImage", context, lambda: image_pb2.EnsureImageResponse(image=image))
        if last is not None:
            yield last

    def GetUsage(self, request: Any, context: grpc.ServicerContext) -> Any:
        return pool_pb2.GetUsageResponse(pool="fake", engine_state="up")

    def Watch(self, request: Any, context: grpc.ServicerContext) -> Any:
        inbox: "queue.Queue[Optional[pool_pb2.WatchResponse]]" = queue.Queue()
        position = request.position if request.HasField("position") else None
        with self.lock:
            self.watch_requests.append(position)
            first = self._first_messages(position)
            self.watchers.append(inbox)
        context.add_callback(lambda: inbox.put(None))
        yield from first
        while True:
            message = inbox.get()
            if message is None:
                return
            yield message

    def _first_messages(self, position: Optional[int]) -> List[pool_pb2.WatchResponse]:
        last = self.events[-1].position if self.events else 0
        if position is not None and self.forgotten_before <= position <= last:
            return [event for event in self.events if event.position > position]
        snapshot = pool_pb2.Snapshot(incarnation=self.incarnation)
        for lease in self.leases.values():
            if lease.state != pool_pb2.LEASE_STATE_ENDED:
                snapshot.leases.append(self.event_of(lease))
        messages = [] if position is None else [pool_pb2.WatchResponse(position=last, reset=pool_pb2.Reset())]
        return messages + [pool_pb2.WatchResponse(position=last, snapshot=snapshot)]

    @staticmethod
    def event_of(lease: pool_pb2.Lease) -> pool_pb2.LeaseEvent:
        return pool_pb2.LeaseEvent(
            lease_id=lease.lease_id, namespace_id=lease.namespace_id, owner=lease.owner, state=lease.state,
            cause=lease.cause,
        )

    def lose(self, token: str, cause: str = "the buddy died", tell: bool = True) -> None:
        """The buddy of this lease dies; `tell` sends the event to the watchers that are there."""
        with self.lock:
            lease = self.leases[token]
            lease.state, lease.cause = pool_pb2.LEASE_STATE_LOST, cause
            position = (self.events[-1].position if self.events else 0) + 1
            event = pool_pb2.WatchResponse(position=position, lost=self.event_of(lease))
            self.events.append(event)
            if tell:
                for inbox in self.watchers:
                    inbox.put(event)

    def hang_up(self) -> None:
        """Ends all watch streams."""
        with self.lock:
            for inbox in self.watchers:
                inbox.put(None)
            self.watchers.clear()


def main() -> None:
    server = FakePool().serve(sys.argv[-1])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    server.stop(None)


if __name__ == "__main__":
    main()
