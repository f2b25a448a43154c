"""Keeps the leases with lifetime "ttl" alive: one thread that renews all of them in one exchange, again and again.

An exchange is short: one message with all tokens, one answer for each, end. A connection that breaks costs one round
only, and the next comes soon after. A lease that the daemon reports as lost goes to the callbacks of `on_lost`.

Deliberately does not know: leases whose object the program has dropped; nobody could release those, so they may expire.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, List, Optional

from .errors import NspoolError
from .lease import Lease, LeaseState, seconds
from .v1 import pool_pb2

if TYPE_CHECKING:
    from .client import Client

log = logging.getLogger("nspool")

# Seconds between two rounds: never more, so that a missed round is noticed early, and never less, so that a tiny ttl
# makes no busy loop. After a failed round the next one comes sooner.
_LONGEST = 5.0
_SHORTEST = 0.05
_RETRY = 0.2
# The daemon refuses large messages; so many tokens of 32 characters are far below its limit.
_TOKENS_A_MESSAGE = 1000


class KeepAlive:
    """The thread. `wake` makes it look at the leases at once; `close` joins it."""

    def __init__(self, client: "Client", interval: Optional[float]) -> None:
        self._client = client
        self._interval = interval
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nspool-keep-alive", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def close(self) -> None:
        """Joins the thread; the connection must be marked as closed before."""
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        closed = self._client.connection.closed
        last_round = time.monotonic()
        while not closed.is_set():
            leases = [lease for lease in self._client.held().values() if lease.has_ttl and not lease.released]
            pause = last_round + self._pause(leases) - time.monotonic()
            if pause > 0:
                self._wake.wait(pause)
                self._wake.clear()
                continue
            last_round = time.monotonic()
            try:
                self._renew(leases)
            except NspoolError as error:
                if not closed.is_set():
                    log.info("%s; trying again", error)
                last_round -= self._pause(leases)
                closed.wait(_RETRY)

    def _pause(self, leases: List[Lease]) -> float:
        if self._interval is not None:
            return self._interval
        shortest = min((lease.remaining for lease in leases if lease.remaining is not None), default=_LONGEST * 3)
        return min(max(shortest / 3, _SHORTEST), _LONGEST)

    def _renew(self, leases: List[Lease]) -> None:
        by_token = {lease.token: lease for lease in leases}
        tokens = list(by_token)
        chunks = [tokens[i : i + _TOKENS_A_MESSAGE] for i in range(0, len(tokens), _TOKENS_A_MESSAGE)]
        if not chunks:
            return
        connection = self._client.connection
        requests = (pool_pb2.KeepAliveRequest(tokens=chunk) for chunk in chunks)
        for answer in connection.exchange(connection.stub.KeepAlive, requests, "keep-alive", 5.0):
            lease = by_token.get(answer.token)
            if lease is not None:
                self._on_answer(lease, answer)

    def _on_answer(self, lease: Lease, answer: pool_pb2.KeepAliveResponse) -> None:
        if not answer.reason:
            lease.remaining = seconds(answer.remaining)
            return
        log.warning("lease %s cannot be renewed: %s", lease.lease_id, answer.reason)
        self._client.forget(lease)
        if answer.reason == "LEASE_ENDED":
            lease.state = LeaseState.ENDED
        else:
            self._client.tell_lost(lease, answer.reason)
