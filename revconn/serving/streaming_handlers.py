"""Handlers that stream, with no servicer around them: which kind one is, and how it is run."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Callable, Literal, Union

from revconn.core.metadata import metadata_from_headers
from revconn.core.routing import Routes
from revconn.core.status import StatusCode, response_code
from revconn.exceptions import RequestError
from revconn.logger import get_logger
from revconn.messages import Request, Response
from revconn.serving.handlers import (
    Handler,
    HandlerResult,
    Serializable,
    as_response,
    function_of,
    name_of,
)
from revconn.serving.stream_requests import Behavior, EndCall, Ending, StreamRequest
from revconn.settings.checks import refuse

__all__ = ["Kind", "Opener", "StreamHandler", "StreamingHandler", "kind_of", "open_behavior"]

logger = get_logger("revconn.serving.handlers")

Kind = Literal["unary", "client_streaming", "server_streaming", "bidirectional_streaming"]
"""What a method is, in the protocol's words."""

StreamHandler = Callable[[Request], Iterable[Union[bytes, bytearray, memoryview, Serializable]]]
"""What serves a method that streams its answers: a function that yields them."""

_KINDS = ("unary", "client_streaming", "server_streaming", "bidirectional_streaming")
_READING = ("client_streaming", "bidirectional_streaming")
_YIELDING = ("server_streaming", "bidirectional_streaming")

_INTERNAL: Ending = (StatusCode.INTERNAL, "internal error", ())


class Opener:
    """A handler that streams, or may."""

    def __call__(self, request: Request) -> HandlerResult:
        """Refuse a call that came as one message, from a gateway that does not know streams."""
        raise RequestError(StatusCode.UNIMPLEMENTED, "the gateway carries no streams")

    def open(self, request: StreamRequest) -> Behavior:
        """Its behavior for one call. Raises :class:`EndCall`."""
        raise NotImplementedError


def kind_of(handler: object, kind: Any) -> Kind:
    """The kind of a handler, ``None`` being what it looks like.

    Raises :class:`ConfigurationError` for what is none, or not that of a generator.
    """
    yields = callable(handler) and inspect.isgeneratorfunction(function_of(handler))
    if kind is None:
        return "server_streaming" if yields else "unary"
    if kind not in _KINDS:
        refuse("kind", kind, "unknown", f"give one of {', '.join(_KINDS)}")
    if yields and kind not in _YIELDING:
        remedy = "return the one answer, or give server_streaming or bidirectional_streaming"
        refuse("kind", kind, "not that of a generator", remedy)
    found: Kind = kind
    return found


class StreamingHandler(Opener):
    """A handler of a method that streams."""

    def __init__(self, handler: Callable[[Request], Any], kind: Kind) -> None:
        self.handler = handler
        self.kind = kind

    def open(self, request: StreamRequest) -> Behavior:
        """Its behavior for one call."""
        return _Plain(self.handler, request, self.kind)


class _Plain(Behavior):
    """A function of the request, for one call."""

    def __init__(self, handler: Callable[[Any], Any], request: StreamRequest, kind: Kind) -> None:
        self._handler = handler
        self._request = request
        self._name = name_of(handler)
        self.reads = kind in _READING
        self.yields = kind in _YIELDING
        self._ending: Ending = (StatusCode.OK, "", ())

    def invoke(self, argument: object) -> Any:
        """Call it with the request, which has the messages."""
        return self._handler(self._request)

    def encode(self, answer: Any) -> bytes:
        """Bytes, or what a message encodes itself to. Raises :class:`EndCall`."""
        if type(answer) is bytes:
            return answer
        if self.yields and (answer is None or isinstance(answer, Response)):
            wrong = f"{type(answer).__name__}; yield bytes or a protobuf message"
            logger.error("%r: handler %s yielded %s", self._request, self._name, wrong)
            raise EndCall(_INTERNAL)
        try:
            response = as_response(answer)
        except Exception:
            logger.exception("%r: handler %s gave no answer", self._request, self._name)
            raise EndCall(_INTERNAL) from None
        if isinstance(response, bytes):
            return response
        self._ending = _ending_of(response)
        if self._ending[0] is not StatusCode.OK:
            raise EndCall(self._ending)
        return response.payload

    def ended(self) -> Ending:
        """As its response says, or well."""
        return self._ending

    def failed(self, error: Exception, doing: str) -> Ending:
        """As it says, where it is a :class:`RequestError`; else the log alone knows more."""
        if isinstance(error, RequestError):
            return error.code, error.message, ()
        logger.exception("%r: handler %s failed", self._request, self._name)
        return _INTERNAL

    def interrupted(self) -> Exception:
        """The call is over."""
        return RequestError(*self._request._why)


def _ending_of(response: Response) -> Ending:
    code = response_code(response.status, response.headers)
    return code, response.error, metadata_from_headers(response.headers)


def open_behavior(routes: Routes[Handler], request: StreamRequest) -> Behavior:
    """What runs a streaming call. Raises :class:`EndCall` where nobody does."""
    handler: Any = routes.find(request.method)
    if handler is None:
        problem = f"unknown method {request.method[:200]}"
        raise EndCall((StatusCode.UNIMPLEMENTED, problem, ()))
    if isinstance(handler, Opener):
        return handler.open(request)
    return _Plain(handler, request, "unary")
