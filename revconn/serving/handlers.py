"""Users' handlers: finding one, running it, making an answer of it, and which run now."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator
from contextvars import Context
from typing import Callable, NamedTuple, Protocol, Union

from revconn.core.chunks import LargeAnswer
from revconn.core.connection import LEAST_BYTES
from revconn.core.connector_side import Streaming
from revconn.core.framing import pack
from revconn.core.requests import encode_varint
from revconn.core.responses import encode_failure, encode_response
from revconn.core.rope import ROPE_BYTES, Data, Rope
from revconn.core.routing import Routes, split_method_path
from revconn.core.sending import Answer
from revconn.core.status import ProtocolError, StatusCode, is_success, status_code
from revconn.exceptions import RequestError
from revconn.logger import get_logger
from revconn.messages import Request, Response
from revconn.settings.checks import refuse, require_flag

__all__ = [
    "LONG",
    "Answering",
    "Handler",
    "HandlerResult",
    "Handlers",
    "Run",
    "Runs",
    "Serializable",
    "as_response",
    "encode_success",
    "failed",
    "function_of",
    "handler_stack",
    "name_of",
    "require_handler",
    "require_method_path",
    "run_frames",
]

logger = get_logger(__name__)


class Serializable(Protocol):
    """A protobuf message, as far as its answer goes."""

    def SerializeToString(self) -> bytes:
        """Its encoding."""


HandlerResult = Union[bytes, bytearray, memoryview, Response, Serializable, None]
Handler = Callable[[Request], HandlerResult]
"""What serves a method: a function of the :class:`Request`, called in a thread."""


class _Failure(NamedTuple):
    """Why a request has no payload to answer with."""

    code: StatusCode
    message: str
    status: int | None = None
    payload: bytes = b""


_MOST_SHAPES = 1024  # what is called, and with how much, is the callers' choice, and has no bound

_shapes: dict[tuple[int, int], tuple[bytes, bytes]] = {}
_SMALL = LEAST_BYTES - 512  # bytes of payload, whatever id comes with it
_LONGEST_METHOD = 200  # characters, of those that are named in errors

_Outcome = Union[bytes, Response, _Failure]

_NOT_ASYNC = "handlers run in threads: write def, and asyncio.run(...) in it for async code"
_NOT_STREAMING = 'return the one answer, or register it with kind="server_streaming"'

_INTERNAL_ERROR = _Failure(StatusCode.INTERNAL, "internal error")


class Answering:
    """Turns a request into its answer. Never raises; called by many threads at once.

    A payload beyond ``max_message_bytes`` is not encoded: whether it can be sent depends on the
    connection that its answer will travel on.
    """

    def __init__(self, routes: Routes[Handler], max_message_bytes: int) -> None:
        self._routes = routes
        self._methods = routes.methods
        self._max_message_bytes = max_message_bytes

    def answer(self, request: Request) -> Answer | LargeAnswer:
        """Run the request's handler and encode what came of it.

        All of it is in here for the one case that most are: a handler that is found by its path,
        and returns bytes that are not too many.
        """
        try:
            if request.framed or request.method not in self._methods:
                return self._finish(request, self._run(request))
            handler = self._methods[request.method]
            try:
                # As grpc.server has it: what it sets in context variables ends with the request.
                result = Context().run(handler, request)
            except BaseException as error:  # noqa: BLE001 - _failure logs what is not the user's wish
                return self._finish(request, _failure(request, handler, error))
            if type(result) is not bytes or len(result) > _SMALL:
                return self._finish(request, _checked(request, handler, result))
            # Too large for no gateway: it need not say whose it is.
            return encode_success(request.request_id, result), request._due, False, ""
        except BaseException:
            logger.exception("%r: the answer cannot be encoded", request)
            return _encode(request, _INTERNAL_ERROR), request._due, False, ""

    def _finish(self, request: Request, outcome: _Outcome) -> Answer | LargeAnswer:
        payload = outcome if isinstance(outcome, bytes) else outcome.payload
        if len(payload) > self._max_message_bytes:
            return _large(request, outcome, payload)
        message = _encode(request, outcome)
        return message, request._due, False, request.method[:_LONGEST_METHOD]

    def _run(self, request: Request) -> _Outcome:
        handler = self._routes.find(request.method)
        if handler is None:
            return _Failure(StatusCode.UNIMPLEMENTED, f"unknown method {request.method[:200]}", 404)
        if request.framed:
            try:
                request.payload  # noqa: B018 - raises for what does not inflate: no handler sees it
            except ProtocolError as error:
                return _Failure(StatusCode.INVALID_ARGUMENT, str(error))
        try:
            result = Context().run(handler, request)
        except BaseException as error:  # noqa: BLE001 - as above
            return _failure(request, handler, error)
        return _checked(request, handler, result)


def _failure(request: Request, handler: Handler, error: BaseException) -> _Failure:
    """What it means that a handler raised; called while that is being handled."""
    if isinstance(error, RequestError):  # the handler's own word, for the caller: no traceback
        return _Failure(error.code, error.message, error.status)
    # What went wrong is for the log alone: its words may hold anything, and callers are strangers.
    logger.exception("%r: handler %s failed", request, name_of(handler))
    return _INTERNAL_ERROR


def _checked(request: Request, handler: Handler, result: HandlerResult) -> _Outcome:
    try:
        return result if type(result) is bytes else as_response(result)
    except _WrongResult as error:
        logger.error("%r: handler %s returned %s", request, name_of(handler), error)
    except BaseException as error:  # noqa: BLE001 - a message that does not encode is the user's
        return _failure(request, handler, error)
    return _INTERNAL_ERROR


class _WrongResult(Exception):
    """A handler returned something that is no answer."""


def as_response(result: HandlerResult) -> bytes | Response:
    """What a handler returned, as an answer. Raises what is the user's."""
    if isinstance(result, (bytes, Response)):
        return result
    if result is None:
        return b""
    if isinstance(result, (bytearray, memoryview)):
        return bytes(result)
    serialize: Callable[[], bytes] | None = getattr(result, "SerializeToString", None)
    if serialize is None:
        raise _WrongResult(_describe(result))
    return serialize()


def _describe(result: object) -> str:
    """What it is, and what it should have been. One that waits to be run is closed."""
    name = type(result).__name__
    if isinstance(result, (Coroutine, Generator)):
        result.close()  # or Python warns, much later, that it was never awaited
    if isinstance(result, (Awaitable, AsyncIterator)):
        return f"{name}: {_NOT_ASYNC}"
    if isinstance(result, Generator):
        return f"{name}: {_NOT_STREAMING}"
    return f"{name}; return bytes, a protobuf message, a Response or None"


def _large(request: Request, outcome: _Outcome, payload: bytes) -> LargeAnswer:
    empty: _Outcome = b""
    if isinstance(outcome, Response):
        empty = Response(status=outcome.status, headers=outcome.headers, error=outcome.error)
        empty = empty._with_metadata(*outcome._metadata, told=True)
    payload = pack(payload, framed=request.framed)
    return LargeAnswer(
        _encode(request, empty), request._due, payload, request.method[:_LONGEST_METHOD]
    )


def encode_success(request_id: str, payload: bytes) -> Data:
    """The message that answers ``request_id`` with 200 and a bare payload: what most are.

    The same bytes as :func:`encode_response`'s, put together by hand: building the messages, which
    copies the payload twice, takes a quarter of all that a small request costs. What stands before
    the id and before the payload depends on how long they are, and answers are of few lengths.
    """
    if not payload or payload[0] < 2:  # empty, or to be told apart from gRPC's framing
        return encode_response(request_id, payload)
    name, size = request_id.encode(), len(payload)
    try:
        before_name, before_payload = _shapes[len(name), size]
    except KeyError:
        before_name, before_payload = _shape(len(name), size)
    if size >= ROPE_BYTES:
        return Rope((b"".join((before_name, name, before_payload)), payload))
    return b"".join((before_name, name, before_payload, payload))


def _shape(name_size: int, payload_size: int) -> tuple[bytes, bytes]:
    # Tags of registry.proto: 0x1a is ConnectionMessage.response; in there 0x0a is request_id, 0x10
    # status_code, 0x22 payload.
    before_name = b"\x0a" + encode_varint(name_size)
    before_payload = b"\x10" + encode_varint(200) + b"\x22" + encode_varint(payload_size)
    size = len(before_name) + name_size + len(before_payload) + payload_size
    # Threads may do this at once: the worst is a shape that is made twice.
    if len(_shapes) >= _MOST_SHAPES:
        _shapes.clear()
    shape = _shapes[name_size, payload_size] = (
        b"\x1a" + encode_varint(size) + before_name,
        before_payload,
    )
    return shape


def _encode(request: Request, outcome: _Outcome) -> Data:
    if isinstance(outcome, bytes):
        if not request.framed:
            return encode_success(request.request_id, outcome)
        return encode_response(request.request_id, outcome, framed=True)
    if isinstance(outcome, _Failure):
        return encode_failure(
            request.request_id,
            outcome.code,
            outcome.message,
            status=outcome.status,
            framed=request.framed,
        )
    if is_success(outcome.status):
        return encode_response(
            request.request_id,
            outcome.payload,
            # 0 is gRPC's OK, and the reference gateway takes it for an HTTP status.
            status=outcome.status or 200,
            headers=outcome.headers,
            error=outcome.error,
            framed=request.framed,
            metadata=outcome._metadata,
        )
    return encode_failure(
        request.request_id,
        status_code(outcome.status),
        outcome.error,
        status=outcome.status,
        headers=outcome.headers,
        payload=outcome.payload,
        framed=request.framed,
        metadata=outcome._metadata,
    )


def failed(request: Request, code: StatusCode, reason: str) -> Answer:
    """The answer to a request that no handler has, or has had in time."""
    message = encode_failure(request.request_id, code, reason, framed=request.framed)
    return message, request._due, False, ""


def name_of(handler: Callable[..., object]) -> str:
    """For the log: no ``repr``, which may hold anything, and raise."""
    return getattr(function_of(handler), "__qualname__", type(handler).__qualname__)


def function_of(handler: Callable[..., object]) -> Callable[..., object]:
    """What is called in the end: a partial's function, an object's ``__call__``."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if inspect.isroutine(handler) or inspect.isclass(handler):
        return handler
    call: Callable[..., object] = type(handler).__call__
    return call


def require_handler(handler: object) -> None:
    """Raise :class:`ConfigurationError` for what cannot serve a request."""
    if not callable(handler):
        refuse("handler", handler, "not callable", "give a function of the request")
    function = function_of(handler)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        refuse("handler", handler, "is async", _NOT_ASYNC)


def require_method_path(path: str) -> tuple[str, str]:
    """The service, and the path as it is written. Raises :class:`ConfigurationError`."""
    try:
        service, method = split_method_path(path)
        named = method.isprintable() and not any(map(str.isspace, method))
    except (ValueError, AttributeError, TypeError):
        named = False
    if not named:
        refuse("path", path, "not a method path", "write /package.Service/Method")
    return service, f"/{service}/{method}"


class Handlers:
    """What a connector serves. A handler may be replaced, and its kind changed, while it serves.

    A request meets a handler of before or one of after a replacement, and an inline one only if it
    was inline when it came: ``inline`` tells whose requests run inline from now on, ``inline_ever``
    has a handler for those that are on their way there too. ``all`` are those that workers find:
    while a gateway does not read they run what inline handlers would have.

    Changes need a lock of the owner's; the routes are read by any thread meanwhile.
    """

    def __init__(self) -> None:
        self.all: Routes[Handler] = Routes()
        self.inline: Routes[Handler] = Routes()
        self.inline_ever: Routes[Handler] = Routes()
        self.streaming_methods: set[str] = set()  # as gateways are told with the next connection
        self.mixed_services: set[str] = set()

    def services(self) -> list[str]:
        """The names of all services that have a handler, sorted."""
        return self.all.services()

    def streaming(self) -> Streaming:
        """What of it streams."""
        return Streaming(tuple(sorted(self.streaming_methods)), tuple(sorted(self.mixed_services)))

    def add_method(
        self, path: str, handler: Handler, *, inline: bool, replace: bool, streams: bool = False
    ) -> None:
        """Serve a method. Raises :class:`ConfigurationError` for a second handler of it."""
        inline = require_flag("inline", inline)
        _add(self.all.add_method, path, handler, replace)
        (self.streaming_methods.add if streams else self.streaming_methods.discard)(path)
        if inline:
            self.inline_ever.add_method(path, handler, replace=True)
            # After that: a receiving thread that finds it there finds its handler too.
            self.inline.add_method(path, handler, replace=True)
        else:
            self.inline.discard_method(path)

    def add_service(self, name: str, handler: Handler, *, replace: bool) -> None:
        """Serve what else is called of a service. Raises as :meth:`add_method`."""
        _add(self.all.add_service, name, handler, replace)


def _add(add: Callable[..., None], name: str, handler: Handler, replace: bool) -> None:
    replace = require_flag("replace", replace)
    try:
        add(name, handler, replace=replace)
    except ValueError:
        remedy = "register each handler once, or let it take that one's place with replace=True"
        refuse("handler of", name, "there is one already", remedy)


# What runs now


LONG = 0.5
"""Seconds; a shorter run is forgotten when it ends."""

_REMEMBERED = 100
_DEEPEST = 30


class Run(NamedTuple):
    """A request that is in its handler, since when (``time.monotonic()``)."""

    request: Request
    since: float


class Runs:
    """The runs of now, by thread, and the long ones that ended last, each with its end.

    Each thread writes its own entry of ``running``, and adding to a dict or a deque is atomic: no
    lock. Threads do so themselves, before and after each handler: two calls of methods would cost
    as much as the rest of a small request's way to its handler.
    """

    def __init__(self) -> None:
        self.running: dict[int, tuple[Request, float]] = {}
        # For the watchdog, which looks now and then: it may find the interpreter held by a run that
        # is over by then.
        self._ended: deque[tuple[Run, float]] = deque(maxlen=_REMEMBERED)

    def remember(self, request: Request, since: float, now: float) -> None:
        """A run of more than :data:`LONG` seconds has ended."""
        self._ended.append((Run(request, since), now))

    def now(self) -> dict[int, Run]:
        """What runs now, by the identifiers of threads."""
        # A copy, in one step: handlers begin and end meanwhile.
        return {thread: Run(*run) for thread, run in self.running.copy().items()}

    def during(self, start: float, end: float) -> list[Request]:
        """What ran for long between ``start`` and ``end``."""
        runs = [(run, end) for run in self.now().values()]
        runs += self._ended.copy()
        return [
            run.request for run, ended in runs if min(ended, end) - max(run.since, start) >= LONG
        ]


run_frames = {Answering.answer.__code__}
"""The code that calls handlers."""


def handler_stack(thread: int) -> str | None:
    """What a handler is doing in ``thread``, as a traceback shows it: code, and no values.

    ``None`` when no handler runs there, nor where the interpreter does not know the thread (a green
    one).
    """
    # The thread runs on meanwhile: each frame's line is noted as it is passed.
    frames = []
    frame = sys._current_frames().get(thread)
    while frame is not None:
        frames.append((frame, frame.f_lineno))
        if frame.f_code in run_frames:  # beneath it all is the library's
            stack = traceback.StackSummary.extract(reversed(frames), limit=-_DEEPEST)
            return "Stack (most recent call last):\n" + "".join(stack.format()).rstrip()
        frame = frame.f_back
    return None
