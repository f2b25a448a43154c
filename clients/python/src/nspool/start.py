"""A function start that cannot fail because of the pool: the leased namespace once, then the plain network once.

The second try is made only when the lease explains the failure of the first: it is lost, it has ended, nobody knows it,
the daemon is gone, or the engine says that there is nothing to join. Any other failure is the function's own and is
handed on unchanged.

What can go wrong: the engine refuses before the daemon has noticed the death of the buddy. Both learn of it within
milliseconds of each other, so the daemon is asked for a short while, not just once.

Deliberately does not know: engines. It looks at an HTTP status and at the text of the error, whatever its class.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Callable, Generic, Optional, Type, TypeVar

from .errors import NspoolError
from .lease import Lease, LeaseState, Placement, PlainNetwork

if TYPE_CHECKING:
    from .client import Client

log = logging.getLogger("nspool")

T = TypeVar("T")

# Docker answers a join that finds nobody with 404, and one that finds a stopped container with 409.
_NOTHING_TO_JOIN = (404, 409)

# For how long, in seconds, the daemon may lag behind the engine in noticing a death, and how often it is asked.
_NOTICE = 0.2
_ASK_EVERY = 0.025


@dataclass
class Started(Generic[T]):
    """A start that went well. As a context manager it releases the placement at the end, doubtful after an exception."""

    # What the start function returned.
    result: T
    # Where the function runs: a lease, or the plain network.
    lease: Placement
    # Why it does not run in a leased namespace; None when it does.
    fallback_cause: Optional[BaseException] = None

    def __enter__(self) -> "Started[T]":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.lease.__exit__(kind, error, trace)


def run_with(
    start: Callable[[Placement], T],
    placement: Placement,
    plain_network: str,
    explains: Optional[Callable[[Exception, Lease], bool]],
) -> Started[T]:
    """Calls `start` with the placement, and once more with the plain network when the lease explains a failure."""
    if isinstance(placement, PlainNetwork):
        return Started(start(placement), placement, placement.cause)
    try:
        return Started(start(placement), placement)
    except Exception as error:
        explained = lease_explains(error, placement) or (explains is not None and explains(error, placement))
        placement.release(doubtful=True)
        if not explained:
            raise
        log.warning("start in lease %s failed (%s); trying network %s", placement.lease_id, error, plain_network)
        plain = PlainNetwork(plain_network, error)
    except BaseException:
        # An interrupt: no second try, but the lease must not be left behind.
        placement.release(doubtful=True)
        raise
    return Started(start(plain), plain, plain.cause)


def lease_explains(error: Exception, lease: Lease) -> bool:
    """Whether the state of the lease, rather than the function, can be why a start in its namespace failed."""
    if _status(error) in _NOTHING_TO_JOIN or _names(str(error), lease):
        return True
    give_up = time.monotonic() + _NOTICE
    while True:
        try:
            state = lease.refresh(timeout=_NOTICE, retry_for=0.0)
        except NspoolError:
            # Not known any more, or nobody there to ask.
            return True
        if state is not LeaseState.ACTIVE:
            return True
        if time.monotonic() >= give_up:
            return False
        time.sleep(_ASK_EVERY)


def _names(text: str, lease: Lease) -> bool:
    return any(name and name in text for name in (lease.namespace_id, lease.container_id))


def _status(error: Exception) -> Optional[int]:
    """The HTTP status in the places where client libraries put it: `status_code`, `status`, or the same of `response`."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status"):
            value = getattr(holder, name, None)
            if isinstance(value, int):
                return value
    return None
