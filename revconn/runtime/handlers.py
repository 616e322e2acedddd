"""Users' handlers: finding one, running it, and making an answer of whatever it does."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator
from contextvars import Context
from typing import Callable, NamedTuple, Protocol, Union

from revconn.core.answers import encode_failure, encode_response
from revconn.core.errors import ProtocolError
from revconn.core.framing import pack
from revconn.core.large import LargeAnswer
from revconn.core.outbound import Answer
from revconn.core.routing import Routes
from revconn.core.status import StatusCode, is_success, status_code
from revconn.core.terms import LEAST_BYTES
from revconn.exceptions import RequestError
from revconn.logger import get_logger
from revconn.messages import Request, Response
from revconn.validation import refuse

__all__ = ["Answering", "Handler", "HandlerResult", "Serializable", "require_handler"]

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


_LONGEST_METHOD = 200  # characters, of those that are named in errors

_Outcome = Union[bytes, Response, _Failure]

_NOT_ASYNC = "handlers run in threads: write def, and asyncio.run(...) in it for async code"
_NOT_STREAMING = "streaming methods are not served yet: return the one answer, without yield"

_INTERNAL_ERROR = _Failure(StatusCode.INTERNAL, "internal error")


class Answering:
    """Turns a request into its answer. Never raises; called by many threads at once.

    A payload beyond ``max_message_bytes`` is not encoded: whether it can be sent depends on the
    connection that its answer will travel on.
    """

    def __init__(self, routes: Routes[Handler], max_message_bytes: int) -> None:
        self._routes = routes
        self._max_message_bytes = max_message_bytes

    def __call__(self, request: Request) -> Answer | LargeAnswer:
        """Run the request's handler and encode what came of it."""
        try:
            outcome = self._run(request)
            payload = outcome if isinstance(outcome, bytes) else outcome.payload
            if len(payload) > self._max_message_bytes:
                return _large(request, outcome, payload)
            message = _encode(request, outcome)
            if len(message) <= LEAST_BYTES:  # too large for no gateway: it need not say whose it is
                return Answer(message, request._due)
            method = request.method[:_LONGEST_METHOD]
            return Answer(message, request._due, method=method)
        except BaseException:
            logger.exception("%r: the answer cannot be encoded", request)
            return Answer(_encode(request, _INTERNAL_ERROR), request._due)

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
            # As grpc.server has it: what it sets in context variables ends with the request.
            result = Context().run(handler, request)
            return result if type(result) is bytes else _as_response(result)
        except RequestError as error:
            return _Failure(error.code, error.message, error.status)
        except _WrongResult as error:
            logger.error("%r: handler %s returned %s", request, _name(handler), error)
        except BaseException:
            logger.exception("%r: handler %s failed", request, _name(handler))
        return _INTERNAL_ERROR


class _WrongResult(Exception):
    """A handler returned something that is no answer."""


def _as_response(result: HandlerResult) -> bytes | Response:
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
        result.close()
    if isinstance(result, (Awaitable, AsyncIterator)):
        return f"{name}: {_NOT_ASYNC}"
    if isinstance(result, Generator):
        return f"{name}: {_NOT_STREAMING}"
    return f"{name}; return bytes, a protobuf message, a Response or None"


def _large(request: Request, outcome: _Outcome, payload: bytes) -> LargeAnswer:
    empty: _Outcome = b""
    if isinstance(outcome, Response):
        empty = Response(status=outcome.status, headers=outcome.headers, error=outcome.error)
    payload = pack(payload, framed=request.framed)
    return LargeAnswer(
        _encode(request, empty), request._due, payload, request.method[:_LONGEST_METHOD]
    )


def _encode(request: Request, outcome: _Outcome) -> bytes:
    if isinstance(outcome, bytes):
        return encode_response(request.request_id, outcome, framed=request.framed)
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
        )
    return encode_failure(
        request.request_id,
        status_code(outcome.status),
        outcome.error,
        status=outcome.status,
        headers=outcome.headers,
        payload=outcome.payload,
        framed=request.framed,
    )


def _name(handler: Callable[..., object]) -> str:
    """For the log: no ``repr``, which may hold anything, and raise."""
    return getattr(_function(handler), "__qualname__", type(handler).__qualname__)


def _function(handler: Callable[..., object]) -> Callable[..., object]:
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
    function = _function(handler)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        refuse("handler", handler, "is async", _NOT_ASYNC)
    if inspect.isgeneratorfunction(function):
        refuse("handler", handler, "is a generator", _NOT_STREAMING)
