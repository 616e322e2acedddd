"""HTTP requests from outside, each as a streaming call of the service that answers its host.

What a request and its response are on the tunnel is written down in ``protos/web.proto``.
Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import email.utils
import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from revconn._proto.web_pb2 import Header
from revconn._proto.web_pb2 import RequestHead as WebHead
from revconn.core.metadata import Metadata
from revconn.core.rope import Data, Piece
from revconn.core.status import ProtocolError, StatusCode, http_status
from revconn.core.web import (
    SERVE,
    body_parts,
    is_bodiless,
    read_response_part,
    request_part,
    travelling,
)
from revconn.gateway.peers import Exchange, Peer
from revconn.gateway.refusals import Refused
from revconn.gateway.shared import Shared
from revconn.gateway.streaming import StreamingCall, StreamingCalls
from revconn.http2.headers import field
from revconn.http2.requests import RequestHead
from revconn.http2.streams import ErrorCode, Stream
from revconn.settings.checks import refuse, require_service_name

__all__ = ["ANY_HOST", "WebCalls", "parse_hosts"]

ANY_HOST = "*"

_HOST = re.compile(r"\*|[\w.-]+|\[[0-9A-Fa-f:.]+\]")
_LARGEST_PROBLEM = 500  # characters of a refusal that are told


class WebCalls:
    """Takes the HTTP requests.

    :param hosts: the service that answers each host, :data:`ANY_HOST` being all others.
    """

    def __init__(self, shared: Shared, streaming: StreamingCalls, hosts: Mapping[str, str]) -> None:
        self._shared = shared
        self._streaming = streaming
        self._calls = {host: _call_of(service) for host, service in hosts.items()}

    def serve(self, stream: Exchange, head: RequestHead, peer: Peer) -> None:
        """Have a request answered."""
        host = _host_of(head.authority)
        call_head = self._calls.get(host) or self._calls.get(ANY_HOST)
        if call_head is None:
            peer.endpoint.charge(2)
            call = WebCall(stream, head, head, peer.address, self._streaming)
            call.refuse_with(404, f"no service answers {host[:100] or 'requests without a host'}")
            return
        call_head = call_head.with_timeout(b"", head.size)
        call = WebCall(stream, head, call_head, peer.address, self._streaming)
        try:
            if head.size > self._shared.limits.max_metadata_bytes:
                raise self._shared.too_much_metadata(head.size)
            call.start()
        except Refused as refused:
            peer.endpoint.charge(2)
            call.turn_away(refused)


class WebCall(StreamingCall):
    """One request and its response."""

    __slots__ = ("_is_answered", "_is_bodiless", "_request")

    def __init__(
        self,
        stream: Exchange,
        request: RequestHead,
        head: RequestHead,
        peer: str,
        calls: StreamingCalls,
    ) -> None:
        super().__init__(cast(Stream, stream), head, peer, calls)
        self._request = request
        self._is_answered = False  # the head of the response was sent
        self._is_bodiless = request.method == b"HEAD"

    def start(self) -> None:
        """Find who answers it, and tell it of the request. Raises :class:`Refused`."""
        super().start()
        super().take([request_part(self._head())], ended=False)

    def _head(self) -> WebHead:
        request = self._request
        lines = [(each.name, each.value) for each in request.fields]
        if request.content_length >= 0:
            lines.append((b"content-length", b"%d" % request.content_length))
        cookies = [value for name, value in lines if name == b"cookie"]
        if len(cookies) > 1:  # HTTP/2 divides what is one line elsewhere (RFC 9113, section 8.2.3)
            lines = [line for line in lines if line[0] != b"cookie"]
            lines.append((b"cookie", b"; ".join(cookies)))
        return WebHead(
            method=request.method.decode("latin-1"),
            target=request.path,
            scheme=request.scheme.decode("latin-1"),
            authority=request.authority.decode("latin-1"),
            version=self._exchange.version,
            headers=[Header(name=name, value=value) for name, value in travelling(lines)],
        )

    @property
    def _exchange(self) -> Any:
        return self.stream

    def take(self, messages: list[Data], *, ended: bool) -> None:
        """Some of the request's body has come, or its end."""
        parts = [part for piece in messages for part in body_parts(cast(Piece, piece))]
        super().take(cast("list[Data]", parts), ended=ended)

    # What is answered

    def begin(self, metadata: Metadata = ()) -> None:
        """Nothing: the head of the response is the first part of the answer."""

    def send(self, messages: Sequence[Any]) -> None:
        """Pass on parts of the response."""
        for message in messages:
            if self.is_over:
                return
            try:
                self._answer_with(read_response_part(message))
            except ProtocolError as error:
                problem = f"the service's answer is not HTTP: {error}"
                self.turn_away(Refused(StatusCode.INTERNAL, problem))

    def _answer_with(self, part: Any) -> None:
        if not hasattr(part, "status"):
            if not self._is_answered:
                raise ProtocolError("a body without a head")
            if len(part) and not self._is_bodiless:
                self._exchange.write(part)
            return
        if self._is_answered:
            raise ProtocolError("a second head")
        if 100 <= part.status < 200:  # hints: the response is still to come
            return
        if not 200 <= part.status <= 999:
            raise ProtocolError(f"status {part.status}")
        headers = list(travelling((line.name, line.value) for line in part.headers))
        if not any(name == b"date" for name, _ in headers):
            headers.append((b"date", email.utils.formatdate(usegmt=True).encode()))
        self._is_bodiless = is_bodiless(self._request.method, part.status)
        self._exchange.answer(part.status, headers)
        self._is_answered = True

    def finish(
        self,
        code: StatusCode = StatusCode.OK,
        message: str = "",
        trailing: Metadata = (),
        initial: Metadata = (),
    ) -> None:
        """End the response, behind all that was sent, or break it off."""
        if self.is_over:
            return
        if code is not StatusCode.OK and not self._is_answered:
            self.refuse_with(http_status(code), message[:_LARGEST_PROBLEM])
            return
        self.is_over = True
        if code is StatusCode.OK and self._is_answered:
            self._complete()
        elif code is StatusCode.OK:
            self.is_over = False
            self.refuse_with(502, "the service has sent no response")
        else:
            self._exchange.reset(ErrorCode.INTERNAL_ERROR)

    def refuse_with(self, status: int, problem: str) -> None:
        """Answer in the service's place."""
        self.is_over = True
        exchange = self._exchange
        words = f"{problem}\n".encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(words)),
        ]
        exchange.answer(status, headers)
        if not self._is_bodiless:
            exchange.write(words)
        self._complete()

    def _complete(self) -> None:
        try:
            self._exchange.end()
        except ProtocolError:  # less than its content-length: the peer must not take it for all
            self._exchange.reset(ErrorCode.INTERNAL_ERROR)


def parse_hosts(http: Any) -> dict[str, str]:
    """The service of each host, as ``Gateway(http=)`` has it.

    Raises :class:`ConfigurationError` for what is none, and without h11.
    """
    if http is None:
        return {}
    hosts = {ANY_HOST: http} if isinstance(http, str) else http
    if not isinstance(hosts, Mapping) or not hosts:
        remedy = 'give a service, or a dict such as {"shop.example.com": "web.Shop"}'
        refuse("http", http, "names no service", remedy)
    for host, service in hosts.items():
        require_service_name("http", service)
        if not isinstance(host, str) or not _HOST.fullmatch(host):
            remedy = 'write a host without scheme, port and path, or "*"'
            refuse("http", host, "not a host", remedy)
    if importlib.util.find_spec("h11") is None:
        refuse("http", http, "needs h11", "pip install 'revconn[http]'")
    return {host.lower(): service for host, service in hosts.items()}


def _call_of(service: str) -> RequestHead:
    """The head of a call that answers HTTP requests."""
    path = f"/{service}/{SERVE}".encode()
    pseudo = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path))
    return RequestHead([field(name, value) for name, value in pseudo], 0)


def _host_of(authority: bytes) -> str:
    """Without a port."""
    host, colon, port = authority.decode("latin-1").lower().rpartition(":")
    return host if colon and (port.isdigit() or not port) else authority.decode("latin-1").lower()
