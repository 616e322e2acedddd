"""What a handler is given and what it gives back."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Callable

from revconn import clock
from revconn._proto.registry_pb2 import ForwardRequest
from revconn.core.framing import is_framed, unframe
from revconn.core.status import is_success

__all__ = ["Request", "Response"]

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
        "_active",
        "_arrived",
        "_callbacks",
        "_cost",
        "_due",
        "_headers",
        "_lock",
        "_message",
        "_packed",
        "_payload",
        "framed",
        "method",
        "request_id",
    )

    request_id: str
    """The gateway's id of this request, unique among those in flight."""
    method: str
    """The method's path as the gateway sent it, ``/package.Service/Method``."""
    framed: bool
    """Whether the payload came in gRPC's framing; the answer then goes out in it too."""

    def __init__(
        self,
        message: ForwardRequest,
        due: float | None,
        lock: threading.Lock,
        arrived: float = 0.0,
        cost: int = 0,
    ) -> None:
        payload = message.payload  # once: protobuf makes a copy for everybody who asks
        self._lock = lock  # of whoever settles it; guards _active and _callbacks
        self._callbacks: tuple[Callable[[], object], ...] = ()
        # All that begins otherwise is bare beyond doubt, without a call.
        self.framed = payload[:1] < b"\x02" and is_framed(payload)
        self._packed = payload if self.framed else None  # as it came, until somebody asks for it
        self._payload = payload
        self._message: ForwardRequest | None = message
        self._headers: dict[str, str] | None = None
        self.request_id = message.request_id
        self._active = True
        self._arrived = arrived
        self._cost = cost  # bytes of memory, about, while it is in flight
        self._due = due  # clock.with_suspend()
        self.method = message.method_path
        if len(payload) > _LARGE:  # worth more than the time it takes: not to hold it twice
            self._headers = dict(message.headers)
            self._message = None

    @property
    def headers(self) -> Mapping[str, str]:
        """The caller's headers as the gateway sent them; gRPC has names in lower case."""
        if self._headers is None:
            assert self._message is not None
            self._headers = dict(self._message.headers)
        return self._headers

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
        return self._active and (self._due is None or clock.with_suspend() < self._due)

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Call ``callback()`` once, when the request is over: see :meth:`is_active`.

        False when it is over already: the callback will not be called. It runs in a thread that
        others share, so it should return soon; an exception in it is logged.
        """
        if not self._active:
            return False
        with self._lock:
            if not self._active:
                return False
            self._callbacks = (*self._callbacks, callback)
            return True

    def _settle(self) -> None:
        """Called once, by whoever owns ``_lock``, holding it."""
        self._active = False

    def _take_callbacks(self) -> tuple[Callable[[], object], ...]:
        """Those still to be called, for the one who calls them."""
        with self._lock:
            callbacks, self._callbacks = self._callbacks, ()
        return callbacks

    def __repr__(self) -> str:
        return f"Request({self.method!r:.200}, request_id={self.request_id!r})"


class Response:
    """A handler's answer where bytes alone do not say enough.

    :param payload: the encoded message.
    :param status: an HTTP status from 200 to 599, or 0 (gRPC's OK).
    :param headers: sent to the caller; names and values are text, names in lower case.
    :param error: the message of a failure.

    Immutable; may be shared between requests and threads.
    """

    __slots__ = ("error", "headers", "payload", "status")

    payload: bytes
    status: int
    headers: Mapping[str, str]
    error: str

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

    @property
    def ok(self) -> bool:
        """Whether the status is a success."""
        return is_success(self.status)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Response is immutable; make a new one to change {name}")

    def __repr__(self) -> str:
        return f"Response({len(self.payload)} bytes, status={self.status})"
