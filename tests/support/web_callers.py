"""Who asks a web application: HTTP/1.1 and HTTP/2, in plaintext and TLS, each by others' code."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings

__all__ = ["Http1Caller", "Http2Caller", "RawCaller", "Reply"]

_TIMEOUT = 60.0
_GOAWAY = 7

Headers = Sequence[tuple[str, str]]


@dataclass
class Reply:
    """A response, or as much of it as came.

    :ivar reset: with what the stream was reset, if it was.
    :ivar interim: the status of each that came before.
    """

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | bytearray = field(default_factory=bytearray)
    is_whole: bool = False
    reset: int | None = None
    interim: list[int] = field(default_factory=list)

    def get_all(self, name: str) -> list[str]:
        """The values of a header."""
        return [value for each, value in self.headers if each.lower() == name]

    def get(self, name: str) -> str:
        """The one value of a header."""
        (value,) = self.get_all(name)
        return value


class _Caller:
    def close(self) -> None:
        """Go away."""
        raise NotImplementedError

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _connect(address: str, tls: ssl.SSLContext | None, alpn: Sequence[str]) -> socket.socket:
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT)
    if tls is None:
        return sock
    if alpn:
        tls.set_alpn_protocols(list(alpn))
    return tls.wrap_socket(sock, server_hostname=host)


class RawCaller(_Caller):
    """A socket: what is sent is what a test says, octet by octet."""

    def __init__(
        self, address: str, tls: ssl.SSLContext | None = None, alpn: Sequence[str] = ()
    ) -> None:
        self.sock = _connect(address, tls, alpn)
        self._files: list[Any] = []
        self._file = self.sock.makefile("rb")

    def say(self, data: bytes | str) -> None:
        self.sock.sendall(data.encode("latin-1") if isinstance(data, str) else data)

    def hears(self, count: int) -> bytes:
        """So many bytes, or fewer at the end."""
        return self._file.read(count)

    def hears_line(self) -> bytes:
        return self._file.readline()

    def hears_rest(self) -> bytes:
        """All that still comes, to the end."""
        with contextlib.suppress(ConnectionResetError):
            return self._file.read()
        return b""

    def hears_reply(self, method: str = "GET") -> Reply:
        """The next response."""
        response = http.client.HTTPResponse(_Reading(self._file), method=method)
        response.begin()
        return _read(response)

    @property
    def is_ended(self) -> bool:
        """Whether the other end has closed; waits for that or for what comes."""
        try:
            return not self._file.peek(1)
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self._file.close()
        self.sock.close()


class _Reading:
    """In the place of a socket, for HTTPResponse: what was read ahead stays."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def makefile(self, mode: str) -> Any:
        return _Kept(self._file)


class _Kept:
    """A file that is closed by nobody but its owner."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def close(self) -> None:
        pass


def _read(response: http.client.HTTPResponse) -> Reply:
    reply = Reply(response.status, response.getheaders())
    try:
        reply.body = response.read()
        reply.is_whole = True
    except http.client.IncompleteRead as error:
        reply.body = error.partial
    except ConnectionResetError:
        pass
    return reply


class Http1Caller(_Caller):
    """HTTP/1.1, as http.client speaks it, on one connection."""

    version = "1.1"

    def __init__(self, address: str, tls: ssl.SSLContext | None = None) -> None:
        host, _, port = address.rpartition(":")
        self.scheme = "http" if tls is None else "https"
        if tls is None:
            self.http = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT)
        else:
            tls.set_alpn_protocols(["http/1.1"])
            self.http = http.client.HTTPSConnection(host, int(port), timeout=_TIMEOUT, context=tls)

    def ask(
        self,
        method: str,
        target: str,
        headers: Headers = (),
        body: bytes | Iterable[bytes] | None = None,
        host: str | None = None,
    ) -> Reply:
        """One request, and its response; a body that is no bytes goes in chunks."""
        self.begin(method, target, headers, body, host)
        return _read(self.http.getresponse())

    def begin(
        self,
        method: str,
        target: str,
        headers: Headers = (),
        body: bytes | Iterable[bytes] | None = None,
        host: str | None = None,
    ) -> None:
        """One request."""
        self.http.putrequest(method, target, skip_host=host is not None, skip_accept_encoding=True)
        if host is not None:
            self.http.putheader("Host", host)
        for name, value in headers:
            self.http.putheader(name, value.encode("latin-1"))
        is_chunked = body is not None and not isinstance(body, bytes)
        if is_chunked:
            self.http.putheader("Transfer-Encoding", "chunked")
        elif body is not None:
            self.http.putheader("Content-Length", str(len(body)))
        self.http.endheaders(body, encode_chunked=is_chunked)

    def pieces(self) -> Iterator[bytes]:
        """The body of the response as it comes."""
        response = self.http.getresponse()
        while piece := response.read1(1 << 16):
            yield piece

    def close(self) -> None:
        self.http.close()


class Http2Caller(_Caller):
    """HTTP/2, as h2 speaks it. It opens windows for what it has read, and for no more."""

    version = "2"

    def __init__(
        self, address: str, tls: ssl.SSLContext | None = None, *, window: int | None = None
    ) -> None:
        self.scheme = "http" if tls is None else "https"
        self.address = address
        self.sock = _connect(address, tls, ["h2"])
        config = h2.config.H2Configuration(
            header_encoding="latin-1",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config)
        self.replies: dict[int, Reply] = {}
        self._held = b""
        self.opens_windows = True
        self.is_ended = False
        if window is not None:
            self.h2.local_settings.initial_window_size = window
        self.h2.initiate_connection()
        self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(self.h2.data_to_send())

    def begin(
        self,
        method: str,
        target: str,
        headers: Headers = (),
        *,
        host: str | None = None,
        ended: bool = True,
        pseudo: Headers | None = None,
    ) -> int:
        """Send the head of a request; its stream's id."""
        stream_id = self.h2.get_next_available_stream_id()
        if pseudo is None:
            authority = self.address if host is None else host
            pseudo = [(":method", method), (":scheme", self.scheme), (":path", target)]
            pseudo += [(":authority", authority)] if authority else []
        fields = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in (*pseudo, *headers)]
        self.replies[stream_id] = Reply()
        self.h2.send_headers(stream_id, fields, end_stream=ended)
        self._flush()
        return stream_id

    def send(self, stream_id: int, data: bytes, *, ended: bool = False) -> None:
        """Some of a body; waits until the windows allow it."""
        view = memoryview(data)
        while view:
            if self.is_over(stream_id):
                return
            room = self.h2.local_flow_control_window(stream_id)
            size = min(room, self.h2.max_outbound_frame_size, len(view))
            if size:
                self.h2.send_data(stream_id, bytes(view[:size]))
                view = view[size:]
                self._flush()
            else:
                self.hear()
        if ended:
            self.h2.end_stream(stream_id)
            self._flush()

    def is_over(self, stream_id: int) -> bool:
        reply = self.replies[stream_id]
        return self.is_ended or reply.is_whole or reply.reset is not None

    def hear(self) -> list[Any]:
        """Take in what comes next; waits for it."""
        try:
            data = self.sock.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            self.is_ended = True
            return []
        events = self.h2.receive_data(self._without_goodbyes(data))
        for event in events:
            self._note(event)
        self._flush()
        return events

    def _without_goodbyes(self, data: bytes) -> bytes:
        """Whole frames, but for GOAWAY without an error, after which h2 takes nothing more."""
        self._held += data
        frames = []
        while len(self._held) >= 9:
            end = 9 + int.from_bytes(self._held[:3], "big")
            if len(self._held) < end:
                break
            frame, self._held = self._held[:end], self._held[end:]
            if not (frame[3] == _GOAWAY and frame[13:17] == bytes(4)):
                frames.append(frame)
        return b"".join(frames)

    def _note(self, event: Any) -> None:
        reply = self.replies.get(getattr(event, "stream_id", None) or 0, Reply())
        if isinstance(event, h2.events.ResponseReceived):
            fields = [(str(name), str(value)) for name, value in event.headers]
            reply.status = int(dict(fields)[":status"])
            reply.headers = [each for each in fields if not each[0].startswith(":")]
        elif isinstance(event, h2.events.InformationalResponseReceived):
            reply.interim.append(int(dict(event.headers)[":status"]))
        elif isinstance(event, h2.events.DataReceived):
            reply.body += event.data
            if self.opens_windows:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            reply.is_whole = True
        elif isinstance(event, h2.events.StreamReset):
            if not (reply.is_whole and event.error_code == h2.errors.ErrorCodes.NO_ERROR):
                reply.reset = int(event.error_code)
        elif isinstance(event, h2.events.ConnectionTerminated) and event.error_code:
            self.is_ended = True

    def reply(self, stream_id: int) -> Reply:
        """A response, as far as it comes."""
        while not self.is_over(stream_id):
            self.hear()
        return self.replies[stream_id]

    def ask(
        self,
        method: str,
        target: str,
        headers: Headers = (),
        body: bytes | Iterable[bytes] | None = None,
        host: str | None = None,
    ) -> Reply:
        """One request, and its response; a body that is no bytes has no content-length."""
        if isinstance(body, bytes):
            headers = [*headers, ("content-length", str(len(body)))]
        lower = [(name.lower(), value) for name, value in headers]
        stream_id = self.begin(method, target, lower, host=host, ended=body is None)
        if body is not None:
            for piece in [body] if isinstance(body, bytes) else body:
                self.send(stream_id, piece)
            self.send(stream_id, b"", ended=True)
        return self.reply(stream_id)

    def give_up(self, stream_id: int) -> None:
        """Reset a stream."""
        self.h2.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
        self._flush()

    def close(self) -> None:
        self.sock.close()
