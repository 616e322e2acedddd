"""What a handler is given and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Callable

from revconn._proto.registry_pb2 import ForwardRequest
from revconn.core.deadline import nearer_deadline
from revconn.core.framing import is_framed, unframe
from revconn.core.metadata import Metadata, headers_from_metadata, invocation_metadata
from revconn.core.status import StatusCode, is_success
from revconn.runtime import clock
from revconn.runtime.threads import own_thread, shielded

__all__ = ["Request", "Response"]

_HEADER = 256  # bytes of memory, about, that a header takes beside its own, decoded and in a dict
_LARGE = 16 << 10
_MOST_INFLATED = 16 << 20  # bytes of one payload, in each of the threads that run handlers


class Request:
    """One request from a gateway. Safe to use from any thread.

    ``deadline`` is the absolute instant (``time.monotonic()``, seconds) after which the caller no
    longer waits: the nearer of the gateway's ``timeout_seconds`` and the caller's own
    ``grpc-timeout``. ``None``: nobody set one. Callers go on waiting while this machine sleeps, and
    it comes nearer by as much.
    """

    __slots__ = (
        "_arrived",
        "_callbacks",
        "_cost",
        "_due",
        "_headers",
        "_in_flight",
        "_message",
        "_packed",
        "_payload",
        "_replies",
        "framed",
        "method",
        "request_id",
    )

    _is_streaming = False

    request_id: str
    """The gateway's id of this request, unique among those in flight."""
    method: str
    """The method's path as the gateway sent it, ``/package.Service/Method``."""
    framed: bool
    """Whether the payload came in gRPC's framing; the answer then goes out in it too."""

    _arrived: float
    _callbacks: tuple[Callable[[], object], ...]
    _cost: int
    _due: float | None
    _headers: dict[str, str] | None
    _in_flight: Mapping[str, Request]
    _replies: Any
    _message: ForwardRequest | None
    _packed: bytes | None
    _payload: bytes

    @property
    def headers(self) -> Mapping[str, str]:
        """The caller's headers as the gateway sent them; gRPC has names in lower case."""
        if self._headers is None:
            assert self._message is not None
            self._headers = dict(self._message.headers)
        return self._headers

    @property
    def peer(self) -> str:
        """Who calls, as gRPC writes addresses (``ipv4:192.0.2.1:50123``), by the gateway's word.

        Empty where the gateway does not say: the embedded one does, of callers from outside.
        """
        return "" if self._message is None else self._message.peer

    def messages(self) -> Iterator[bytes]:
        """The caller's messages: of a unary call its one; of a streaming one each, as it comes."""
        return iter((self.payload,))

    @property
    def _waiting_since(self) -> float:
        return self._arrived

    def _metadata(self) -> Metadata:
        """All that came as the call's metadata, as gRPC's servers give it to a servicer."""
        return invocation_metadata(
            self.headers, () if self._message is None else self._message.metadata
        )

    @property
    def payload(self) -> bytes:
        """The method's message, bare.

        Raises :class:`~revconn.ProtocolError` for a compressed one that does not inflate.
        """
        packed = self._packed
        if packed is not None:
            encoding = self.headers.get("grpc-encoding", "") if packed[0] else ""
            self._payload = unframe(packed, encoding, _MOST_INFLATED)
            self._packed = None  # last: another thread may be asking too
        return self._payload

    @property
    def deadline(self) -> float | None:
        """When the caller stops waiting."""
        left = self._time_left()
        return None if left is None else time.monotonic() + left

    def _time_left(self) -> float | None:
        return None if self._due is None else self._due - clock.with_suspend()

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, never negative; ``None`` without one."""
        left = self._time_left()
        return None if left is None else max(0.0, left)

    def is_active(self) -> bool:
        """Whether an answer is still wanted: a long handler looks now and then, and stops.

        False once the request was answered, its deadline passed, its caller gave up (where the
        gateway passes that on) or the connector was aborted.
        """
        return self._is_unsettled() and (self._due is None or clock.with_suspend() < self._due)

    def _is_unsettled(self) -> bool:
        """Whether it is in the table of calls: nobody has answered it, or given it up.

        By itself, and not by its id: after it was settled another request may have come with that.
        """
        return self._in_flight.get(self.request_id) is self

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Call ``callback()`` once, when the request is over: see :meth:`is_active`.

        False when it is over already: the callback will not be called. It runs in a thread that
        others share, so it should return soon; an exception in it is logged.
        """
        if not self._is_unsettled():  # in a forked child nobody may ever release the lock
            return False
        with self._replies.lock:
            # Again: whoever settles it holds this lock, and calls what it finds here then.
            if not self._is_unsettled():
                return False
            self._callbacks = (*self._callbacks, callback)
            return True

    def _end(self, code: StatusCode, reason: str) -> None:
        """Answer it with that, unless it is over."""
        if self._is_unsettled():
            self._replies.fail(self, code, reason)

    def _call_back(self) -> None:
        """It is over: call what was to be called then, each once, whoever else does the same."""
        with self._replies.lock:
            callbacks, self._callbacks = self._callbacks, ()
        with own_thread():  # they may call stop()
            for callback in callbacks:
                shielded(f"{self!r}: a callback", callback)

    def _count(self) -> None:
        """From now on it counts as what waits for a worker does: all that it takes, about."""
        headers = self.headers
        self._cost = _HEADER * len(headers) + len(self._payload)
        self._cost += sum(len(name) + len(value) for name, value in headers.items())

    def __repr__(self) -> str:
        return f"Request({self.method!r:.200}, request_id={self.request_id!r})"


_new_request = object.__new__


def received(
    message: ForwardRequest,
    request_id: str,
    method: str,
    payload: bytes | None,
    size: int,
    arrived: float,
    now: float,
    replies: Any,
    in_flight: Mapping[str, Request],
    counts: bool,
) -> Request:
    """The request that came in a message of ``size`` bytes, by the link whose replies those are.

    The ``message`` holds the ``payload``, or that is given beside it. They came when ``arrived``
    says (monotonic), and ``now`` (:func:`~revconn.runtime.clock.with_suspend`). ``in_flight`` is
    the table that it is to be put in, and it ``counts`` if the memory that it takes there does.
    """
    # A function, because there is one for each request: calling a class that has an __init__ costs
    # as much again.
    request: Request = _new_request(Request)
    timeout = message.timeout_seconds
    due = now + timeout if timeout > 0 else None
    headers = message.headers
    if "grpc-timeout" in headers:  # the caller's own; the nearer of the two counts
        due = nearer_deadline(due, headers["grpc-timeout"], now)
    if payload is None:
        payload = message.payload  # once: protobuf makes a copy for everybody who asks
    # The replies' lock, which is that of the table of calls, guards _callbacks and the table.
    request._replies = replies
    request._in_flight = in_flight
    request._callbacks = ()
    # All that begins otherwise is bare beyond doubt, without a call.
    request.framed = is_framed(payload) if payload and payload[0] < 2 else False
    request._packed = payload if request.framed else None  # as it came, until somebody asks for it
    request._payload = payload
    request._headers = None
    request.request_id = request_id
    request._arrived = arrived
    request._cost = size + _HEADER * len(headers) if counts else 0
    request._due = due
    request.method = method
    if size > _LARGE:  # worth more than the time it takes: not to hold the payload twice
        request._headers = dict(headers)
        peer, metadata = message.peer, message.metadata
        request._message = ForwardRequest(peer=peer, metadata=metadata) if peer else None
    else:
        request._message = message
    return request


class Response:
    """A handler's answer where bytes alone do not say enough.

    :param payload: the encoded message.
    :param status: an HTTP status from 200 to 599, or 0 (gRPC's OK).
    :param headers: sent to the caller; names and values are text, names in lower case.
    :param error: the message of a failure.

    Immutable; may be shared between requests and threads.
    """

    __slots__ = ("_metadata", "error", "headers", "payload", "status")

    payload: bytes
    status: int
    headers: Mapping[str, str]
    error: str
    _metadata: tuple[Metadata, Metadata]  # a servicer's: initial, trailing

    def __init__(
        self,
        payload: bytes = b"",
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        error: str = "",
    ) -> None:
        if not isinstance(payload, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"Response: payload is {type(payload).__name__}; give bytes"
                " (message.SerializeToString() for a protobuf message)"
            )
        if not isinstance(status, int) or not (status == 0 or 200 <= status <= 599):
            raise ValueError(f"Response: status {status!r} is no status; give 0 or 200 to 599")
        if not isinstance(error, str):
            raise TypeError(f"Response: error is {type(error).__name__}; give a str")
        fields = dict(headers or {})
        if not all(isinstance(text, str) for item in fields.items() for text in item):
            raise TypeError("Response: headers hold something that is not text; give str to str")
        set_slot = object.__setattr__
        set_slot(self, "payload", bytes(payload))
        set_slot(self, "status", int(status))
        set_slot(self, "headers", MappingProxyType(fields))
        set_slot(self, "error", error)
        set_slot(self, "_metadata", ((), ()))

    def _with_metadata(self, initial: Metadata, trailing: Metadata, *, told: bool) -> Response:
        """The same with metadata; ``told``: the gateway knows feature "metadata"."""
        if told and (initial or len(trailing) > 1):  # headers have no order, either
            object.__setattr__(self, "_metadata", (initial, trailing))
        elif initial or trailing:
            headers = {**self.headers, **headers_from_metadata((*initial, *trailing))}
            object.__setattr__(self, "headers", MappingProxyType(headers))
        return self

    @property
    def ok(self) -> bool:
        """Whether the status is a success."""
        return is_success(self.status)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Response is immutable; make a new one to change {name}")

    def __repr__(self) -> str:
        return f"Response({len(self.payload)} bytes, status={self.status})"
