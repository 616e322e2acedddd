"""gRPC's servicers as a handler: what generated code registers, found and run as grpcio does it.

Which method a call is for is asked when it comes: an interceptor may put another one in its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Callable

import grpc

from revconn.core.status import StatusCode
from revconn.logger import get_logger
from revconn.messages import Request, Response
from revconn.serving.context import Context, StreamContext
from revconn.serving.stream_requests import Behavior, EndCall, Ending, StreamRequest
from revconn.serving.streaming_handlers import Opener
from revconn.settings.checks import refuse, require_service_name

__all__ = ["Servicers", "require_interceptors", "streaming_of"]

logger = get_logger(__name__)

_UNTOLD = "the gateway carries no streams"
_BEHAVIORS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

Query = Callable[[Any], Any]
"""From call details to a :class:`grpc.RpcMethodHandler`, or ``None``."""


class CallDetails(grpc.HandlerCallDetails):
    """What interceptors and generic handlers are told of a call."""

    __slots__ = ("_context", "_metadata", "method")

    def __init__(self, context: Context) -> None:
        self.method = f"/{context.request.method.removeprefix('/')}"
        self._context = context
        self._metadata: Any = None

    @property
    def invocation_metadata(self) -> Any:  # type: ignore[override]
        """As the context's."""
        if self._metadata is None:  # few ask, and it takes longer than all else here
            self._metadata = self._context.invocation_metadata()
        return self._metadata


class Servicers(Opener):
    """All that was registered by ``add_XServicer_to_server`` and its like: one handler for it all.

    Called by many threads at once; what registers more holds a lock of the owner's.
    """

    def __init__(self, interceptors: tuple[grpc.ServerInterceptor, ...]) -> None:
        self._interceptors = interceptors
        self._methods: dict[str, Any] = {}  # those registered by name, which go first
        self._generic: list[Query] = []  # in the order in which they came

    def require_generic(self, handler: Any) -> str:
        """The name of a generic handler's service, empty if it tells none.

        Raises :class:`ConfigurationError` for what is no generic handler.
        """
        if not callable(getattr(handler, "service", None)):
            remedy = "give what grpc.method_handlers_generic_handler(...) returns"
            refuse("generic_rpc_handlers", handler, "not a grpc.GenericRpcHandler", remedy)
        name: str = handler.service_name() if hasattr(handler, "service_name") else ""
        # What grpcio's own holds; another finds its methods when they are called.
        known: object = getattr(handler, "_method_handlers", None)
        for path, method in known.items() if isinstance(known, Mapping) else ():
            _require_method(path, method)
        return name

    def add_generic(self, handler: Any) -> list[str] | None:
        """Serve what it finds; the paths of its methods that stream, ``None`` if it tells none."""
        self._generic.append(handler.service)
        known: object = getattr(handler, "_method_handlers", None)
        return streaming_of(known) if isinstance(known, Mapping) else None

    def require_methods(self, service: str, handlers: Any) -> dict[str, Any]:
        """The methods of a service, by their paths.

        Raises :class:`ConfigurationError` for what is no method.
        """
        require_service_name("service_name", service)
        if not isinstance(handlers, Mapping):
            remedy = "give a dict from names to grpc.RpcMethodHandler objects"
            refuse("method_handlers", handlers, "not a mapping", remedy)
        methods = {f"/{service}/{name}": handler for name, handler in handlers.items()}
        for path, method in methods.items():
            _require_method(path, method)
        return methods

    def add_methods(self, methods: Mapping[str, Any]) -> None:
        """Serve methods by their paths."""
        self._methods.update(methods)

    def __call__(self, request: Request) -> bytes | Response:
        """Answer a call that came as one message."""
        context = Context(request)
        try:
            method = self._find(CallDetails(context))
        except Exception:
            logger.exception("%r: finding its method failed", request)
            return context.fail(StatusCode.UNKNOWN, "Error in service handler!")
        if method is None:
            return context.fail(StatusCode.UNIMPLEMENTED, "Method not found!")
        if method.request_streaming or method.response_streaming:
            return context.fail(StatusCode.UNIMPLEMENTED, f"{request.method}: {_UNTOLD}")
        return _answer(context, method)

    def open(self, request: StreamRequest) -> _Served:
        """What runs a streaming call. Raises :class:`EndCall` where nobody does."""
        context = StreamContext(request)
        try:
            method = self._find(CallDetails(context))
        except Exception:
            logger.exception("%r: finding its method failed", request)
            raise EndCall((StatusCode.UNKNOWN, "Error in service handler!", ())) from None
        if method is None:
            raise EndCall((StatusCode.UNIMPLEMENTED, "Method not found!", ()))
        return _Served(context, method)

    def _find(self, details: Any) -> Any:
        """The method that is called, by way of the interceptors. Raises what users' code raises."""
        return self._intercept(0, details) if self._interceptors else self._query(details)

    def _intercept(self, number: int, details: Any) -> Any:
        if number == len(self._interceptors):
            return self._query(details)
        interceptor = self._interceptors[number]
        return interceptor.intercept_service(
            lambda details: self._intercept(number + 1, details), details
        )

    def _query(self, details: Any) -> Any:
        method = self._methods.get(details.method)
        if method is None:
            for query in self._generic:
                method = query(details)
                if method is not None:
                    break
        return method


class _Served(Behavior):
    """A servicer's method, for one streaming call."""

    def __init__(self, context: StreamContext, method: Any) -> None:
        self.reads: bool = method.request_streaming
        self.yields: bool = method.response_streaming
        self._context = context
        kinds = (
            (method.unary_unary, method.unary_stream),
            (method.stream_unary, method.stream_stream),
        )
        self._behavior = kinds[self.reads][self.yields]
        self._deserialize = method.request_deserializer
        self._serialize = method.response_serializer

    def invoke(self, argument: Any) -> Any:
        """Call it."""
        return self._behavior(argument, self._context)

    def decode(self, message: bytes) -> Any:
        """What it is given of a message. Raises :class:`EndCall`."""
        if self._deserialize is None:
            return message
        try:
            return self._deserialize(message)
        except Exception:
            logger.exception("%r: deserializing a request failed", self._context.request)
            problem = "Exception deserializing request!"
            raise EndCall(self._context.fail_with(StatusCode.INTERNAL, problem)) from None

    def encode(self, answer: Any) -> bytes:
        """A message of its answer. Raises :class:`EndCall`."""
        try:
            return _require_bytes(answer if self._serialize is None else self._serialize(answer))
        except Exception:
            logger.exception("%r: serializing a response failed", self._context.request)
            problem = "Failed to serialize response!"
            raise EndCall(self._context.fail_with(StatusCode.INTERNAL, problem)) from None

    def ended(self) -> Ending:
        """As it has set."""
        return self._context.ending()

    def failed(self, error: Exception, doing: str) -> Ending:
        """As grpcio has it."""
        is_over = isinstance(error, grpc.RpcError) and not self._context.request.is_active()
        if not is_over:
            _failed(self._context, error, doing)
        return self._context.ending()

    def interrupted(self) -> Exception:
        """As grpcio tells a servicer of a call that is over."""
        return grpc.RpcError()


def _answer(context: Context, method: Any) -> bytes | Response:
    request = context.request
    message: Any = request.payload
    if method.request_deserializer is not None:
        try:
            message = method.request_deserializer(message)
        except Exception:
            logger.exception("%r: deserializing the request failed", request)
            return context.fail(StatusCode.INTERNAL, "Exception deserializing request!")
    try:
        result = method.unary_unary(message, context)
    except Exception as error:  # noqa: BLE001 - whatever users' code raises
        return _failed(context, error, "calling application")
    try:
        serialize = method.response_serializer
        payload = _require_bytes(result if serialize is None else serialize(result))
    except Exception:
        logger.exception("%r: serializing the response failed", request)
        return context.fail(StatusCode.INTERNAL, "Failed to serialize response!")
    return payload if context.is_plain else context.response(payload)


def _require_bytes(payload: Any) -> bytes:
    if not isinstance(payload, bytes):
        raise TypeError(f"the response is {type(payload).__name__}, not bytes")
    return payload


def _failed(context: Context, error: Exception, doing: str) -> Response:
    """What answers a call whose method raised; called while that is being handled."""
    if context.aborted:  # the method's own wish: no traceback
        return context.fail(StatusCode.UNKNOWN, "RPC Aborted")
    try:
        problem = f"Exception {doing}: {error}"
    except Exception:  # noqa: BLE001 - its own __str__ may fail
        problem = "Calling application raised unprintable Exception!"
    logger.exception("%r: its servicer failed", context.request)
    return context.fail(StatusCode.UNKNOWN, problem)


def streaming_of(methods: Mapping[str, Any]) -> list[str]:
    """The paths of those methods that stream."""
    return [
        path
        for path, method in methods.items()
        if method.request_streaming or method.response_streaming
    ]


# What may be registered


def require_interceptors(interceptors: Any) -> tuple[grpc.ServerInterceptor, ...]:
    """Interceptors. Raises :class:`ConfigurationError` for what is none."""
    remedy = "give a list of grpc.ServerInterceptor objects"
    try:
        given = tuple(interceptors)
    except TypeError:
        refuse("interceptors", interceptors, "not a list", remedy)
    for each in given:
        intercept = getattr(each, "intercept_service", None)
        if not callable(intercept) or inspect.isclass(each):
            refuse("interceptors", each, "not an interceptor", remedy)
        if inspect.iscoroutinefunction(intercept):
            refuse("interceptors", each, "is asynchronous (grpc.aio)", remedy)
    return given


def _require_method(path: str, method: Any) -> None:
    behaviors = [getattr(method, name, None) for name in _BEHAVIORS]
    behavior = next((each for each in behaviors if each is not None), None)
    if not callable(behavior):
        remedy = "give what grpc.unary_unary_rpc_method_handler(...) and its like return"
        refuse(f"handler of {path}", method, "not a grpc.RpcMethodHandler with a function", remedy)
    if inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior):
        refuse(
            f"handler of {path}",
            behavior,
            "is asynchronous (grpc.aio)",
            "servicers run in threads: write def, and asyncio.run_coroutine_threadsafe(...) in it"
            " for what belongs to a loop, or let the gateway dial the server as it is",
        )
