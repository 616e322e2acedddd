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
from revconn.logger import get_logger
from revconn.settings.checks import refuse, require_service_name

__all__ = ["ANY_HOST", "Unread", "WebCalls", "parse_hosts"]

logger = get_logger("revconn.gateway.proxy")  # the name that calls are logged by

ANY_HOST = "*"

_HOST = re.compile(r"\*|[\w.-]+|\[[0-9A-Fa-f:.]+\]")
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"/[\x21-\x7e]*|\*")
_AUTHORITY = re.compile(rb"[\w.~!$&'()*+,;=:%\[\]-]*")  # RFC 3986, without a user's name
_LENGTH = re.compile(rb"[0-9]{1,18}")
_OF_A_HOP = frozenset((b"host", b"expect"))  # the first is the authority, the second was obeyed
_NOT_SEEN = -1, -1  # the progress of a call that nobody has looked at
_LARGEST_PROBLEM = 500  # characters of a refusal that are told


class WebCalls:
    """Takes the HTTP requests.

    :param hosts: the service that answers each host, :data:`ANY_HOST` being all others.
    :ivar unread: those of them whose callers have something to read.
    """

    def __init__(
        self,
        shared: Shared,
        streaming: StreamingCalls,
        hosts: Mapping[str, str],
        send_timeout: float,
    ) -> None:
        self.unread = Unread(send_timeout)
        self._shared = shared
        self._streaming = streaming
        self._calls = {host: _call_of(service) for host, service in hosts.items()}

    def serve(self, stream: Exchange, head: RequestHead, peer: Peer) -> None:
        """Have a request answered."""
        asked = WebRequest(stream, head, peer)
        host = _host_of(asked.authority)
        served = self._calls.get(host) or self._calls.get(ANY_HOST)
        call_head = (served or head).with_timeout(b"", head.size)
        call = WebCall(asked, call_head, self._streaming, self.unread)
        if head.size > self._shared.limits.max_metadata_bytes:
            problem = self._shared.too_much_metadata(head.size).message
            call.refuse_with(431, problem)
        elif problem := asked.problem:
            call.refuse_with(501 if head.method == b"CONNECT" else 400, problem)
        elif served is None:
            call.refuse_with(404, f"no service answers {host[:100] or 'requests without a host'}")
        else:
            try:
                call.start()
            except Refused as refused:
                call.turn_away(refused)
            else:
                return
        peer.endpoint.charge(2)


class Unread:
    """Calls whose callers have not read all that there is.

    :param timeout: seconds that each may read nothing of it: the worker that answers waits.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        # How far each had come when it was last found to have moved, and when that was.
        self._calls: dict[WebCall, tuple[tuple[int, int], float]] = {}

    def add(self, call: WebCall) -> None:
        """Something waits for its caller."""
        self._calls.setdefault(call, (_NOT_SEEN, 0.0))

    def discard(self, call: WebCall) -> None:
        """It is over, or nothing waits."""
        self._calls.pop(call, None)

    def expire(self, now: float) -> None:
        """End those that have not moved for so long. To be called now and then."""
        for call, (before, since) in tuple(self._calls.items()):
            if call not in self._calls:  # it ended with another
                continue
            sent, behind = call.progress
            # Less is sent than before where only more was written, with HTTP/1.1's frame around it.
            if sent > before[0] or behind != before[1]:
                self._calls[call] = (sent, behind), now
            elif now - since >= self._timeout:
                call.stall(self._timeout)


class WebRequest:
    """What was asked, whichever version of HTTP it was asked in.

    :ivar authority: the host that it names, and its port; empty if it does not.
    :ivar problem: why nobody is to be asked this, if so.
    """

    __slots__ = ("_head", "authority", "exchange", "method", "peer", "problem")

    def __init__(self, exchange: Exchange, head: RequestHead, peer: Peer) -> None:
        self._head = head
        self.exchange: Any = exchange
        self.peer = peer
        self.method = head.method
        # What HTTP/2 does not need to have in the same place as HTTP/1.1 (RFC 9113, section 8.3.1).
        hosts = [each.value for each in head.fields if each.name == b"host"]
        self.authority = head.authority or b"".join(hosts[:1])
        self.problem = self._find_problem(hosts)

    def _find_problem(self, hosts: list[bytes]) -> str:
        if self.method == b"CONNECT" or not _METHOD.fullmatch(self.method):
            return "this method is not served here"
        if not _TARGET.fullmatch(self._head.path):
            return "the target is no path"
        if not _AUTHORITY.fullmatch(self.authority) or any(v != self.authority for v in hosts):
            return "the host is none, or not the same everywhere"
        return ""

    @property
    def target(self) -> bytes:
        """Path and query, as they were sent."""
        return self._head.path

    @property
    def expects_continue(self) -> bool:
        """Whether its body comes once the peer is told to go on."""
        return any(
            each.name == b"expect" and each.value.lower() == b"100-continue"
            for each in self._head.fields
        )

    def encode(self) -> bytes:
        """Its head, as the first part of the call. Raises :class:`ProtocolError`."""
        head = self._head
        lines = [(each.name, each.value) for each in head.fields if each.name not in _OF_A_HOP]
        if head.content_length >= 0:
            lines.append((b"content-length", b"%d" % head.content_length))
        # Of no meaning to the gateway here, but to who serves gRPC-Web.
        told = (b"grpc-timeout", head.timeout), (b"grpc-encoding", head.encoding)
        lines += [line for line in told if line[1]]
        cookies = [value for name, value in lines if name == b"cookie"]
        if len(cookies) > 1:  # HTTP/2 divides what is one line elsewhere (RFC 9113, section 8.2.3)
            lines = [line for line in lines if line[0] != b"cookie"]
            lines.append((b"cookie", b"; ".join(cookies)))
        return request_part(
            WebHead(
                method=head.method.decode("latin-1"),
                target=head.path,
                scheme=self.peer.scheme.decode("latin-1"),
                authority=self.authority.decode("latin-1"),
                version=self.exchange.version,
                headers=[Header(name=name, value=value) for name, value in travelling(lines)],
            )
        )


class WebCall(StreamingCall):
    """One request and its response."""

    __slots__ = (
        "_asked", "_exchange", "_is_answered", "_is_bodiless", "_left", "_of_unread", "_written",
    )  # fmt: skip

    def __init__(
        self, asked: WebRequest, head: RequestHead, calls: StreamingCalls, unread: Unread
    ) -> None:
        super().__init__(cast(Stream, asked.exchange), head, asked.peer.address, calls)
        self._asked = asked
        self._exchange = asked.exchange
        self._is_answered = False  # the head of the response was sent
        self._is_bodiless = asked.method == b"HEAD"
        self._left = -1  # of the body of the response, if it was said how long it is
        self._of_unread = unread
        self._written = 0  # bytes of the body

    def start(self) -> None:
        """Find who answers it, and tell it of the request. Raises :class:`Refused`."""
        asked = self._asked
        part = asked.encode()
        super().start()
        super().take([part], ended=False)
        if asked.expects_continue and not (self.is_over or self.stream.is_remote_closed):
            self._exchange.go_ahead()

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
            if not self._is_bodiless:
                self._write(part)
            elif len(part):  # nobody takes it: it need not go on
                self.is_over = True
                self._exchange.end()
                self.abandon()
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
        self._is_bodiless = is_bodiless(self._asked.method, part.status)
        if not self._is_bodiless:
            self._left = _length_of(headers)
        self._exchange.answer(part.status, headers)
        self._is_answered = True

    def _write(self, part: Piece) -> None:
        if self._left >= 0:
            self._left -= len(part)
            if self._left < 0:
                raise ProtocolError("a body longer than its content-length")
        if len(part):
            self._written += len(part)
            self._exchange.write(part)

    @property
    def progress(self) -> tuple[int, int]:
        """How much was sent, and is still to be written: either moves as its caller reads."""
        # What has left its window may wait for the network, in which nothing is told apart.
        return self._written - self._exchange.unsent_bytes, self._asked.peer.behind_bytes

    def stall(self, seconds: float) -> None:
        """Its caller has read nothing for so long."""
        target = self._asked.target
        logger.debug("%.200r from %s: not read for %g s, ended", target, self.peer, seconds)
        problem = f"nothing of the answer was read for {seconds:g} s"
        self.turn_away(Refused(StatusCode.DEADLINE_EXCEEDED, problem))

    def _account(self, stream: Stream) -> None:
        super()._account(stream)
        self._of_unread.add(self)

    def resume(self) -> None:
        """The caller has read what there was."""
        self._of_unread.discard(self)
        super().resume()

    def _forget(self) -> None:
        self._of_unread.discard(self)
        super()._forget()

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
        if self._asked.method != b"HEAD":
            exchange.write(words)
        exchange.end()

    def _complete(self) -> None:
        if self._left > 0:  # the peer must not take it for all
            self._exchange.reset(ErrorCode.INTERNAL_ERROR)
        else:
            self._exchange.end()


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
    parsed: dict[str, str] = {}
    for host, service in hosts.items():
        require_service_name("http", service)
        if not isinstance(host, str) or not _HOST.fullmatch(host):
            remedy = 'write a host without scheme, port and path, or "*"'
            refuse("http", host, "not a host", remedy)
        if host.lower() in parsed:
            refuse("http", host, "is there twice", "give each host once")
        parsed[host.lower()] = service
    if importlib.util.find_spec("h11") is None:
        refuse("http", http, "needs h11", "pip install 'revconn[http]'")
    return parsed


def _call_of(service: str) -> RequestHead:
    """The head of a call that answers HTTP requests."""
    path = f"/{service}/{SERVE}".encode()
    pseudo = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path))
    return RequestHead([field(name, value) for name, value in pseudo], 0)


def _length_of(headers: list[tuple[bytes, bytes]]) -> int:
    """How long a body is said to be; -1 if it is not. Raises :class:`ProtocolError`."""
    lengths = {value for name, value in headers if name == b"content-length"}
    if not lengths:
        return -1
    (length, *others) = lengths
    if others or not _LENGTH.fullmatch(length):
        raise ProtocolError("a content-length that is none")
    return int(length)


def _host_of(authority: bytes) -> str:
    """Without a port."""
    host, colon, port = authority.decode("latin-1").lower().rpartition(":")
    return host if colon and (port.isdigit() or not port) else authority.decode("latin-1").lower()
