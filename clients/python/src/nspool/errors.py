"""What can go wrong in a call, in words that say what was tried, on what, what came back and what to do next.

One base class, three kinds: nobody answered (`Unreachable`), the daemon said no (`Refused`), the caller asked for
something wrong (`CallerMistake`). Only the last kind stops a function start; the others lead to the plain network.

Deliberately does not know: which call may be repeated (`calls.py`) and what to do instead (`start.py`).
"""

from __future__ import annotations

from typing import Any, Iterable, Optional, Tuple

import grpc
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "nspool"

_MISTAKES = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED)

# What gRPC libraries report when the connection broke under a call, besides UNAVAILABLE: the stream was reset, or it was
# removed together with its transport. An answer of the daemon itself carries ErrorInfo and is never taken for this.
_BROKEN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
)


class NspoolError(Exception):
    """A call failed. `code` is the gRPC status, `reason` the daemon's word for it (as `POOL_EMPTY`; empty if it gave none)."""

    def __init__(
        self,
        what: str,
        endpoint: str,
        code: grpc.StatusCode,
        details: str,
        reason: str = "",
        retry_after: Optional[float] = None,
    ) -> None:
        self.what = what
        self.endpoint = endpoint
        self.code = code
        self.details = details
        self.reason = reason
        # Seconds after which the daemon expects a new try to succeed; None when it made no estimate.
        self.retry_after = retry_after
        super().__init__(self._text())

    def _text(self) -> str:
        text = f"{self.what} at {self.endpoint}: {self.reason or self.code.name}: {self.details}"
        if self.retry_after is not None:
            text += f"; try again in {self.retry_after:g} s"
        return text

    @property
    def connection_lost(self) -> bool:
        """No answer came because there is no connection, or it broke: the same request may be sent again."""
        return False


class Unreachable(NspoolError):
    """Nobody answered: no daemon at the endpoint, the connection broke, or the deadline passed."""

    def _text(self) -> str:
        hint = "; is the daemon running, and may this user open its socket?"
        return super()._text() + (hint if self.code is grpc.StatusCode.UNAVAILABLE else "")

    @property
    def connection_lost(self) -> bool:
        return self.code in _BROKEN


class Refused(NspoolError):
    """The daemon answered, and said no; `reason` says why."""


class CallerMistake(Refused):
    """INVALID_ARGUMENT or PERMISSION_DENIED: a new try, or the plain network, would only hide a mistake."""


def from_rpc(error: grpc.RpcError, what: str, endpoint: str) -> NspoolError:
    """Turns what grpc raised into one of the classes above."""
    code: grpc.StatusCode = error.code()
    details: str = error.details() or ""
    reason, retry_after = _read_details(error.trailing_metadata() or ())
    if code in _MISTAKES:
        return CallerMistake(what, endpoint, code, details, reason, retry_after)
    if reason or not (code in _BROKEN or code is grpc.StatusCode.DEADLINE_EXCEEDED):
        return Refused(what, endpoint, code, details, reason, retry_after)
    return Unreachable(what, endpoint, code, details)


def _read_details(metadata: Iterable[Tuple[str, Any]]) -> Tuple[str, Optional[float]]:
    reason = ""
    retry_after: Optional[float] = None
    for key, value in metadata:
        if key != "grpc-status-details-bin":
            continue
        status = status_pb2.Status()
        try:
            status.ParseFromString(value)
        except Exception:  # Details that cannot be read must not hide the error that they belong to.
            continue
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            retry = error_details_pb2.RetryInfo()
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
                reason = info.reason
            elif detail.Is(retry.DESCRIPTOR) and detail.Unpack(retry):
                delay = retry.retry_delay
                retry_after = delay.seconds + delay.nanos / 1e9
    return reason, retry_after
