"""One connection to the daemon, and unary calls on it that are sent again when the connection breaks.

Every call has one deadline that covers all its tries, and sends the very same message each time: the daemon knows a
repeated Allocate by its request id, the other calls are safe to repeat. Only a missing or broken connection is a cause
for another try; what the daemon answered stands.

Deliberately does not know: what the calls mean.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any, Callable, Iterator, Optional, TypeVar

import grpc

from .errors import NspoolError, Refused, Unreachable, from_rpc
from .v1 import image_pb2_grpc, pool_pb2_grpc

T = TypeVar("T")

_CHANNEL_OPTIONS = [
    # On a Unix socket C-core would send the percent-encoded path as :authority. Servers built on h2 (the daemon is one)
    # find that malformed and reset the stream, so each call would fail. "localhost" is what they accept.
    ("grpc.default_authority", "localhost"),
    # A connection of its own per Client: C-core would share one between clients of the same endpoint, and a lease with
    # lifetime "connection" would outlive the client that has it.
    ("grpc.use_local_subchannel_pool", 1),
    # A local daemon is back within a second or never. The defaults (1 s growing to 120 s) would leave functions on the
    # plain network for minutes after a restart that took 50 ms.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
]


class Backoff:
    """Pauses that double from `first` to `longest` seconds, each with up to half taken off at random."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def reset(self) -> None:
        self._next = self._first

    def pause(self) -> float:
        pause = self._next
        self._next = min(self._next * 2, self._longest)
        return pause * random.uniform(0.5, 1.0)


class Connection:
    """A channel with its stub. `closed` is set once by `close`, and wakes every pause."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.closed = threading.Event()
        self._channel = grpc.insecure_channel(endpoint, options=_CHANNEL_OPTIONS)
        self.stub = pool_pb2_grpc.NamespacePoolStub(self._channel)  # type: ignore[no-untyped-call]
        self.images = image_pb2_grpc.ImageCacheStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self.closed.set()
        self._channel.close()

    def unary(self, method: Callable[..., Any], request: Any, what: str, timeout: float, retry_for: Optional[float]) -> Any:
        """Calls `method`. `timeout` bounds all tries together, `retry_for` the time in which a new one may begin (None:
        the whole timeout). Raises NspoolError."""
        return self._repeat(lambda left: method(request, timeout=left), what, timeout, retry_for)

    def collect(self, method: Callable[..., Any], request: Any, what: str, timeout: float) -> Any:
        """Reads a stream that ends by itself to its end, as a list; a broken one is read anew from its start."""
        return self._repeat(lambda left: list(method(request, timeout=left)), what, timeout, None)

    def follow(
        self, method: Callable[..., Any], request: Any, what: str, timeout: float, hear: Callable[[Any], Optional[T]]
    ) -> T:
        """Reads a stream that says how far something is, until `hear` makes an outcome of a message; a broken one is read
        anew, since what it tells of goes on without it."""

        def attempt(left: float) -> T:
            answers = method(request, timeout=left)
            for message in answers:
                outcome = hear(message)
                if outcome is not None:
                    answers.cancel()
                    return outcome
            raise Refused(what, self.endpoint, grpc.StatusCode.INTERNAL, "the answer ended without an outcome")

        outcome: T = self._repeat(attempt, what, timeout, None)
        return outcome

    def exchange(self, method: Callable[..., Any], requests: Iterator[Any], what: str, timeout: float) -> Any:
        """Sends all `requests` on a two-way stream, and returns all answers. Is not repeated."""
        return self._repeat(lambda left: list(method(requests, timeout=left)), what, timeout, 0.0)

    def _repeat(self, attempt: Callable[[float], Any], what: str, timeout: float, retry_for: Optional[float]) -> Any:
        if self.closed.is_set():
            raise self._closed_error(what)
        deadline = time.monotonic() + timeout
        last_begin = deadline if retry_for is None else min(deadline, time.monotonic() + retry_for)
        backoff = Backoff(0.01, 0.2)
        while True:
            try:
                return attempt(max(deadline - time.monotonic(), 0.001))
            except grpc.RpcError as raised:
                error = from_rpc(raised, what, self.endpoint)
                if not self._pause_before_retry(error, backoff, last_begin):
                    raise error from raised
            except ValueError as raised:
                # How grpc says that the channel is closed; that can happen between our look and the call.
                if not self.closed.is_set():
                    raise
                raise self._closed_error(what) from raised

    def _closed_error(self, what: str) -> NspoolError:
        # No ValueError: also a start that comes during the stop of its agent has the plain network to go to.
        return Unreachable(what, self.endpoint, grpc.StatusCode.CANCELLED, "the client is closed")

    def _pause_before_retry(self, error: NspoolError, backoff: Backoff, last_begin: float) -> bool:
        if not error.connection_lost:
            return False
        pause = backoff.pause()
        if time.monotonic() + pause >= last_begin:
            return False
        return not self.closed.wait(pause)
