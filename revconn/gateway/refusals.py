"""What the gateway itself answers where it refuses or fails."""

from __future__ import annotations

from revconn._proto.registry_pb2 import ForwardResponse
from revconn.core.rope import Data
from revconn.core.status import StatusCode, encode_message, http_status
from revconn.gateway.limits import Counters

__all__ = [
    "STOPPING",
    "NobodyServes",
    "Refused",
    "failure",
    "is_pending_already",
    "over_limit",
    "require_size",
]

STOPPING = "the gateway is stopping"


class Refused(Exception):
    """The gateway does not do what it was asked for; whoever asked is told code and message."""

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def response(self, request_id: str = "") -> ForwardResponse:
        """The refusal as the response to a request."""
        return failure(self.code, self.message, request_id)


class NobodyServes(Refused):
    """A call of a service that no connector has registered.

    Whoever calls from outside is told UNAVAILABLE; between connectors it is a 404.
    """

    def __init__(self, service: str, *, is_asked_by_connector: bool = False) -> None:
        code = StatusCode.NOT_FOUND if is_asked_by_connector else StatusCode.UNAVAILABLE
        super().__init__(code, f"no connector serves {service[:200]}")


def over_limit(counters: Counters, option: str, problem: str) -> Refused:
    """A refusal, counted, because of the limit that ``option`` sets."""
    # Named as the option is: whoever reads the message knows which number to change.
    counters.refused[option] += 1
    return Refused(StatusCode.RESOURCE_EXHAUSTED, f"{problem} (the gateway's {option})")


def is_pending_already(request_id: str) -> Refused:
    """A refusal of a second call by the id of one that is not settled."""
    problem = f"a request with the id {request_id[:64]!r} is pending already"
    return Refused(StatusCode.ALREADY_EXISTS, problem)


def require_size(data: Data, limit: int, counters: Counters) -> None:
    """Raises :class:`Refused` for a request that no connector, or not that one, takes."""
    if len(data) > limit:
        problem = f"a request of {len(data):,} bytes exceeds the connector's {limit:,}"
        raise over_limit(counters, "max_sent_message_bytes", problem)


def failure(code: StatusCode, message: str, request_id: str = "") -> ForwardResponse:
    """A response that fails a request, in the shape a connector would have given it."""
    return ForwardResponse(
        request_id=request_id,
        status_code=http_status(code),
        headers={"grpc-status": str(int(code)), "grpc-message": encode_message(message)},
        error_message=message,
    )
