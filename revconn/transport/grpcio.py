"""Streams over grpcio's public API: portable, and slower than a socket of our own."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable

import grpc

from revconn.core.connection import OFFER
from revconn.core.rope import Data
from revconn.core.status import Speaker, StatusCode
from revconn.http2.grpc import speaker
from revconn.logger import Mask, get_logger
from revconn.runtime.threads import guarded_thread
from revconn.settings.options import TLS
from revconn.settings.proxy import Proxy
from revconn.settings.target import Target, bare_host
from revconn.transport.base import LARGEST_MESSAGE, METHOD, Source, Stream, StreamEnded, Transport
from revconn.transport.dial import Address, Addresses

__all__ = ["GrpcioTransport", "explain"]

logger = get_logger(__name__)

_NEVER_MS = 2**31 - 2  # one more is gRPC's infinity
_WINDOW = 8 << 20  # bytes, as with http2
# Older ones leave a window that they do not measure at 64 KiB, whatever they are asked for.
_HAS_FIXED_WINDOWS = not re.match(r"1\.([0-6]?\d|7[0-3])\.", grpc.__version__)


class GrpcioTransport(Transport):
    """Opens each stream on a channel of its own.

    A channel that is kept would answer at once from its own backoff, with an old error, when
    revconn's backoff says that it is time to try again.
    """

    def __init__(
        self,
        target: Target,
        tls: TLS | None,
        proxy: Proxy | None,
        *,
        keepalive_interval: float | None,
        keepalive_timeout: float,
    ) -> None:
        self._target = target
        self._tls = tls
        self._proxy = proxy
        self._options: list[tuple[str, int | str]] = [
            ("grpc.enable_http_proxy", 0),  # not by grpcio's own reading of the environment
            ("grpc.max_receive_message_length", LARGEST_MESSAGE),  # 4 MiB is its default
            ("grpc.max_send_message_length", -1),
            # Channels to one place share a connection otherwise, and its backoff.
            ("grpc.use_local_subchannel_pool", 1),
            # gRPC would open the stream again by itself: only a link's thread opens streams.
            ("grpc.enable_retries", 0),
        ]
        if _HAS_FIXED_WINDOWS:
            # By what gRPC measures, a slow machine's network holds 100 MiB and more.
            self._options.append(("grpc.http2.bdp_probe", 0))
            self._options.append(("grpc.http2.lookahead_bytes", _WINDOW))
        # It connects to the proxy's addresses, which it takes for the gateway's, and asks for the
        # gateway as these say.
        if proxy is not None:
            self._options.append(("grpc.http_connect_server", target.destination))
            if proxy.authorization is not None:
                header = f"Proxy-Authorization:{proxy.authorization}"
                self._options.append(("grpc.http_connect_headers", header))
        self._addresses: Addresses | None = None
        host, port = target.ip or target.host, target.port
        if proxy is not None:
            host, port = proxy.host, proxy.port
        if port is not None:
            self._addresses = Addresses(host, port)
        self._keepalive_interval = keepalive_interval
        self._keepalive_timeout = keepalive_timeout

    def stream(self, source: Source, name: str) -> Stream:
        """A stream on a channel of its own, which is made when the stream is opened."""
        return _GrpcioStream(self, source, name)

    @property
    def addresses(self) -> int:
        """How many the name had; none before the first look, and for a Unix socket."""
        return 0 if self._addresses is None else self._addresses.count

    @property
    def speaks_tls(self) -> bool:
        """Whether its streams are to be encrypted."""
        return self._tls is not None

    def ping_less(self) -> None:
        """The gateway finds pings too frequent: the streams to come leave more time between."""
        if self._keepalive_interval is not None:
            self._keepalive_interval *= 2
            logger.warning(
                "%s finds keepalive pings too frequent: the interval is %g s from now on",
                self._target,
                self._keepalive_interval,
            )

    def find(self, cancelled: Callable[[], bool]) -> list[Address]:
        """The addresses to connect to, in the order to try them; none for a Unix socket."""
        if self._addresses is None:
            return []
        try:
            return self._addresses.find(cancelled)
        except OSError as error:
            reason = f"cannot connect: {error.strerror or error}"
            raise StreamEnded(StatusCode.UNAVAILABLE, reason) from None

    def failed(self, address: Address) -> None:
        """A stream that was to try this address first came to a bad end."""
        if self._addresses is not None:
            self._addresses.failed([address])

    def channel(self, addresses: Sequence[Address]) -> grpc.Channel:
        """A new channel, to these addresses in this order."""
        options = [*self._options, *self._keepalive()]
        # The addresses stand where the name would: what TLS checks and what servers read as the
        # authority has to be said.
        if self._tls is not None and self._tls.server_name is not None:
            # It becomes the authority too: grpcio lets no call go by another name.
            options.append(("grpc.ssl_target_name_override", bare_host(self._tls.server_name)))
        else:
            options.append(("grpc.default_authority", self._target.authority))
        where = _address_list(addresses) if addresses else self._target.address
        if self._tls is None:
            return grpc.insecure_channel(where, options)
        # Read for each stream: certificates are renewed under a connector that runs for months.
        credentials = grpc.ssl_channel_credentials(
            self._tls.read("ca"), self._tls.read("key"), self._tls.read("cert")
        )
        return grpc.secure_channel(where, credentials, options)

    def _keepalive(self) -> list[tuple[str, int | str]]:
        # Pings or not, the timeout bounds how long sent data may stay unacknowledged: hence a
        # ping that is never due, where an infinite interval would leave out both.
        interval = self._keepalive_interval
        interval_ms = _NEVER_MS if interval is None else min(int(interval * 1000), _NEVER_MS)
        timeout_ms = min(int(self._keepalive_timeout * 1000), _NEVER_MS)
        return [
            ("grpc.keepalive_time_ms", interval_ms),
            ("grpc.keepalive_timeout_ms", timeout_ms),
            ("grpc.http2.ping_timeout_ms", timeout_ms),  # what newer releases go by
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]


def _address_list(addresses: Sequence[Address]) -> str:
    """A target in gRPC's syntax, in which all addresses are of one family.

    IPv4 ones among IPv6 ones are written as IPv6, and connected to as IPv4 all the same.
    """
    hosts = [(_host(*place), place[1]) for _, place in addresses]
    if all(family == socket.AF_INET for family, _ in addresses):
        return "ipv4:" + ",".join(f"{host}:{port}" for host, port in hosts)
    mapped = [(host if ":" in host else f"::ffff:{host}", port) for host, port in hosts]
    return "ipv6:" + ",".join(f"[{host}]:{port}" for host, port in mapped)


def _host(host: str, _port: int, _flow: int = 0, scope: int = 0) -> str:
    return f"{host.partition('%')[0]}%25{scope}" if scope else host


class _GrpcioStream(Stream):
    """``_lock`` guards ``_channel``, ``_call`` and ``_closed``.

    ``_registration`` is the first message, from when it is sent until the gateway says anything.
    """

    def __init__(self, transport: GrpcioTransport, source: Source, name: str) -> None:
        self._transport = transport
        self._source = source
        self._name = name
        self._lock = threading.Lock()
        self._closed = False
        self._channel: grpc.Channel | None = None
        self._addresses: list[Address] = []
        self._call: Any = None  # both a grpc.Call and an iterator of bytes
        self._senders: list[threading.Thread] = []
        self._registration: bytes | None = None

    def open(self, mask: Mask) -> None:
        self._addresses = self._transport.find(self._is_closed)
        # grpcio's own threads are no `threads.Thread`: where none starts (RuntimeError) its call is
        # half made, and closing the channel, which the interpreter does last of all, waits for it.
        threading.Thread(target=int, name=f"revconn-trial-{self._name}", daemon=True).start()
        self._begin(self._transport.channel(self._addresses), self._outgoing())

    # The call is made without the lock, which close() takes: channel and call are set together, and
    # whoever comes second of the two sees what the first left.

    def _begin(self, channel: grpc.Channel, outgoing: Iterator[bytes]) -> None:
        establish: Any = channel.stream_stream(METHOD)
        call = establish(outgoing, metadata=OFFER)
        with self._lock:
            self._channel, self._call = channel, call
            closed = self._closed
        if closed:  # close() came while the channel was being made
            self._hang_up(channel, call)

    def _outgoing(self) -> Iterator[bytes]:
        """What grpcio's own consumer thread iterates over: that thread is the sender."""
        self._be_sender()
        batch = self._take()
        self._registration = bytes(batch[0]) if batch else None
        while batch is not None:
            yield from map(bytes, batch)
            batch = self._take()

    def _take(self) -> list[Data] | None:
        try:
            return self._source.take()
        except BaseException:  # a stream that only receives would be worse than none
            logger.exception("sending failed")
            self.close()
            return None

    def _be_sender(self) -> None:
        thread = threading.current_thread()
        thread.name = f"revconn-sender-{self._name}"
        self._senders.append(thread)

    def receive(self) -> list[Data]:
        assert self._call is not None, "open() comes first"
        # Not asking for the next message is all that holds a gateway back here: gRPC opens its
        # window as messages are taken.
        self._source.wait_for_room()
        try:
            message = next(self._call)
        except StopIteration:  # how grpcio tells OK
            raise StreamEnded(StatusCode.OK, "the gateway ended the stream") from None
        except grpc.RpcError as error:
            raise self._end_by(error) from None
        self._registration = None
        return [message]

    def _end_by(self, error: Any) -> StreamEnded:
        """What it means that a call failed."""
        code, details = StatusCode(error.code().value[0]), error.details() or ""
        # grpcio shows a GOAWAY by its words alone.
        if "too many pings" in details.lower():
            self._transport.ping_less()
        status_lost = code is StatusCode.CANCELLED and _RESET_WITH_CANCEL in details
        if status_lost and self._registration is not None:
            refused = self._ask_again(self._registration)
            if refused is not None:
                return self._end_by(refused)
        # What grpcio says of a failed connection is its own word, and so no gateway's.
        reason = explain(details, tls=self._transport.speaks_tls)
        whose = Speaker.STRANGER if reason != details else self._speaker(code, details)
        return StreamEnded(code, reason, whose, status_lost=status_lost)

    def _ask_again(self, registration: bytes) -> Any:
        """How the gateway refuses the registration, as grpcio raises it; ``None`` if it does not.

        HAProxy resets a stream that the gateway has ended before its client did, and then grpcio
        does not show the gateway's status. Where the client has nothing more to say it does.
        """
        self._registration = None
        with self._lock:
            channel = self._channel
        if channel is None:
            return None
        try:
            self._begin(channel, self._only(registration))
            next(self._call)
            self._call.cancel()
        except grpc.RpcError as refused:
            return refused
        except (StopIteration, ValueError, RuntimeError):
            pass  # it ended well; close() was faster; there is no thread to be had
        return None

    def _only(self, message: bytes) -> Iterator[bytes]:
        self._be_sender()
        yield message

    def _speaker(self, code: StatusCode, details: str) -> Speaker:
        """Whose word a status is: grpcio does not show whether headers had opened the stream."""
        metadata = (*self._call.initial_metadata(), *(self._call.trailing_metadata() or ()))
        return speaker(code, details, (name for name, _ in metadata))

    def metadata(self) -> Iterable[tuple[str, str | bytes]]:
        assert self._call is not None, "open() comes first"
        return [(key, value) for key, value in self._call.initial_metadata()]

    def close(self) -> None:
        with self._lock:  # decided here, done outside: ending a call may run grpcio's callbacks
            self._closed = True
            channel, call = self._channel, self._call
            self._channel = None
        if channel is not None and call is not None:
            self._hang_up(channel, call)

    def blame(self) -> None:
        """The first address: grpcio does not show to which of them it had come.

        What failed at the second is blamed on it when it is the first.
        """
        if self._addresses:
            self._transport.failed(self._addresses[0])

    def _is_closed(self) -> bool:
        with self._lock:
            return self._closed

    def _hang_up(self, channel: grpc.Channel, call: Any) -> None:
        """End the call here and now, and the connection in a thread of its own.

        A channel closes only when what it was writing has left: with a peer that reads nothing
        that takes until the system gives the peer up, after ``keepalive_timeout``.
        """
        call.cancel()
        name = f"revconn-hang-up-{self._name}"
        with contextlib.suppress(RuntimeError):  # the interpreter exits, and ends it anyway
            guarded_thread(name, channel.close).start()

    def join(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        for sender in self._senders:
            if sender is not threading.current_thread():
                sender.join(max(0.0, deadline - time.monotonic()))


# grpcio tells what went wrong in words alone, which change from release to release: these were seen
# between 1.62 and the newest. The first sign that is found counts.
_RESET_WITH_CANCEL = "RST_STREAM with error code 8"
_NO_CONNECTION = "failed to connect to all addresses"
_NOT_TRUSTED = (
    "the gateway's certificate is signed by an unknown authority (give that as TLS(ca=...)), has"
    " expired or is not yet valid"
)
_ANOTHER_KEY = (
    "the gateway's certificate is signed by another key of that authority: give its new"
    " certificate as TLS(ca=...)"
)
_EXPLANATIONS = (
    ("Hostname Verification", "the gateway's certificate is for another name"),
    ("does not match SSL", "the gateway's certificate is for another name"),
    ("Peer name", "the gateway's certificate is for another name"),
    ("certificate has expired", "the gateway's certificate has expired"),
    ("certificate is not yet valid", "the gateway's certificate is not yet valid"),
    ("local issuer", "the gateway's certificate is signed by an unknown authority"),
    ("certificate signature failure", _ANOTHER_KEY),
    ("BAD_SIGNATURE", _ANOTHER_KEY),  # in older releases
    ("self signed", "the gateway's certificate is signed by an unknown authority"),
    # OpenSSL's spelling, with which grpcio can be built.
    ("self-signed", "the gateway's certificate is signed by an unknown authority"),
    ("CERTIFICATE_VERIFY_FAILED", _NOT_TRUSTED),  # all that older releases say
    ("WRONG_VERSION_NUMBER", "what listens there does not speak TLS"),
    ("PROTOCOL_VERSION", "the gateway's TLS is too old"),
    ("ALERT_UNKNOWN_CA", "the gateway does not know who signed the client certificate"),
    (
        "ALERT_HANDSHAKE_FAILURE",
        "the gateway broke off the handshake: does it demand TLS(cert=...)?",
    ),
    ("missing selected ALPN", "the gateway speaks TLS but not HTTP/2"),
    ("Failed to create security handshaker", "TLS(ca=, cert=, key=): not PEM, or not of one pair"),
    ("http2 header with status", "what answered is no gRPC server (a proxy's error page?)"),
    ("http1.x server", "what listens there speaks HTTP/1.1, not HTTP/2"),
    ("Failed parsing HTTP/2", "what listens there does not speak HTTP/2"),
    (_RESET_WITH_CANCEL, "the gateway, or a proxy in front of it, reset the stream"),
)
_HANG_UPS = (
    "Socket closed",
    "Endpoint read failed",
    "Secure read failed",
    "Unwrap failed",
    "onnection reset",
)


def explain(details: str, *, tls: bool) -> str:
    """What grpcio says of why a call failed, led by what they mean where that is known."""
    meaning = next((meaning for sign, meaning in _EXPLANATIONS if sign in details), None)
    # A gateway that hangs up while a connection is made expects something else of it; one that does
    # so later has only ended it.
    unexplained = meaning is None and details.startswith(_NO_CONNECTION)
    if unexplained and any(sign in details for sign in _HANG_UPS):
        meaning = f"the gateway hung up at once: does it expect {_what_it_may_miss(tls)}?"
    return details if meaning is None else f"{meaning} ({details})"


def _what_it_may_miss(tls: bool) -> str:
    return "a client certificate, TLS(cert=...), or no TLS at all" if tls else "TLS"
