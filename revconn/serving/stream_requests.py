"""One streaming call, as its handler and what runs it see it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextvars import Context
from typing import TYPE_CHECKING, Any, Callable

from revconn._proto.registry_pb2 import ForwardRequest, StreamOpening
from revconn.core.metadata import Metadata, headers_from_metadata, pairs_of
from revconn.core.status import StatusCode
from revconn.core.stream import OVERHEAD, WINDOW, Stream
from revconn.messages import Request
from revconn.runtime import clock
from revconn.runtime.threads import BinarySemaphore

if TYPE_CHECKING:
    from revconn.serving.replies import Replies
    from revconn.serving.stream_calls import StreamCalls

__all__ = ["RETURNED", "Behavior", "EndCall", "Ending", "StreamRequest"]

RETURNED = WINDOW // 4
"""Bytes that a handler reads before that is said."""

Ending = tuple[StatusCode, str, Metadata]
"""With what a call ends: its status, the words that go with it, its trailing metadata."""


class EndCall(Exception):
    """The call cannot go on: ``ending`` is how it ends."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


class Behavior:
    """What a handler is, for one call.

    :ivar reads: whether it iterates over the caller's messages; else there is to be one.
    :ivar yields: whether what :meth:`invoke` returns is an iterator of answers.
    :ivar is_bound: whether that has to be iterated in one thread, which waits while the caller does
        not read.
    :ivar is_detached: whether it runs elsewhere: :meth:`begin` begins it, and it says and ends by
        :meth:`StreamCalls.write` and its like what others are asked for.
    """

    reads: bool
    yields: bool
    is_bound = False
    is_detached = False

    def begin(self) -> None:
        """Begin, if it is detached."""
        raise NotImplementedError

    def notify(self) -> None:
        """Something has come, may be said again, or is over. Called with the lock held."""
        raise NotImplementedError

    def invoke(self, argument: Any) -> Any:
        """Call it, with the one message or an iterator of them, each as :meth:`decode` made it."""
        raise NotImplementedError

    def decode(self, message: bytes) -> Any:
        """What it is given of a message. Raises :class:`EndCall`."""
        return message

    def encode(self, answer: Any) -> bytes:
        """A message of its answer. Raises :class:`EndCall`."""
        data: bytes = answer
        return data

    def ended(self) -> Ending:
        """With what a call ends that went well."""
        return StatusCode.OK, "", ()

    def failed(self, error: Exception, doing: str) -> Ending:
        """With what a call ends whose handler raised; called while that is being handled."""
        raise NotImplementedError

    def interrupted(self) -> Exception:
        """What is raised where the handler waits for a message of a call that is over."""
        raise NotImplementedError


class StreamRequest(Request):
    """A streaming call. Its ``payload`` is the caller's one message, if its method takes one."""

    __slots__ = (
        "_awaits", "_behavior", "_context", "_decode", "_has_ended", "_inbox", "_is_aside",
        "_is_over", "_is_reading", "_owner", "_reader", "_responses", "_room", "_since",
        "_stream", "_unreturned", "_why",
    )  # fmt: skip

    _awaits: bool  # its one message
    _behavior: Any
    _context: Context
    _decode: Callable[[bytes], Any]
    _has_ended: bool
    _inbox: deque[bytes]
    _is_aside: bool
    _is_over: bool
    _is_reading: bool
    _owner: StreamCalls
    _reader: BinarySemaphore
    _responses: Any
    _room: BinarySemaphore | None  # of a thread that waits until it may say more
    _since: float  # that it waits for a worker
    _stream: Stream
    _unreturned: int
    _why: tuple[StatusCode, str]  # it is over, unless it was answered

    _is_streaming = True

    @classmethod
    def opened(
        cls,
        owner: StreamCalls,
        replies: Replies,
        request_id: str,
        stream: Stream,
        opening: StreamOpening,
    ) -> StreamRequest:
        """The call that a gateway opens with this."""
        request: StreamRequest = object.__new__(cls)
        timeout = opening.timeout_microseconds
        request.request_id = request_id
        request.method = opening.method_path
        request.framed = False
        request._replies = replies
        request._in_flight = replies.in_flight
        request._callbacks = ()
        request._packed = None
        request._payload = b""
        request._headers = headers_from_metadata(pairs_of(opening.metadata))
        request._message = ForwardRequest(peer=opening.peer, metadata=opening.metadata)
        request._arrived = request._since = time.monotonic()
        request._cost = 0
        request._due = clock.with_suspend() + timeout / 1e6 if timeout else None
        request._stream = stream
        request._owner = owner
        request._inbox = deque()
        request._has_ended = request._is_reading = request._is_aside = request._awaits = False
        request._is_over = False
        request._why = StatusCode.CANCELLED, "the call is over"
        request._unreturned = 0
        request._reader = BinarySemaphore()
        request._responses = request._room = None
        request._behavior = None
        request._decode = bytes
        request._context = Context()
        return request

    def messages(self) -> Iterator[bytes]:
        """The caller's messages, one after the other; waits for each.

        Of a method that takes one message, that one. Ends when the caller sends no more. Raises
        :class:`RequestError` when the call is over: its caller gave up, say.
        """
        behavior = self._behavior
        return self._read() if behavior is None or behavior.reads else iter((self.payload,))

    @property
    def is_one_message(self) -> bool:
        """Whether its caller has sent one message that was not read, and sends no more."""
        return self._has_ended and len(self._inbox) == 1

    def _read(self) -> Messages:
        return Messages(self)

    @property
    def _waiting_since(self) -> float:
        return self._since


class Messages(Iterator[Any]):
    """Iterates over a call's messages. One thread at a time."""

    __slots__ = ("_request",)

    def __init__(self, request: StreamRequest) -> None:
        self._request = request

    def __next__(self) -> Any:
        request = self._request
        inbox = request._inbox
        while True:
            try:
                message = inbox.popleft()
            except IndexError:
                if not request._owner.wait_for_message(request):
                    raise StopIteration from None
                continue
            request._unreturned += len(message) + OVERHEAD
            if request._unreturned >= RETURNED:
                request._owner.return_credit(request)
            return request._decode(message)
