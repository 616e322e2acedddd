"""WSGI applications (Flask, Django, …) as a handler: an HTTP request is a streaming call.

What travels is written down in ``protos/web.proto``. An application is called in a worker, and what
it returns is iterated in the same thread to its end: it may have things that are bound to one.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Callable
from urllib.parse import unquote_to_bytes

from revconn._proto.web_pb2 import RequestHead
from revconn.core.status import ProtocolError, StatusCode
from revconn.core.web import body_parts, read_request_part, response_part
from revconn.exceptions import RequestError
from revconn.logger import get_logger
from revconn.serving.stream_requests import Behavior, Ending, StreamRequest
from revconn.serving.streaming_handlers import Opener

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["WSGIHandler", "peer_of", "split_authority"]

logger = get_logger(__name__)

_READ_BYTES = 64 << 10
_LONGEST_PORT = 5  # digits
_DEFAULT_PORTS = {"http": "80", "https": "443"}
# httpoxy: what a caller calls "proxy" would become the variable that HTTP libraries obey.
_DROPPED = frozenset((b"proxy",))


class WSGIHandler(Opener):
    """A handler that has a WSGI application answer."""

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app

    def open(self, request: StreamRequest) -> Behavior:
        """What answers one request."""
        return _Exchange(self.app, request)


class _Exchange(Behavior):
    """One request and its response."""

    reads = yields = is_bound = True

    def __init__(self, app: Callable[..., Any], request: StreamRequest) -> None:
        self._app = app
        self._request = request
        self._head: bytes | None = None  # of the response
        self._is_begun = False  # it was sent

    def invoke(self, argument: Iterator[bytes]) -> Iterator[bytes]:
        """Call the application."""
        return self._respond(argument)

    def _respond(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        head = read_request_part(next(parts, b""))
        if not isinstance(head, RequestHead):
            raise RequestError(StatusCode.INVALID_ARGUMENT, "the first part is no request's head")
        body: Any = io.BufferedReader(_Body(parts), _READ_BYTES)
        result = self._app(_environ(head, body, self._request.peer), self._start_response)
        try:
            for data in result:
                if data:
                    parts_of_it = body_parts(
                        memoryview(data)
                    )  # before all else: it may be no bytes
                    yield from self._begin()
                    yield from parts_of_it
            yield from self._begin()
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def _begin(self) -> Iterator[bytes]:
        """The head of the response, before all else."""
        if self._head is None:
            raise AssertionError("the application did not call start_response")
        if not self._is_begun:
            self._is_begun = True
            yield self._head

    def _write(self, data: bytes) -> None:
        """Say some of the body from within the application, which waits while there is no room."""
        calls, request = self._request._owner, self._request
        for part in (*self._begin(), *body_parts(data)):
            calls.wait_for_room(request)
            if request._is_over:
                raise self.interrupted()
            calls.write(request, part)

    def _start_response(
        self, status: str, headers: Iterable[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        if exc_info is not None:
            try:
                if self._is_begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # a cycle of frames, otherwise
        elif self._head is not None:
            raise AssertionError("start_response was called twice")
        lines = ((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers)
        self._head = response_part(
            int(status[:3]), ((name.lower(), value) for name, value in lines)
        )
        return self._write

    def failed(self, error: Exception, doing: str) -> Ending:
        """The log alone knows more."""
        if isinstance(error, RequestError):
            return error.code, error.message, ()
        if self._request.is_active():
            logger.exception("%r: the WSGI application failed", self._request)
        else:
            logger.debug("%r: it was given up: %s", self._request, error)
        return StatusCode.INTERNAL, "internal error", ()

    def interrupted(self) -> Exception:
        """As a socket tells of a caller that has gone."""
        return ConnectionResetError(self._request._why[1])


class _Body(io.RawIOBase):
    """The body of a request, as it comes."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Some of it, or nothing at its end. Waits for the next part where there is none."""
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            data = read_request_part(part)
            if isinstance(data, RequestHead):
                raise ProtocolError("a second head")
            self._rest = memoryview(data)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _environ(head: RequestHead, body: Any, peer: str) -> dict[str, Any]:
    path, _, query = head.target.partition(b"?")
    server, port = split_authority(head.authority, head.scheme)
    client, client_port = peer_of(peer)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": head.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query.decode("latin-1"),
        "RAW_URI": head.target.decode("latin-1"),
        "SERVER_NAME": server,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": f"HTTP/{head.version}",
        "REMOTE_ADDR": client,
        "REMOTE_PORT": client_port,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": head.scheme,
        "wsgi.input": body,
        "wsgi.input_terminated": True,  # its end is the body's, whatever its length was said to be
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if head.authority:
        environ["HTTP_HOST"] = head.authority
    for header in head.headers:
        # A name with an underscore would be taken for one with a hyphen, which others have checked.
        if b"_" in header.name or header.name in _DROPPED:
            continue
        name = header.name.decode("latin-1").upper().replace("-", "_")
        key = name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"
        value = header.value.decode("latin-1")
        before = environ.get(key)
        environ[key] = value if before is None else f"{before},{value}"
    return environ


def split_authority(authority: str, scheme: str) -> tuple[str, str]:
    """The host and the port that a caller named, both as text."""
    host, colon, port = authority.rpartition(":")
    if not (colon and port.isdecimal() and len(port) <= _LONGEST_PORT):
        host, port = authority, _DEFAULT_PORTS.get(scheme, "")
    return host.strip("[]") or "localhost", port


def peer_of(peer: str) -> tuple[str, str]:
    """The address and the port of who calls, from how gRPC writes them."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return "", ""
    host, _, port = rest.rpartition(":")
    return host.strip("[]"), port
