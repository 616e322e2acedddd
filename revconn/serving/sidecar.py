"""Calls passed on to a gRPC server beside this process, whatever it is written in.

Nothing of a message is looked at: no schema is needed, and all four kinds of methods pass, with
metadata, deadlines and statuses.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from revconn.core.metadata import Metadata, application_metadata
from revconn.core.status import StatusCode, http_status
from revconn.logger import Reminders, get_logger, presentable
from revconn.messages import Request, Response
from revconn.serving.stream_requests import Behavior, EndCall, Ending, StreamRequest
from revconn.serving.streaming_handlers import Opener

__all__ = ["Sidecar"]

logger = get_logger(__name__)

# A server that was restarted is found again within a second, not within grpc's two minutes.
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # what an attempt may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_metadata_size", 64 << 10),
    ("grpc.use_local_subchannel_pool", 1),
    # What answers one message is heard by the thread that asks, in the place of two others.
    ("SingleThreadedUnaryStream", 1),
)


class Sidecar(Opener):
    """A handler that passes calls on to one ``target``. Thread-safe.

    :param target: ``host:port`` or ``unix:path`` of a gRPC server.
    :param credentials: for TLS; ``None`` is plaintext.
    """

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.target = target
        # Not before the first call: a channel that was made before a fork is of no use after it.
        self._credentials = credentials
        self._channels: dict[str, grpc.Channel] = {}
        self._lock = threading.Lock()  # guards _reminders
        self._reminders = Reminders()

    @property
    def channel(self) -> grpc.Channel:
        """To the target."""
        channel = self._channels.get(self.target)
        if channel is None:
            # Of two threads that make one each both use the first: grpc cancels calls of one that
            # is dropped.
            channel = self._channels.setdefault(self.target, self._new_channel())
        return channel

    def _new_channel(self) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(self.target, _OPTIONS)
        return grpc.secure_channel(self.target, self._credentials, _OPTIONS)

    def __call__(self, request: Request) -> Response:
        """Pass on a call that came as one message."""
        method: Any = self.channel.unary_unary(_path(request))
        call = method.future(
            request.payload, timeout=request.time_remaining(), metadata=_metadata(request)
        )
        request.add_callback(call.cancel)  # its caller gave up
        error = call.exception()
        code, message, trailing = self._ending(call)
        if error is None:
            response = Response(call.result())
        else:
            headers = {"grpc-status": str(int(code))}
            response = Response(status=http_status(code), headers=headers, error=message)
        initial = _carried(call.initial_metadata())
        return response._with_metadata(initial, trailing, told=bool(request.peer))

    def open(self, request: StreamRequest) -> _Forwarded:
        """Pass on a streaming call."""
        return _Forwarded(self, request)

    def _note(self, details: str) -> None:
        """Tell the operator, now and then, that the target does not answer."""
        with self._lock:
            count = self._reminders.count(StatusCode.UNAVAILABLE, time.monotonic())
        level = logging.WARNING if count else logging.DEBUG
        often = f", {count:,} calls since the last such line" if count > 1 else ""
        logger.log(level, "%s: UNAVAILABLE%s: %s", self.target, often, presentable(details))

    def _ending(self, call: Any) -> Ending:
        code, details = StatusCode(call.code().value[0]), call.details() or ""
        if code is StatusCode.UNAVAILABLE:
            self._note(details)
        return code, details, _carried(call.trailing_metadata())


class _Forwarded(Behavior):
    """One streaming call, of whatever kind: messages to the target, and messages back."""

    reads = yields = True

    def __init__(self, sidecar: Sidecar, request: StreamRequest) -> None:
        self._sidecar = sidecar
        self._request = request
        self._ending: Ending = (StatusCode.OK, "", ())

    def invoke(self, argument: Any) -> Iterator[bytes]:
        """Begin the call at the target."""
        request, channel = self._request, self._sidecar.channel
        method: Any
        # For messages that are still to come grpc starts a thread: on the wire it is the same.
        if request.is_one_message:
            method, said = channel.unary_stream(_path(request)), next(argument)
        else:
            method, said = channel.stream_stream(_path(request)), _quietly(argument)
        call = method(said, timeout=request.time_remaining(), metadata=_metadata(request))
        request.add_callback(call.cancel)
        return _Answers(self, call)

    def forget_callback(self) -> None:
        """The call has ended, or is about to: a thread to cancel it would be woken for nothing."""
        with self._request._replies.lock:
            self._request._callbacks = ()

    def begin_answer(self, call: Any) -> None:
        """Pass on what the target begins with."""
        initial = _carried(call.initial_metadata())
        if initial:
            self._request._owner.send_initial(self._request, initial)

    def end_answer(self, call: Any) -> None:
        """Note how it ended at the target. Raises :class:`EndCall` unless that is well."""
        self._ending = self._sidecar._ending(call)
        if self._ending[0] is not StatusCode.OK:
            raise EndCall(self._ending)

    def ended(self) -> Ending:
        """As the target has it."""
        return self._ending

    def failed(self, error: Exception, doing: str) -> Ending:
        """The call could not be made."""
        logger.exception("%r: it could not be passed on to %s", self._request, self._sidecar.target)
        return StatusCode.INTERNAL, "the call could not be passed on", ()

    def interrupted(self) -> Exception:
        """Nobody waits for the rest."""
        return EndCall((StatusCode.CANCELLED, "the call is over", ()))


class _Answers(Iterator[bytes]):
    """What the target answers. No generator: one that has not begun would be closed unheard."""

    def __init__(self, forwarded: _Forwarded, call: Any) -> None:
        self._forwarded = forwarded
        self._call = call
        self._is_open = False

    def __next__(self) -> bytes:
        try:
            message: bytes | None = next(self._call)
        except (StopIteration, grpc.RpcError):  # the status says it
            message = None
        if message is None:
            self.close()
        if not self._is_open:
            self._is_open = True
            self._forwarded.begin_answer(self._call)
        if message is None:
            self._forwarded.end_answer(self._call)
            raise StopIteration
        return message

    def close(self) -> None:
        """Nobody waits for the rest."""
        call = self._call
        self._forwarded.forget_callback()
        call.cancel()  # unless it has ended
        # Where no thread of grpc's does that: a call of which something was not taken in is kept.
        take_in = getattr(call, "_consume_next_event", None)
        while take_in is not None and call._state.due:
            take_in()


def _quietly(messages: Iterator[bytes]) -> Iterator[bytes]:
    """What the caller sends. It ends where the call is over: grpc would log what is raised."""
    try:
        yield from messages
    except EndCall:
        return


def _path(request: Request) -> str:
    return f"/{request.method.removeprefix('/')}"


def _metadata(request: Request) -> Metadata:
    return application_metadata(request._metadata())


def _carried(metadata: Any) -> Metadata:
    return tuple(
        (key, value)
        for key, value in application_metadata(tuple(map(tuple, metadata or ())))
        if isinstance(value, bytes) or value.isascii()
    )
