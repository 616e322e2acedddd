"""ASGI applications (FastAPI, …) as a handler: an HTTP request is a streaming call.

What travels is written down in ``protos/web.proto``. All requests of an application run on one
event loop, in a thread of its own, and hold no worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Iterable, Iterator, MutableMapping
from typing import Any, Callable
from urllib.parse import unquote_to_bytes

from revconn._proto.web_pb2 import RequestHead
from revconn.core.status import ProtocolError, StatusCode
from revconn.core.web import body_parts, read_request_part, response_part
from revconn.exceptions import RevconnError
from revconn.logger import get_logger
from revconn.runtime.threads import guarded_thread, own_thread
from revconn.serving.handlers import name_of
from revconn.serving.stream_requests import Behavior, EndCall, Ending, StreamRequest
from revconn.serving.streaming_handlers import Opener
from revconn.serving.wsgi import peer_of, split_authority

__all__ = ["ASGIApplication", "ASGIHandler"]

logger = get_logger(__name__)

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
ASGIApplication = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_VERSION = {"version": "3.0", "spec_version": "2.3"}
_SHUTDOWN_TIMEOUT = 5.0  # seconds that an application has to end
_SLOW_START = 10.0  # seconds after which one that starts up is told of
_ENDED: Ending = (StatusCode.UNAVAILABLE, "the application has ended", ())


class ASGIHandler(Opener):
    """Has an ASGI application answer, from :meth:`start` to :meth:`begin_stop`."""

    def __init__(self, app: ASGIApplication) -> None:
        self._app = app
        self._lock = threading.Lock()  # guards what follows, and that the loop is set
        self._thread: threading.Thread | None = None
        self._is_to_end = self._is_closed = False  # closed: no request begins any more
        self._exchanges: set[_Exchange] = set()  # that were spawned and are not over
        self._error: BaseException | None = None
        self._on_failure: Callable[[BaseException], object] | None = None
        self._started = threading.Event()
        self._ended = threading.Event()
        self._failure: str | None = None
        # The loop's thread owns what follows.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._state: dict[str, Any] = {}

    # The application

    def start(self) -> None:
        """Have the application start up. Raises :class:`RevconnError` when it says it failed."""
        with self._lock:
            if self._thread is None:
                self._thread = guarded_thread("revconn-asgi", self._run, self._fail)
                self._thread.start()
        if not self._started.wait(_SLOW_START):
            # No limit: a migration, say, may take long, and another server would wait for it, too.
            logger.warning(
                "the ASGI application %s has not started up in %g s; it is waited for",
                name_of(self._app),
                _SLOW_START,
            )
            self._started.wait()
        if self._failure is not None:
            raise RevconnError(f"the ASGI application failed to start: {self._failure}")

    def watch(self, on_failure: Callable[[BaseException], object]) -> None:
        """Have ``on_failure`` called when its loop ends by an error; now, if it has already."""
        with self._lock:
            self._on_failure = on_failure
            error = self._error
        if error is not None:
            on_failure(error)

    def begin_stop(self) -> None:
        """Have it shut down. Idempotent."""
        with self._lock:
            self._is_to_end = True
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(self._leave)

    def wait(self, deadline: float) -> None:
        """Wait for its end, until ``deadline`` (monotonic seconds) at most."""
        with self._lock:
            thread, loop = self._thread, self._loop
        if loop is not None and thread is not threading.current_thread():
            self._ended.wait(max(0.0, deadline - time.monotonic()))

    def _leave(self) -> None:
        assert self._leaving is not None
        self._leaving.set()

    def _run(self) -> None:
        try:
            with own_thread(), contextlib.closing(asyncio.new_event_loop()) as loop:
                self._run_loop(loop)
        except BaseException as error:
            self._failure = f"its event loop ended: {error!r}"
            raise RevconnError(f"the ASGI application's event loop ended: {error!r}") from error
        finally:
            self._started.set()
            self._ended.set()

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not asyncio.run(): that waits without a limit for tasks that do not heed being cancelled.
        try:
            loop.run_until_complete(self._serve())
        finally:
            self._give_up()
            ending = loop.create_task(_cancel_tasks())
            while not ending.done():
                with contextlib.suppress(SystemExit, KeyboardInterrupt):  # of one that is cancelled
                    loop.run_until_complete(ending)
        # Python 3.12 starts no thread to wait in when the interpreter exits; but then there is
        # nothing to wait for.
        with contextlib.suppress(RuntimeError):
            loop.run_until_complete(loop.shutdown_default_executor())

    def _give_up(self) -> None:
        """Answer what the application will not: its loop has ended."""
        with self._lock:
            self._is_closed = True
            left = tuple(self._exchanges)
        for exchange in left:
            exchange.give_up()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = error
            on_failure = self._on_failure
        if on_failure is not None:
            on_failure(error)

    async def _serve(self) -> None:
        self._leaving = asyncio.Event()
        with self._lock:
            self._loop = asyncio.get_running_loop()
            if self._is_to_end:
                self._leaving.set()
        lifespan = _Lifespan(self._app, self._state)
        leaving = asyncio.ensure_future(self._leaving.wait())
        starting = asyncio.ensure_future(lifespan.start_up())
        await asyncio.wait((starting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # nobody waits for it any more
            self._failure = "it was stopped"
            return
        self._failure = starting.result()
        self._started.set()
        if self._failure is None:
            await leaving
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_SHUTDOWN_TIMEOUT)
            await lifespan.shut_down()

    # Its requests

    def open(self, request: StreamRequest) -> Behavior:
        """What answers one request."""
        return _Exchange(self, request)

    def spawn(self, exchange: _Exchange) -> None:
        """Have a request answered. Thread-safe; raises :class:`EndCall` once its loop has ended."""
        with self._lock:
            if self._is_closed:
                raise EndCall(_ENDED)
            self._exchanges.add(exchange)
        self.call_soon(lambda: self._begin(exchange))

    def _begin(self, exchange: _Exchange) -> None:
        if self._is_closed:  # and it was given up
            return
        assert self._loop is not None
        task = self._loop.create_task(exchange.serve(self._app, dict(self._state)))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._forget(task, exchange))

    def _forget(self, task: asyncio.Task[None], exchange: _Exchange) -> None:
        self._tasks.discard(task)
        self._exchanges.discard(exchange)

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call it on the loop, unless that has ended. Thread-safe."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)


async def _cancel_tasks() -> None:
    """Cancel what still runs, and give it a moment to end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_SHUTDOWN_TIMEOUT)
    await asyncio.get_running_loop().shutdown_asyncgens()


class _Lifespan:
    """ASGI's own protocol of start and end, which an application need not know."""

    def __init__(self, app: ASGIApplication, state: dict[str, Any]) -> None:
        self._app = app
        self._state = state
        self._said: asyncio.Queue[Event] = asyncio.Queue()
        self._heard: asyncio.Queue[Event] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._is_up = False

    async def start_up(self) -> str | None:
        """Why the application cannot serve, if it says so or would exit."""
        scope = {"type": "lifespan", "asgi": dict(_VERSION), "state": self._state}
        self._task = asyncio.ensure_future(self._call(scope))
        event = await self._ask("lifespan.startup")
        if event is not None and event["type"] == "lifespan.startup.failed":
            return str(event.get("message") or "it does not say why")
        if isinstance(self._failure, (SystemExit, KeyboardInterrupt)):
            return repr(self._failure)
        if event is None:
            logger.debug("the ASGI application has no lifespan: %r", self._failure)
            self._task = None
        self._is_up = True
        return None

    async def shut_down(self) -> None:
        """Have the application end what it began."""
        if self._task is None:
            return
        self._is_up = False
        try:
            event = await asyncio.wait_for(self._ask("lifespan.shutdown"), _SHUTDOWN_TIMEOUT)
        except asyncio.TimeoutError:
            logger.warning("the ASGI application did not shut down in %g s", _SHUTDOWN_TIMEOUT)
            return
        if event is not None and event["type"] == "lifespan.shutdown.failed":
            logger.error("the ASGI application failed to shut down: %s", event.get("message"))

    async def _call(self, scope: dict[str, Any]) -> None:
        try:
            await self._app(scope, self._said.get, self._heard.put)
        except (SystemExit, KeyboardInterrupt) as error:
            self._failure = error
            if self._is_up:  # while it serves that ends the loop, as in any other task
                raise
        except Exception as error:  # noqa: BLE001 - it may have none
            self._failure = error

    async def _ask(self, event: str) -> Event | None:
        """What it answers; ``None`` if it ends instead."""
        assert self._task is not None
        await self._said.put({"type": event})
        answer = asyncio.ensure_future(self._heard.get())
        await asyncio.wait((answer, self._task), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        answer.cancel()
        return None


class _Exchange(Behavior):
    """One request and its response. All but :meth:`begin` and :meth:`notify` runs on the loop."""

    reads = yields = is_detached = True

    def __init__(self, handler: ASGIHandler, request: StreamRequest) -> None:
        self._handler = handler
        self._request = request
        self._calls = request._owner
        self._changed: asyncio.Event  # made on the loop: before Python 3.10 it is bound to one
        self._is_begun = self._body_has_ended = False
        self._head: bytes | None = None  # of the response
        self._has_ended = False  # all of the response was said

    def begin(self) -> None:
        """Have it answered."""
        self._handler.spawn(self)

    def notify(self) -> None:
        """Something has come, or may be said, or the call is over."""
        self._handler.call_soon(self._wake)

    def _wake(self) -> None:
        if self._is_begun:
            self._changed.set()

    def give_up(self) -> None:
        """The application will not answer it."""
        self._calls.end(self._request, _ENDED)

    async def serve(self, app: ASGIApplication, state: dict[str, Any]) -> None:
        """Call the application, and end the call."""
        self._changed = asyncio.Event()
        self._is_begun = True
        ending: Ending = (StatusCode.INTERNAL, "internal error", ())
        try:
            head = await self._next_part()
            if isinstance(head, RequestHead):
                await app(self._scope(head, state), self._receive, self._send)
                if self._request.is_active():
                    logger.error("%r: the ASGI application ended before its answer", self._request)
            else:
                ending = (StatusCode.INVALID_ARGUMENT, "the first part is no request's head", ())
        # An application that wants to end the process cannot: others' requests run here, too.
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if self._has_ended or self._request.is_active():
                logger.exception("%r: the ASGI application failed", self._request)
            else:
                logger.debug("%r: it was given up: %s", self._request, error)
        finally:
            if not self._has_ended:
                self._calls.end(self._request, ending)

    def _scope(self, head: RequestHead, state: dict[str, Any]) -> dict[str, Any]:
        path, _, query = head.target.partition(b"?")
        server, port = split_authority(head.authority, head.scheme)
        client, client_port = peer_of(self._request.peer)
        headers = [(header.name, header.value) for header in head.headers]
        if head.authority:
            headers.insert(0, (b"host", head.authority.encode("latin-1")))
        return {
            "type": "http",
            "asgi": dict(_VERSION),
            "http_version": head.version,
            "method": head.method.upper(),
            "scheme": head.scheme,
            "path": unquote_to_bytes(path).decode("utf-8", "replace"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": (client, int(client_port)) if client else None,
            "server": (server, int(port)) if port else None,
            "state": state,
        }

    async def _receive(self) -> Event:
        if not self._body_has_ended:
            part = await self._next_part()
            if isinstance(part, RequestHead):
                raise ProtocolError("a second head")
            if part is not None or self._request.is_active():
                self._body_has_ended = part is None or not self._calls.expects_more(self._request)
                more = not self._body_has_ended
                return {"type": "http.request", "body": bytes(part or b""), "more_body": more}
        while self._request.is_active() and not self._has_ended:
            await self._change()
        return {"type": "http.disconnect"}

    async def _next_part(self) -> Any:
        """The next part that the caller sends; ``None`` where nothing follows."""
        while True:
            self._changed.clear()
            message = self._calls.read(self._request)
            if message is not None:
                return read_request_part(message)
            if not (self._request.is_active() and self._calls.expects_more(self._request)):
                return None
            await self._changed.wait()

    async def _change(self) -> None:
        self._changed.clear()
        if self._request.is_active():
            await self._changed.wait()

    async def _send(self, event: Event) -> None:
        kind = event["type"]
        if kind == "http.response.start":
            if self._head is not None:
                raise RuntimeError("the response was begun already")
            status = int(event["status"])
            self._head = response_part(status, _lines(event.get("headers", ())))
        elif kind == "http.response.body":
            await self._send_body(event.get("body", b""), bool(event.get("more_body", False)))
        # Else it is of an extension that was not offered: a hint, say.

    async def _send_body(self, body: bytes, more: bool) -> None:
        if self._head is None or self._has_ended:
            raise RuntimeError("a body where there is no response")
        for part in self._parts(body):
            while self._calls.is_full(self._request):
                await self._change()
            self._calls.write(self._request, part)
        if not more:
            self._has_ended = True
            # Now, and not as the application returns: it may go on with work in the background.
            self._calls.end(self._request, (StatusCode.OK, "", ()))
        elif not self._request.is_active():
            raise ConnectionResetError(self._request._why[1])

    def _parts(self, body: bytes) -> Iterator[bytes]:
        if self._head:
            yield self._head
            self._head = b""
        yield from body_parts(body)


def _lines(headers: Iterable[Iterable[bytes]]) -> Iterable[tuple[bytes, bytes]]:
    for name, value in headers:
        yield bytes(name).lower(), bytes(value)
