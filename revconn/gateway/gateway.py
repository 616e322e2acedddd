"""Gateway: the façade for synchronous code, and the thread that each run of it serves on."""

from __future__ import annotations

import atexit
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from revconn.gateway.keys import ApiKeys, ApiKeysGiven
from revconn.gateway.limits import Limits
from revconn.gateway.report import ConnectionInfo
from revconn.gateway.shared import Settings, Shared, stats_of
from revconn.gateway.thread import GatewayThread
from revconn.gateway.tls import ServerTLS
from revconn.gateway.web import parse_hosts
from revconn.logger import get_logger
from revconn.settings.checks import (
    refuse,
    require_attribute,
    require_count,
    require_flag,
    require_seconds,
)

__all__ = ["Gateway"]

# Their names are what applications configure: they stay, whatever the file is called.
logger = get_logger("revconn.gateway.server")


# gRPC counts a message's bytes in 32 bits, and what is over the limit but not by far, up to twice
# as much, is looked at to be refused with words.
_LARGEST = {"max_message_bytes": 2**30 - 1, "max_sent_message_bytes": 2**31 - 1}
_SMALLEST = {"max_metadata_bytes": 1024}  # less has no room for what gRPC itself adds

# Stricter than a connector's target: a scheme, a path or a name and password before the host are no
# part of what a socket is bound to.
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]@]+):(?P<port>\d{1,5})")


class Gateway:
    """A gateway inside this process: connectors dial in, gRPC clients call what they serve.

    One port takes both: ``registry.RegistryService`` is for connectors, every other unary call
    is forwarded to a connector that registered its service and answered with what came back.

    :param address: the ``host:port`` to listen on; port 0 takes a free one. Or ``unix:`` and the
        path of a Unix socket, which the file's mode and directory protect.
    :param api_keys: the key or keys that connectors may show; or a dict of keys, each with
        ``None``, everything, or a list of patterns: which services it may register and, from a
        connector, call. ``"echo.Echo"`` is that service, ``"echo.*"`` every one below ``echo``,
        ``"*"`` every one. ``"publish:orders.*"`` and ``"subscribe:orders.*"`` say the same of types
        of events. A key with patterns may do nothing else. ``None`` instead of keys: whatever key
        is shown is taken, on a loopback address only.
    :param tls: :class:`ServerTLS`, or an :class:`ssl.SSLContext` of your own (for servers, and with
        ``set_alpn_protocols(["h2"])``); ``None`` for plaintext.
    :param http: the service that answers plain HTTP, on the same port, HTTP/1.1 and HTTP/2: one
        that a connector serves with :meth:`Connector.add_wsgi` or :meth:`Connector.add_asgi`. Or a
        dict of such services by the host that is asked for, ``"*"`` being any other. ``None``: what
        is not gRPC is refused. Needs ``revconn[http]``.
    :param http_send_timeout: seconds that such a caller may read nothing of its answer while there
        is something to read (60: as nginx has it); then its call is ended, and the connector's
        worker is free. ``None``: for ever, as gRPC's callers may.
    :param heartbeat_timeout: seconds without a heartbeat after which a connection is ended.
    :param request_timeout: seconds a unary call may take at most, whatever its caller would allow.
        What a service that is dialled may stream has as long to begin its answer.
    :param reconnect_grace: seconds that a call waits at most, within its deadline, for a service
        whose last connector has left, counted from that moment (2: while a process is replaced,
        by a restart or a reload, its callers notice a delay and no outage). It goes to whoever
        comes first with that service; if nobody does, its caller is told UNAVAILABLE. What waits
        is limited as if it waited for one connector. 0: such calls fail at once, as do those of a
        service that was not there.
    :param dial_backends: whether services that listen themselves may have the gateway dial them,
        with ``Register`` (on: the protocol has it). It dials what the holder of a key names: switch
        it off where those may not reach what it can. ``Register`` succeeds all the same.
    :param dial_private: whether it dials loopback, link-local and clouds' metadata addresses, too,
        whatever name leads there (off: a key would open what listens for this machine alone).
        Addresses of private networks are dialled either way.

    The rest are limits. Who meets one is told which, with RESOURCE_EXHAUSTED unless said otherwise.

    :param max_pending: calls that may wait for an answer at once (1,000: as the reference gateway
        has it; at 30 s each they bound what a dead service costs). As many more may be on their
        way in, and as many watch a service's health.
    :param max_pending_per_connection: of those, how many may wait for one connector, and how many
        may be one connector's own (500: a service that hangs leaves room for the others).
    :param max_connections: streams of connectors (10,000: each costs memory and a descriptor).
    :param max_connections_per_key: streams that registered with the same API key (5,000: a key in
        the wrong hands does not lock out the other keys).
    :param max_message_bytes: the largest message taken from a connector or a caller (4 MiB: gRPC's
        own default), below 1 GiB. A larger one ends the stream or call that it came on.
    :param max_sent_message_bytes: the largest message sent to a connector or a caller
        (100,000,000: what the protocol has connectors prepared for). A connector that announces
        less gets less.
    :param max_response_bytes: the largest response taken in chunks (64 MiB: it is held in memory
        until it is whole).
    :param max_joining_bytes: all such responses together while they are not whole (256 MiB: four
        of the largest).
    :param max_queued_bytes: what may wait to be read by one connector, apart from events, and as
        much again in events (64 MiB: sixteen of the largest requests).
    :param max_queued_events: events that may wait to be read by one connector; it loses the
        oldest beyond that (1,000: a second's worth of a busy publisher).
    :param max_subscriptions: types of events that one connector may subscribe to (1,000: each costs
        a few hundred bytes). More are not taken; status ERROR says so.
    :param max_metadata_bytes: the metadata of one call, as HTTP/2 counts it (8 KiB: what gRPC and
        most proxies take by default), at least 1 KiB.
    :param max_sockets: network connections of connectors and callers together (16,384), and fewer
        where the system allows fewer descriptors. When all are taken, those go on which nothing
        goes on: first that never made a call, then the longest idle.
    :param max_streams: calls that one connection may have open at once (256: more than other
        servers have, nginx 128 and Go's own 250, and less than ``max_pending``). It is announced:
        gRPC's clients keep further calls back; those that come all the same are refused with
        REFUSED_STREAM. Who needs more opens more channels.
    :param max_streaming_calls: calls of streaming methods that may be open at once (10,000). They
        do not count for ``max_pending``, and have no time limit but their callers' own.
    :param max_streaming_calls_per_connection: of those, at one connector (2,000), or at one service
        that is dialled. What each of them may hold here is 64 KiB each way, and a message; at the
        latter 128 KiB.
    :param max_receiving_bytes: what is still to come of requests and answers that have come in part
        (256 MiB). A quarter is for the first 128 KiB of each, beyond which messages are refused;
        what exceeds them waits for room in the rest, which has to hold the largest message. Of what
        registered connectors send, as much again may be on its way.
    :param max_unread_bytes: answers that callers have not read (256 MiB). Each ends at its call's
        deadline. Of those that stream, the large messages of services that are dialled.
    :param handshake_timeout: seconds from a connection to the first call on it, and from the
        opening of a connector's stream to its first message (10: enough for a slow network, too
        little for holding streams open without a key); then DEADLINE_EXCEEDED.
    :param idle_timeout: seconds that a connection may stay open without a call (300: clients open
        another one when they need it); ``None``: for ever.
    :param max_connection_age: seconds after which a connection is asked to go (GOAWAY), so that
        clients and connectors behind a balancer spread anew; a connector opens the next one first.
        ``None``: never.
    :param max_connection_age_grace: seconds that its calls have to end then.

    Raises :class:`ConfigurationError` for an argument that cannot be used. Every method may be
    called from any thread. A stopped gateway may be started again.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        *,
        api_keys: ApiKeysGiven = None,
        tls: ServerTLS | ssl.SSLContext | None = None,
        http: str | Mapping[str, str] | None = None,
        http_send_timeout: float | None = 60.0,
        heartbeat_timeout: float = 120.0,
        request_timeout: float = 30.0,
        reconnect_grace: float = 2.0,
        dial_backends: bool = True,
        dial_private: bool = False,
        max_pending: int = Limits.max_pending,
        max_pending_per_connection: int = Limits.max_pending_per_connection,
        max_connections: int = Limits.max_connections,
        max_connections_per_key: int = Limits.max_connections_per_key,
        max_message_bytes: int = Limits.max_message_bytes,
        max_sent_message_bytes: int = Limits.max_sent_message_bytes,
        max_response_bytes: int = Limits.max_response_bytes,
        max_joining_bytes: int = Limits.max_joining_bytes,
        max_queued_bytes: int = Limits.max_queued_bytes,
        max_queued_events: int = Limits.max_queued_events,
        max_subscriptions: int = Limits.max_subscriptions,
        max_metadata_bytes: int = Limits.max_metadata_bytes,
        max_sockets: int = Limits.max_sockets,
        max_streams: int = Limits.max_streams,
        max_streaming_calls: int = Limits.max_streaming_calls,
        max_streaming_calls_per_connection: int = Limits.max_streaming_calls_per_connection,
        max_receiving_bytes: int = Limits.max_receiving_bytes,
        max_unread_bytes: int = Limits.max_unread_bytes,
        handshake_timeout: float = Limits.handshake_timeout,
        idle_timeout: float | None = 300.0,
        max_connection_age: float | None = None,
        max_connection_age_grace: float = 30.0,
    ) -> None:
        # Whatever can be wrong is said here, in the thread of whoever made a mistake, and before
        # anything listens. What a run needs besides is built by its own thread, which owns it.
        if tls is not None and not isinstance(tls, (ServerTLS, ssl.SSLContext)):
            kind = type(tls).__name__  # no more of it: it may be a private key
            remedy = "give ServerTLS(...), an ssl.SSLContext, or None for plaintext"
            refuse("tls", None, f"is {kind}, not TLS settings", remedy)
        host, port, path = _parse_address(address)
        self._address = address
        self._keys = ApiKeys(api_keys)
        self._is_loopback = path is not None or _is_loopback(host)
        # Without keys anybody who reaches the port could serve, and so hear what others are sent.
        if not self._keys.are_checked:
            self._require_loopback()
        self._settings = Settings(
            host=host,
            port=port,
            path=path,
            keys=self._keys,
            tls=tls,
            http=parse_hosts(http),
            http_send_timeout=_optional_seconds("http_send_timeout", http_send_timeout),
            heartbeat_timeout=require_seconds("heartbeat_timeout", heartbeat_timeout),
            request_timeout=require_seconds("request_timeout", request_timeout),
            reconnect_grace=require_seconds("reconnect_grace", reconnect_grace, zero=True),
            dial_backends=require_flag("dial_backends", dial_backends),
            dial_private=require_flag("dial_private", dial_private),
            limits=_limits(
                max_pending=max_pending,
                max_pending_per_connection=max_pending_per_connection,
                max_connections=max_connections,
                max_connections_per_key=max_connections_per_key,
                max_message_bytes=max_message_bytes,
                max_sent_message_bytes=max_sent_message_bytes,
                max_response_bytes=max_response_bytes,
                max_joining_bytes=max_joining_bytes,
                max_queued_bytes=max_queued_bytes,
                max_queued_events=max_queued_events,
                max_subscriptions=max_subscriptions,
                max_metadata_bytes=max_metadata_bytes,
                max_sockets=max_sockets,
                max_streams=max_streams,
                max_streaming_calls=max_streaming_calls,
                max_streaming_calls_per_connection=max_streaming_calls_per_connection,
                max_receiving_bytes=max_receiving_bytes,
                max_unread_bytes=max_unread_bytes,
                handshake_timeout=handshake_timeout,
            ),
            idle_timeout=_optional_seconds("idle_timeout", idle_timeout),
            max_connection_age=_optional_seconds("max_connection_age", max_connection_age),
            max_connection_age_grace=require_seconds(
                "max_connection_age_grace", max_connection_age_grace, zero=True
            ),
        )
        self._lock = threading.Lock()  # guards _thread and _ended
        self._thread: GatewayThread | None = None  # of the run that goes on
        # Of the run before it only the state is kept, for its counts: a thread that has ended
        # holds a loop that is closed.
        self._ended: Shared | None = None

    def __setattr__(self, name: str, value: object) -> None:
        require_attribute(Gateway, self, name)
        super().__setattr__(name, value)

    @property
    def address(self) -> str:
        """``host:port``, with the real port once the gateway has started."""
        return self._address

    def start(self) -> Gateway:
        """Listen and serve, on a thread of the gateway's own; returns once it does.

        Raises :class:`OSError` when the address cannot be listened on, and
        :class:`RuntimeError` when the gateway is running already.
        """
        with self._lock:
            if self._thread is not None:
                raise RuntimeError("the gateway is running already")
            thread = self._thread = GatewayThread(self._settings)
        # Outside the lock: the thread takes as long as the system does to listen, and whoever asks
        # for stats() meanwhile, a log handler of that thread above all, must not wait for it.
        try:
            self._address = thread.start()
        except BaseException:
            self.stop(grace=0.0)
            raise
        atexit.register(self.stop, grace=0.0)
        logger.info("gateway listening on %s", self._address)
        return self

    def stop(self, grace: float = 5.0) -> None:
        """Take nothing new, let calls be answered for ``grace`` seconds, then end everything.

        Idempotent; while it stops, a shorter grace counts. Returns when the gateway's thread has
        ended, at most ten seconds after the grace. A call from the gateway's own thread (a log
        handler's) returns at once.
        """
        # Before anything is stopped: a grace that is none stops nothing.
        require_seconds("grace", grace, zero=True)
        with self._lock:
            thread = self._thread
        if thread is None:
            return
        if not thread.stop(grace):
            return
        with self._lock:
            if self._thread is thread:  # not yet another's, whose stop() was quicker
                self._thread = None
                self._ended = thread.shared
        atexit.unregister(self.stop)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the gateway has ended; returns at once when it does not run.

        Raises :class:`TimeoutError` after ``timeout`` seconds, and what it could not go on from, if
        that ended it. Not for the gateway's own thread.
        """
        with self._lock:
            thread = self._thread
        if thread is None:
            return
        if not thread.wait(timeout):
            raise TimeoutError(f"still running after {timeout:g} s: {self!r}")
        if thread.failure is not None:
            raise thread.failure

    def replace_keys(self, api_keys: ApiKeysGiven) -> None:
        """Accept these keys from now on, instead of those before.

        Connections whose key is not among them are ended with UNAUTHENTICATED; all others go on,
        with what they have registered. New patterns count from now on: for what is registered and
        called, and for events published and delivered. Raises :class:`ConfigurationError`, and
        changes nothing, as the constructor does.
        """
        if api_keys is None:
            self._require_loopback()
        # In force from here on, for whoever registers; then those are ended that had registered
        # before. In the other order one could slip in between.
        self._keys.replace(api_keys)
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.end_withdrawn()

    def _require_loopback(self) -> None:
        if not self._is_loopback:
            problem = f"none given, and {self._address} can be reached from elsewhere"
            refuse("api_keys", None, problem, "give a key, or listen on 127.0.0.1")

    def connections(self) -> tuple[ConnectionInfo, ...]:
        """The connectors' connections as they are now, oldest first; none when not running."""
        with self._lock:
            thread = self._thread
        return () if thread is None else thread.connections()

    def stats(self) -> dict[str, int]:
        """Numbers for monitoring, by name.

        ``connections`` and ``pending`` are how many connectors and unanswered calls there are now,
        calls that wait for a service to come back and those of backends among them.
        All others count from the last start on, and stay readable after the stop; the reference
        lists them.
        """
        with self._lock:
            shared = self._ended if self._thread is None else self._thread.shared
        return stats_of(shared)

    def __enter__(self) -> Gateway:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        with self._lock:
            state = "stopped" if self._thread is None else "running"
        return f"<Gateway {self._address} {state}>"


def _is_loopback(host: str) -> bool:
    # Not looked up: what a name resolves to may change after the check.
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _optional_seconds(name: str, value: float | None) -> float | None:
    return None if value is None else require_seconds(name, value)


def _limits(*, handshake_timeout: float, **numbers: int) -> Limits:
    """The limits, checked one by one: an error names the option that was given."""
    for name, value in numbers.items():
        require_count(name, value)
        smallest, largest = _SMALLEST.get(name, 1), _LARGEST.get(name, 2**62)
        if value > largest:
            refuse(name, value, "more than gRPC can count", f"give at most {largest:,}")
        if value < smallest:
            refuse(name, value, "less than gRPC itself needs", f"give at least {smallest:,}")
    seconds = require_seconds("handshake_timeout", handshake_timeout)
    return Limits(handshake_timeout=seconds, **numbers)


def _parse_address(address: Any) -> tuple[str, int, str | None]:
    """The host, the port, and the path of a Unix socket, if it is one."""
    if isinstance(address, str) and address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//")
        if not path or not hasattr(socket, "AF_UNIX"):
            refuse("address", address, "not an address to listen on", "write unix:/path, on Unix")
        return "", 0, path
    matched = _HOST_PORT.fullmatch(address) if isinstance(address, str) else None
    if matched is None or int(matched["port"]) > 65535:
        remedy = (
            'write host:port, such as "127.0.0.1:50051" or "[::]:50051"; port 0 takes a free one'
        )
        refuse("address", address, "not an address to listen on", remedy)
    return matched["host"], int(matched["port"]), None
