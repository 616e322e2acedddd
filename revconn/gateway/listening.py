"""What listens: sockets accepted and counted, made room for, and ended when they are idle.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import random
import socket
import stat
from collections import Counter
from heapq import nsmallest
from typing import Callable

from revconn.core.status import StatusCode
from revconn.gateway.addresses import network_of
from revconn.gateway.limits import SHARE, Counters
from revconn.gateway.peers import Exchange, Peer, address_of
from revconn.gateway.receiving import Receiving
from revconn.gateway.refusals import STOPPING
from revconn.gateway.report import Journal
from revconn.gateway.shared import Settings, Shared
from revconn.gateway.tls import Contexts, TLSFilter
from revconn.gateway.wires import Turn
from revconn.http2.requests import RequestHead, refusal_block
from revconn.http2.streams import Stream
from revconn.http2.writing import Settings as Http2Settings

__all__ = ["Listener"]

_BACKLOG = 1024  # connections that the system accepts before we do
_MOST_AT_ONCE = 32  # that are accepted in one turn
_FEW_AT_ONCE = 4  # where others have to make room for them
_MADE_ROOM_FOR = 32  # connections at once, when there is no place for one more
_PAUSE = 0.5  # seconds without accepting, where there is no descriptor left
_NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# What Linux tells of a connection that was to be accepted, as of the socket that listens.
_OF_ONE_CONNECTION = frozenset(
    getattr(errno, name)
    for name in (
        "ENETDOWN", "EPROTO", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "EOPNOTSUPP",
        "ENETUNREACH", "EPERM", "ETIMEDOUT",
    )
    if hasattr(errno, name)
)  # fmt: skip
_SPARE_DESCRIPTORS = 32  # for files, the loop, and what an application opens besides
_PING_TIMEOUT = 20.0  # seconds
_SHORTEST_KEEPALIVE = 10.0  # seconds
_EARLY, _LATE = 0.9, 1.1  # of max_connection_age
# Seconds, at least, from one look at all connections to the next; but as many looks as this are
# taken in the shortest time-out, if something is due each time.
_SPACING = 3.0
_LOOKS = 4

Serve = Callable[[Stream, RequestHead, Peer], None]
ServeHttp = Callable[[Exchange, RequestHead, Peer], None]


class Listener:
    """Accepts connections, and owns them until they end.

    :param serve: who takes the calls that come.
    :param serve_http: who takes the requests that are no calls; ``None``: they are refused.
    :ivar turn: what is done at the end of a turn of the loop.
    """

    def __init__(
        self,
        settings: Settings,
        shared: Shared,
        serve: Serve,
        serve_http: ServeHttp | None = None,
    ) -> None:
        limits = settings.limits
        self._limits = limits
        self._counters: Counters = shared.counters
        self._journal: Journal = shared.journal
        self._answers = shared.answers
        self._too_much_metadata = shared.too_much_metadata
        self._loop = asyncio.get_running_loop()
        self.turn = Turn(self._loop)
        self._serve = serve
        self._serve_http = serve_http
        self.takes_http = serve_http is not None
        self._contexts = None
        if settings.tls is not None:
            self._contexts = Contexts(settings.tls, http1=self.takes_http)
        self._http2 = Http2Settings(
            max_streams=limits.max_streams,
            message_limit=limits.max_message_bytes,
            # What is over the limit, but not by far, is refused with words.
            header_list=2 * limits.max_metadata_bytes,
        )
        self._keepalive = max(_SHORTEST_KEEPALIVE, settings.heartbeat_timeout / 2)
        self._idle_timeout = settings.idle_timeout
        self._max_age = (
            math.inf if settings.max_connection_age is None else settings.max_connection_age
        )
        self._age_grace = settings.max_connection_age_grace
        # The fewest seconds until one is due that is opened or heard, or falls idle, just now.
        self._soonest = min(
            limits.handshake_timeout,
            self._keepalive,
            self._idle_timeout or math.inf,
            self._max_age * _EARLY,
        )
        self._nothing_due_before = 0.0  # monotonic seconds
        self._sockets: list[socket.socket] = []
        self._path: str | None = None  # of a Unix socket, which is removed at the end
        self._peers: dict[Peer, float] = {}  # when each is too old, or was told so; oldest first
        self._most = _most_sockets(limits.max_sockets)
        self._networks: Counter[str] = Counter()
        self.receiving = Receiving(limits.max_receiving_bytes, shared.counters)
        self._all_gone: asyncio.Future[None] | None = None

    # Listening

    def listen(self, host: str, port: int) -> int:
        """Listen there; the port. Raises :class:`OSError`."""
        wanted = f"{host}:{port}"
        try:
            infos = socket.getaddrinfo(
                host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except socket.gaierror as error:
            raise OSError(f"cannot listen on {wanted}: {error.strerror}") from None
        try:
            for family, kind, protocol, _, address in dict.fromkeys(infos):
                if self._sockets and not port:
                    address = (address[0], self.port, *address[2:])
                self._bind(socket.socket(family, kind, protocol), address)
        except OSError as error:
            self.close()
            if error.errno == errno.EADDRINUSE:
                problem = "the port is taken"
            elif error.errno == errno.EADDRNOTAVAIL:
                problem = "the host is not this machine's"
            else:
                problem = error.strerror or str(error)
            raise _cannot_listen(wanted, problem, error) from None
        return self.port

    @property
    def port(self) -> int:
        """Where the first of the sockets listens."""
        return int(self._sockets[0].getsockname()[1])

    def listen_unix(self, path: str) -> None:
        """Listen on a Unix socket. Raises :class:`OSError`."""
        with contextlib.suppress(FileNotFoundError):
            # What a process left behind that was killed: a file that nobody listens on.
            if stat.S_ISSOCK(os.stat(path).st_mode) and not _is_listened_on(path):
                os.unlink(path)
        try:
            self._bind(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path)
        except OSError as error:
            self.close()
            raise _cannot_listen(path, str(error.strerror), error) from None
        self._path = path

    def _bind(self, sock: socket.socket, address: object) -> None:
        self._sockets.append(sock)
        sock.setblocking(False)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if os.name == "posix" and sock.family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)  # type: ignore[arg-type]

    def begin(self) -> None:
        """Accept connections from now on."""
        for sock in self._sockets:
            sock.listen(_BACKLOG)
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    def _accept(self, listening: socket.socket) -> None:
        has_made_room = False
        for _ in range(_FEW_AT_ONCE if self._is_crowded else _MOST_AT_ONCE):
            try:
                sock, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in _OF_ONE_CONNECTION:
                    continue
                if error.errno not in _NONE_LEFT:
                    raise
                # The application has taken what was spared.
                self._counters.refused["max_sockets"] += 1
                if not self._make_room():
                    self._pause(listening)
                return
            if not has_made_room and not self._has_room(network_of(address_of(sock))):
                self._make_room()
                has_made_room = True  # or not: then there is none in this turn
            self._take_in(sock)

    @property
    def _is_crowded(self) -> bool:
        """Whether others have to make room for who comes: he may come again and again."""
        return self._most - len(self._peers) <= max(_MADE_ROOM_FOR, self._most // SHARE)

    def _has_room(self, network: str) -> bool:
        return self._networks[network] < SHARE * (self._most - len(self._peers))

    def _pause(self, listening: socket.socket) -> None:
        """Leave those who knock to the system for a while: they would be heard without end."""
        self._loop.remove_reader(listening.fileno())
        self._loop.call_later(_PAUSE, self._listen_again, listening)

    def _listen_again(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    def _take_in(self, sock: socket.socket) -> None:
        address = address_of(sock)
        if not self._has_room(network_of(address)):
            self._counters.refused["max_sockets"] += 1
            self._journal.refused(
                address, StatusCode.RESOURCE_EXHAUSTED, "too many connections (max_sockets)"
            )
            sock.close()
            return
        try:
            peer = self._make_peer(sock, address)
        except OSError:  # it has gone already, or the system has no more of something
            sock.close()
            return
        self._networks[peer.network] += 1
        # Sooner or later: those that came together are not sent away together.
        jitter = random.uniform(_EARLY, _LATE)  # noqa: S311 - nobody gains by guessing it
        self._peers[peer] = peer.opened_at + self._max_age * jitter

    def _make_peer(self, sock: socket.socket, address: str) -> Peer:
        sock.setblocking(False)
        if sock.family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = None
        if self._contexts is not None:
            tls = TLSFilter(self._contexts.current(), http1=self.takes_http)
        return Peer(sock, address, self._http2, self, self._loop, tls)

    def _make_room(self) -> int:
        """End connections on which no call is under way: last those that have made some."""
        idle = [peer for peer in self._peers if not peer.carries_calls]
        for peer in nsmallest(_MADE_ROOM_FOR, idle, self._usefulness):
            self._counters.refused["max_sockets"] += 1
            peer.close()
        return len(idle)

    def _usefulness(self, peer: Peer) -> tuple[bool, int, float]:
        """Who is of least use comes first: where most come from, and of those the oldest."""
        streams = len(peer.endpoint.streams)
        was_used = peer.served > streams
        since = peer.opened_at
        if was_used:
            since = peer.heard_at if streams else peer.idle_since
        return was_used, -self._networks[peer.network].bit_length(), since

    # What peers say of themselves

    def serve(self, stream: Stream, head: RequestHead, peer: Peer) -> None:
        """A call has come."""
        self._serve(stream, head, peer)

    def serve_http(self, stream: Exchange, head: RequestHead, peer: Peer) -> None:
        """A request of HTTP's has come."""
        assert self._serve_http is not None
        self._serve_http(stream, head, peer)

    def refused_headers(self, stream: Stream, size: int) -> None:
        """A call's headers are far larger than is taken."""
        refused = self._too_much_metadata(size)
        stream.owner.endpoint.charge(size >> 10)
        stream.is_open = True
        stream.finish(refusal_block(refused.code, refused.message))

    def refused_stream(self, peer: Peer) -> None:
        """It wants more streams than it may have."""
        self._counters.refused["max_streams"] += 1

    def want_credit(self, stream: Stream, peer: Peer) -> None:
        """A message has come in part; what is still to come of it is accounted for."""
        self.receiving.want(stream)

    def return_credit(self, stream: Stream, peer: Peer) -> None:
        """The message is whole, or will never be."""
        self.receiving.discard(stream)

    def closed(self, stream: Stream, peer: Peer) -> None:
        """A stream is over."""
        self.receiving.discard(stream)
        self._answers.discard(stream)

    def lost(self, peer: Peer, reason: str) -> None:
        """A connection is over."""
        if self._peers.pop(peer, None) is not None:
            self._networks[peer.network] -= 1
            if not self._networks[peer.network]:
                del self._networks[peer.network]
        if peer.endpoint.is_flooded:
            self._counters.connections_flooding += 1
            self._journal.ended_peer(peer.address, reason)
        elif reason.startswith("TLS: "):
            self._journal.failed_tls(peer.address, reason)
        if self._all_gone is not None and not self._peers and not self._all_gone.done():
            self._all_gone.set_result(None)

    # Time

    def look(self, now: float) -> None:
        """End the connections that have been silent or idle for too long, or are too old.

        Of thousands each look costs: it is not taken before one of them can be, nor too often.
        """
        if now < self._nothing_due_before:
            return
        first = now + self._soonest
        for peer in tuple(self._peers):
            if not peer.is_closed:
                first = min(first, self._look_at(peer, now))
        self._nothing_due_before = max(first, now + min(_SPACING, self._soonest / _LOOKS))

    def expire_answers(self) -> None:
        """End the calls whose answers nobody has read by their deadline."""
        self._answers.expire(self._loop.time())

    def _look_at(self, peer: Peer, now: float) -> float:
        """Do what is due; when to look at it again, unless something comes before."""
        if peer.served:
            return min(self._look_at_silence(peer, now), self._look_at_age(peer, now))
        # Its age counts from its first call on, which may come any time.
        too_old_at = self._peers.get(peer, math.inf)
        due = peer.opened_at + self._limits.handshake_timeout
        if now > due:
            self._counters.refused["handshake_timeout"] += 1
            peer.close("TLS: the handshake took too long" if peer.is_shaking_hands else "")
        return min(due, too_old_at) if too_old_at > now else due

    def _look_at_silence(self, peer: Peer, now: float) -> float:
        if not peer.endpoint.streams:
            due = math.inf if self._idle_timeout is None else peer.idle_since + self._idle_timeout
            if now > due:
                peer.leave()
        elif peer.pinged_at is None:
            due = peer.heard_at + self._keepalive
            if now > due:
                peer.ping(now)
                return now + _PING_TIMEOUT
        else:
            due = peer.pinged_at + _PING_TIMEOUT
            if now > due:
                peer.close("the peer does not answer a ping")
        return due

    def _look_at_age(self, peer: Peer, now: float) -> float:
        leaves_at = self._peers.get(peer, math.inf)
        if now <= leaves_at:
            return leaves_at
        if not peer.endpoint.is_leaving:
            peer.leave()
            # However late that was noticed, its calls have all the time that they were promised.
            leaves_at = self._peers[peer] = now
        over_at = leaves_at + self._age_grace
        if now > over_at:
            peer.end("the connection has reached its age")
        return over_at

    # The end

    def leave(self) -> None:
        """Tell callers to go elsewhere; what is under way goes on."""
        for peer in tuple(self._peers):
            peer.leave()

    async def end(self, timeout: float) -> None:
        """Accept nothing more, and end all connections; what was said last is still written."""
        self.close()
        self.leave()
        await self._wait_until_gone(timeout)
        for peer in tuple(self._peers):
            peer.end(STOPPING)
        await self._wait_until_gone(timeout / 10)
        for peer in tuple(self._peers):
            peer.close(STOPPING)

    async def _wait_until_gone(self, timeout: float) -> None:
        if self._peers:
            self._all_gone = self._loop.create_future()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._all_gone, timeout)

    def close(self) -> None:
        """Listen no more."""
        for sock in self._sockets:
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock.fileno())
                sock.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            self._path = None


def _cannot_listen(wanted: str, problem: str, error: OSError) -> OSError:
    told = OSError(f"cannot listen on {wanted}: {problem}")  # a number would stand before the words
    told.errno = error.errno
    return told


def _is_listened_on(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _most_sockets(limit: int) -> int:
    """As many as the option allows, and the system: without one no file could be opened, either."""
    try:
        import resource
    except ImportError:  # not on Windows, where there is no such limit
        return limit
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return limit
    return max(1, min(limit, allowed - _open_descriptors() - _SPARE_DESCRIPTORS))


def _open_descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 64
