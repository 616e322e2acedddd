"""How handlers are given to a connector: one by one, by service, or as generated code does it."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, NoReturn, TypeVar, Union

from revconn.core.web import SERVE
from revconn.serving.applications import Applications
from revconn.serving.handlers import Handler, Handlers, require_handler, require_method_path
from revconn.serving.streaming_handlers import Kind, StreamHandler, StreamingHandler, kind_of
from revconn.settings.checks import refuse, require_service_name

if TYPE_CHECKING:
    import grpc
    from _typeshed.wsgi import WSGIApplication

    from revconn.serving.asgi import ASGIApplication
    from revconn.serving.servicers import Servicers

__all__ = ["HandlerRegistry"]

H = TypeVar("H", bound=Union[Handler, StreamHandler])

# A gateway answers these itself, and lets nobody register them.
_GATEWAYS_OWN = ("grpc.health.", "grpc.reflection.")


class HandlerRegistry:
    """The half of a connector that handlers are given to; ``_lock``, the connector's, guards it."""

    _lock: threading.Lock

    def __init__(self, interceptors: Iterable[grpc.ServerInterceptor]) -> None:
        self._handlers = Handlers()
        self._interceptors: tuple[Any, ...] = ()
        self._servicers: Servicers | None = None
        self._applications = Applications()
        self._has_nameless = False  # a generic handler that does not tell its service
        # Most have none: then grpc is not even imported.
        if interceptors != ():
            from revconn.serving.servicers import require_interceptors

            self._interceptors = require_interceptors(interceptors)

    # For heirs to say

    def _refuse_fork(self) -> None:
        """Raise if this was left behind by a fork."""

    def _registered_services(self) -> tuple[str, ...] | None:
        """What is served, once that cannot become more; requires the lock."""
        return None

    # One by one

    def method(
        self, path: str, *, kind: Kind | None = None, inline: bool = False, replace: bool = False
    ) -> Callable[[H], H]:
        """Decorate the handler of one method; see :meth:`add_method`."""

        def register(handler: H) -> H:
            self.add_method(path, handler, kind=kind, inline=inline, replace=replace)
            return handler

        return register

    def add_method(
        self,
        path: str,
        handler: Handler | StreamHandler,
        *,
        kind: Kind | None = None,
        inline: bool = False,
        replace: bool = False,
    ) -> None:
        """Handle one method, ``/package.Service/Method``, and register its service.

        ``handler(request)`` returns bytes, a protobuf message, a :class:`Response` or ``None``,
        or raises :class:`RequestError`. It runs in a worker thread, and in a fresh context
        (``contextvars``): what one request sets no other sees.

        ``kind`` is ``"unary"``, ``"server_streaming"``, ``"client_streaming"`` or
        ``"bidirectional_streaming"`` (``None``: a generator streams its answers, all else is
        unary). A method that streams its answers yields bytes or protobuf messages; one that
        streams requests iterates over ``request.messages()``. Between two answers a generator may
        go on in another thread.

        ``inline`` promises that the handler never blocks (no I/O, no waiting, microseconds of
        work): it then runs in the thread that receives, which saves a small request about half
        its cost. A handler that breaks the promise holds up its whole connection, and is named in
        the log.

        ``replace`` lets it take the place of a handler of the same method, inline or not, if there
        is one. Requests that come from then on meet the new one, and so do those that still wait
        for a worker; those that run already end as they began.

        Raises :class:`ConfigurationError` for a bad path, an asynchronous function, a kind that is
        not that of a generator, a streaming method that is to be inline, a second handler of one
        method, or a new service after the start.
        """
        service, key = require_method_path(path)
        require_handler(handler)
        kind = kind_of(handler, kind)
        streams = kind != "unary"
        if streams and inline:
            refuse("inline", inline, "not for a method that streams", "leave it out")
        serve: Any = StreamingHandler(handler, kind) if streams else handler

        def add() -> None:
            is_new = key not in self._handlers.streaming_methods
            if streams and is_new and self._registered_services() is not None:
                # Gateways are told as a connection begins: this one would not know.
                refuse("path", path, "streams, and is new after the start", "add it before start()")
            self._handlers.add_method(key, serve, inline=inline, replace=replace, streams=streams)

        self._add(service, add)

    def add_service(self, name: str, handler: Handler, *, replace: bool = False) -> None:
        """Handle every method of a service that has no handler of its own.

        Its child services too: a gateway resolves ``a.B.C`` to ``a.B`` when only that is
        registered. Otherwise as :meth:`add_method`.
        """
        require_service_name("service", name)
        require_handler(handler)
        if kind_of(handler, None) != "unary":
            remedy = "register each streaming method by its path, with add_method()"
            refuse("handler", handler, "is a generator", remedy)
        self._add(name, partial(self._handlers.add_service, name, handler, replace=replace))

    def _add(self, service: str, add: Callable[[], None]) -> None:
        require_service_name("service", service)
        self._refuse_fork()
        with self._lock:
            self._require_known(service)
            add()

    def _require_known(self, service: str) -> None:
        """Services are registered as a connection begins: a gateway would not hear of a new one."""
        known = self._registered_services()
        if known is not None and service not in known:
            refuse("service", service, "is new after the start", "add it before start()")

    # As grpc.Server has it

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]
    ) -> None:
        """Serve a servicer; :class:`grpc.Server`'s own call.

        So ``add_XServicer_to_server(servicer, connector)``, as generated, works unchanged. Methods
        run in worker threads, and through the connector's ``interceptors``. A handler that does not
        tell its service's name serves what else is called of the connector's ``services``.

        Raises :class:`ConfigurationError` for an asynchronous servicer (``grpc.aio``), what is no
        handler, a service that has one already, or a new service after the start.
        """
        for handler in generic_rpc_handlers:
            self._refuse_fork()
            with self._lock:
                servicers = self._make_servicers()
            name = servicers.require_generic(handler)  # asks the handler: not under the lock
            with self._lock:
                if name:
                    self._require_known(name)
                    self._handlers.add_service(name, servicers, replace=False)
                self._has_nameless |= not name
                streaming = servicers.add_generic(handler)
                if streaming is not None:
                    self._handlers.streaming_methods.update(streaming)
                if name and (streaming is None or name.startswith(_GATEWAYS_OWN)):
                    self._handlers.mixed_services.add(name)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Serve methods of a servicer by name; :class:`grpc.Server`'s own call.

        Otherwise as :meth:`add_generic_rpc_handlers`, which newer generated code calls beside it.
        """
        self._refuse_fork()
        with self._lock:
            from revconn.serving.servicers import streaming_of

            servicers = self._make_servicers()
            methods = servicers.require_methods(service_name, method_handlers)
            self._require_known(service_name)
            taken = next((path for path in methods if path in self._handlers.all.methods), None)
            if taken is not None:
                remedy = "register each servicer once"
                refuse("handler of", taken, "there is one already", remedy)
            streaming = frozenset(streaming_of(methods))
            for path in methods:
                self._handlers.add_method(
                    path, servicers, inline=False, replace=False, streams=path in streaming
                )
            servicers.add_methods(methods)

    # Web applications

    def add_wsgi(self, app: WSGIApplication, *, service: str) -> None:
        """Have a WSGI application, of Flask's or Django's, answer HTTP requests as a service.

        A gateway that was told so (``Gateway(http=)``, ``revconn gateway --http``) passes plain
        HTTP on to the ``service``: any name such as ``"web.Shop"``. The application runs in worker
        threads, ``max_streams`` of them at most, one for each request that is under way.

        Raises :class:`ConfigurationError` for what is no WSGI application, a second one of the same
        service, or a new service after the start.
        """
        from revconn.serving.wsgi import WSGIHandler

        _require_app(app, "environ, start_response", "give a WSGI application, or use add_asgi()")
        if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__):
            refuse("app", app, "is asynchronous (ASGI)", "give it to add_asgi()")
        self._add_web(service, WSGIHandler(app))

    def add_asgi(self, app: ASGIApplication, *, service: str) -> None:
        """Have an ASGI application, of FastAPI's or Django's, answer HTTP requests as a service.

        As :meth:`add_wsgi`; but all requests run on one event loop, in a thread of its own, and
        hold no worker. Its lifespan begins with :meth:`start`, which raises :class:`RevconnError`
        where the application says that it cannot start up, and ends with the connector. WebSockets
        do not travel.

        Raises :class:`ConfigurationError` as :meth:`add_wsgi` does.
        """
        from revconn.serving.asgi import ASGIHandler

        _require_app(app, "scope, receive, send", "give an ASGI application, or use add_wsgi()")
        handler = ASGIHandler(app)
        self._add_web(service, handler)
        self._applications.add(handler)

    def _add_web(self, service: str, handler: Any) -> None:
        def add() -> None:
            if self._registered_services() is not None:
                refuse("service", service, "is new after the start", "add it before start()")
            self._handlers.add_method(
                f"/{service}/{SERVE}", handler, inline=False, replace=False, streams=True
            )

        self._add(service, add)

    def _add_sidecar(self, service: str, sidecar: Any) -> None:
        """Have another server answer all that is called of a service, of whatever kind."""
        self._refuse_fork()
        with self._lock:
            self._require_known(service)
            self._handlers.add_service(service, sidecar, replace=False)
            self._handlers.mixed_services.add(service)

    def _make_servicers(self) -> Servicers:
        """All servicers' one handler. Requires the lock."""
        from revconn.serving.servicers import Servicers

        if self._servicers is None:
            self._servicers = Servicers(self._interceptors)
        return self._servicers

    def add_insecure_port(self, address: str) -> NoReturn:
        """Raises :class:`ConfigurationError`: there is no port, callers come by the gateway's."""
        remedy = "remove this line, and give Connector(...) the gateway's address"
        refuse("add_insecure_port()", address, "a connector listens on no port", remedy)

    def add_secure_port(self, address: str, server_credentials: object = None) -> NoReturn:
        """Raises :class:`ConfigurationError`, as :meth:`add_insecure_port`."""
        remedy = "remove this line; Connector(tls=...) says how the gateway is reached"
        refuse("add_secure_port()", address, "a connector listens on no port", remedy)

    def _services_to_register(self, named: tuple[str, ...]) -> tuple[str, ...]:
        """Those that were ``named``, and those that have a handler. Requires the lock."""
        if self._has_nameless:
            catch_all = self._make_servicers()
            for service in named:
                if not self._handlers.all.has_service(service):
                    self._handlers.add_service(service, catch_all, replace=False)
                    self._handlers.mixed_services.add(service)
        served = (name for name in self._handlers.services() if not name.startswith(_GATEWAYS_OWN))
        return tuple(dict.fromkeys((*named, *served)))


def _require_app(app: Any, arguments: str, remedy: str) -> None:
    if not callable(app):
        refuse("app", app, "not callable", remedy)
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):  # of what is written in C nothing can be told
        return
    try:
        signature.bind(*arguments.split(", "))
    except TypeError:
        refuse("app", app, f"does not take ({arguments})", remedy)
