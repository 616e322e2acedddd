"""What a servicer's method is given beside its request: gRPC's ServicerContext, over the tunnel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, NamedTuple, NoReturn, Union

import grpc

from revconn.core.metadata import Metadata, require_metadata
from revconn.core.status import StatusCode, http_status
from revconn.logger import get_logger
from revconn.messages import Request, Response
from revconn.serving.stream_requests import Ending, StreamRequest

__all__ = ["Context", "StreamContext"]

logger = get_logger(__name__)

_Pairs = Iterable[tuple[str, Union[str, bytes]]]

_CODES = {StatusCode(code.value[0]): code for code in grpc.StatusCode}
_NO_DEADLINE = math.inf  # seconds, of a call without a deadline: a number, as gRPC's own server has


class Context(grpc.ServicerContext):
    """One call's, safe to use from any thread.

    It keeps what grpcio's promises. What goes first (initial metadata) leaves with the first
    message, or with the answer of a unary method.
    """

    def __init__(self, request: Request) -> None:
        # One thread at a time sets these, as a rule the handler's; each is one step.
        self.request = request
        self.is_plain = True  # nothing was said beside the answer
        self.aborted = False
        self.initial: Metadata | None = None  # once it was said; it may be sent already
        self._code: Any = None
        self._details: bytes | None = None
        self._trailing: Metadata = ()
        self._given_trailing: Any = None

    # The caller

    def invocation_metadata(self) -> Any:
        """The caller's metadata, in its order; binary values are bytes."""
        return tuple(_Metadatum(*pair) for pair in self.request._metadata())

    def peer(self) -> str:
        """Who calls: ``ipv4:192.0.2.1:50123``; ``unknown`` where the gateway does not say."""
        return self.request.peer or "unknown"

    def peer_identities(self) -> Sequence[bytes] | None:
        """``None``: how a caller showed the gateway who it is, the tunnel does not carry."""
        return None

    def peer_identity_key(self) -> str | None:
        """``None``, as :meth:`peer_identities`."""
        return None

    def auth_context(self) -> Mapping[str, Any]:
        """Nothing, as :meth:`peer_identities`."""
        return {}

    # The call

    def is_active(self) -> bool:
        """Whether an answer is still wanted."""
        return self.request.is_active()

    def time_remaining(self) -> float:
        """Seconds until the deadline; infinite without one, as with gRPC's own server."""
        left = self.request.time_remaining()
        return _NO_DEADLINE if left is None else left

    def cancel(self) -> Any:
        """End the call at once with CANCELLED; what its method returns is for nobody."""
        self.request._end(StatusCode.CANCELLED, "Cancelled by the server")

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call ``callback()`` when the call is over; false if it is already."""
        return self.request.add_callback(callback)

    # What is answered

    def send_initial_metadata(self, initial_metadata: _Pairs) -> None:
        """Metadata that goes before the answer, once."""
        if self.initial is not None:
            raise ValueError("Initial metadata no longer allowed!")
        self.initial = require_metadata(initial_metadata or ())
        self.is_plain = False

    def set_trailing_metadata(self, trailing_metadata: _Pairs) -> None:
        """Metadata that goes with the status; the last counts."""
        pairs = tuple(trailing_metadata or ())
        self._trailing = require_metadata(pairs)
        self._given_trailing = pairs
        self.is_plain = False

    def trailing_metadata(self) -> Any:
        """What was set, ``None`` if nothing was."""
        return self._given_trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        """The status to end with; the last counts."""
        self._code = code
        self.is_plain = False

    def code(self) -> Any:
        """What was set, ``None`` if nothing was."""
        return self._code

    def set_details(self, details: str) -> None:
        """The message of the status; the last counts."""
        self._details = _encoded(details)
        self.is_plain = False

    def details(self) -> Any:
        """What was set, in bytes as grpcio has it; ``None`` if nothing was."""
        return self._details

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End with that status: raises, and what raised ends the method."""
        if code == grpc.StatusCode.OK:
            logger.error("%r: abort() called with StatusCode.OK; answered UNKNOWN", self.request)
            code, details = grpc.StatusCode.UNKNOWN, ""
        self._details = _encoded(details)
        self._code = code
        self.aborted = True
        self.is_plain = False
        raise Exception()  # noqa: TRY002 - as grpcio's: interceptors tell it by its bare type

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """The same, with trailing metadata: the rich details of an error, say."""
        self.set_trailing_metadata(status.trailing_metadata or ())
        self.abort(status.code, status.details)

    # Accepted, and without effect: nothing is compressed in the tunnel.

    def set_compression(self, compression: grpc.Compression) -> None:
        """Accepted; the gateway decides how callers are answered."""

    def disable_next_message_compression(self) -> None:
        """Accepted, as :meth:`set_compression`."""

    @property
    def _state(self) -> _State:
        """What interceptors were seen to look up in grpcio's own context."""
        is_over = not self.request.is_active()
        return _State("cancelled" if is_over else "open", self._code, self._details, self.aborted)

    # For whoever serves the call

    @property
    def trailing(self) -> Metadata:
        """What goes with the status."""
        return self._trailing

    def status(self) -> tuple[StatusCode, str]:
        """How the call ends."""
        code = StatusCode.OK if self._code is None else _number(self._code)
        return code, "" if self._details is None else self._details.decode("utf-8", "replace")

    def fail(self, code: StatusCode, problem: str) -> Response:
        """What answers a call that failed; what its method had set itself stays, as in grpcio."""
        self._default_to(code, problem)
        return self.response(b"")

    def response(self, payload: bytes) -> Response:
        """The answer of a unary method, with all that was said beside it."""
        code, message = self.status()
        if code is StatusCode.OK:
            response = Response(payload)
        else:
            headers = {"grpc-status": str(int(code))}
            response = Response(status=http_status(code), headers=headers, error=message)
        told = bool(self.request.peer)  # a gateway that says who calls knows feature "metadata"
        return response._with_metadata(self.initial or (), self._trailing, told=told)

    def _default_to(self, code: StatusCode, problem: str) -> None:
        if self._code is None:
            self._code = _CODES[code]
        if self._details is None:
            self._details = problem.encode("utf-8", "replace")


class StreamContext(Context):
    """The same, of a streaming call: what goes first leaves at once."""

    request: StreamRequest

    def send_initial_metadata(self, initial_metadata: _Pairs) -> None:
        """Metadata that goes before the answer, once, and before its first message."""
        if self.request._stream.put:
            raise ValueError("Initial metadata no longer allowed!")
        super().send_initial_metadata(initial_metadata)
        self.request._owner.send_initial(self.request, self.initial or ())

    def ending(self) -> Ending:
        """With what the call ends, by all that was said."""
        return (*self.status(), self.trailing)

    def fail_with(self, code: StatusCode, problem: str) -> Ending:
        """The same of a call that failed; what its method had set itself stays."""
        self._default_to(code, problem)
        return self.ending()


class _State(NamedTuple):
    client: str
    code: Any
    details: bytes | None
    aborted: bool


class _Metadatum(tuple):  # type: ignore[type-arg]
    """A pair whose halves have names, as grpcio's metadata is."""

    __slots__ = ()

    def __new__(cls, key: str, value: str | bytes) -> _Metadatum:
        return super().__new__(cls, (key, value))

    @property
    def key(self) -> str:
        """The name."""
        key: str = self[0]
        return key

    @property
    def value(self) -> str | bytes:
        """The value."""
        value: str | bytes = self[1]
        return value


def _number(code: object) -> StatusCode:
    # What is none of gRPC's is UNKNOWN, as grpcio has it.
    if isinstance(code, grpc.StatusCode):
        return StatusCode(code.value[0])
    return StatusCode.UNKNOWN


def _encoded(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode("utf-8", "replace")
