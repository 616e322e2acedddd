"""Opening a connection: a name looked up anew, its addresses raced, a proxy asked, TLS agreed on.

Nothing here waits longer than a moment at a time: in between it asks ``cancelled``, which a stop,
an abort or the handshake's time limit makes true. All of it runs in the thread that opens a stream,
but for the resolver's.
"""

from __future__ import annotations

import errno
import os
import queue
import re
import selectors
import socket
import ssl
import time
import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Callable

from revconn.core.status import StatusCode
from revconn.runtime.threads import Mailbox, guarded_thread
from revconn.settings.options import TLS
from revconn.settings.proxy import Proxy
from revconn.settings.target import Target, bare_host
from revconn.transport.base import StreamEnded
from revconn.transport.tls import NO_HTTP2, TLSFilter, client_context, explain

__all__ = [
    "Address",
    "AddressOrder",
    "Addresses",
    "Dialer",
    "network_words",
    "resolve",
    "tunnel",
]

_HEAD_START = 0.25  # seconds, of one address over the next: RFC 8305's Connection Attempt Delay
_POLL = 0.1  # seconds between two questions whether the attempt was cancelled
_LONGEST_ANSWER = 16_384  # bytes of a proxy's headers
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (?P<status>[1-5][0-9]{2}[^\r\n]*)\r?\n")

Address = tuple[int, Any]
"""A family and what a socket of it connects to."""


class Dialer:
    """Connects to one target: names and certificates are read afresh for each call.

    What it remembers is which addresses failed: the others come first.
    """

    def __init__(
        self, target: Target, tls: TLS | None, proxy: Proxy | None, user_timeout: float
    ) -> None:
        self._target = target
        self._tls = tls
        self._proxy = proxy
        self._user_timeout = user_timeout
        self._server_name = bare_host((tls and tls.server_name) or target.host)
        host, port = target.ip or target.host, target.port
        if proxy is not None:
            host, port = proxy.host, proxy.port
        self._addresses = None if port is None else Addresses(host, port)

    @property
    def addresses(self) -> int:
        """How many the name had when it was last looked up; none before, or for a Unix socket."""
        return 0 if self._addresses is None else self._addresses.count

    def dial(
        self, cancelled: Callable[[], bool]
    ) -> tuple[socket.socket, TLSFilter | None, Address]:
        """A connected socket, and where it leads: :meth:`failed` when that comes to a bad end.

        ``cancelled`` is asked several times a second; it bounds the whole. Raises
        :class:`StreamEnded` (UNAVAILABLE) with the reason, and :class:`ConfigurationError` for
        certificates that cannot be used (any more).
        """
        # Before anything is opened: a certificate that cannot be read is the user's to mend, and no
        # reason to trouble a gateway.
        context = None if self._tls is None else client_context(self._tls)
        sock, address = self._connect(cancelled)
        try:
            self._tune(sock)
            sock.settimeout(_POLL)
            if self._proxy is not None:
                tunnel(sock, self._proxy, self._target, cancelled)
            tls = None if context is None else self._secure(sock, context, cancelled)
            sock.settimeout(None)
        except BaseException as error:
            sock.close()
            # TCP was fine there, but not what came after: a wrong certificate behind one of several
            # addresses must not be the first choice for ever.
            self.failed(address)
            if isinstance(error, OSError):
                raise _unavailable(network_words(error)) from None
            raise
        return sock, tls, address

    def failed(self, *addresses: Address) -> None:
        """Connections there came to a bad end: next time the others come first. Any thread."""
        if self._addresses is not None:
            self._addresses.failed(addresses)

    def _connect(self, cancelled: Callable[[], bool]) -> tuple[socket.socket, Address]:
        try:
            if self._addresses is None:
                addresses: list[Address] = [(socket.AF_UNIX, self._target.unix_path)]
            else:
                addresses = self._addresses.find(cancelled)
            return _race(addresses, cancelled, self.failed)
        except OSError as error:
            where = "" if self._proxy is None else f" to the proxy {self._proxy}"
            raise _unavailable(f"cannot connect{where}: {network_words(error)}") from None

    def _secure(
        self, sock: socket.socket, context: ssl.SSLContext, cancelled: Callable[[], bool]
    ) -> TLSFilter:
        try:
            tls = TLSFilter(context, self._server_name)
            _shake_hands(sock, tls, cancelled)
        except (OSError, ValueError) as error:
            raise _unavailable(explain(error)) from None
        # HTTP/2 over TLS is agreed on by ALPN alone (RFC 9113, section 3.2). A server without it
        # would take the preface for a broken HTTP/1 request.
        if tls.alpn != "h2":
            raise _unavailable(NO_HTTP2)
        return tls

    def _tune(self, sock: socket.socket) -> None:
        if sock.family == getattr(socket, "AF_UNIX", None):
            return
        # Whatever is written is whole messages: Nagle's algorithm would keep a lone answer back
        # until the gateway had acknowledged the one before.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # What was sent and never acknowledged ends the connection; without this Linux sends it
        # again for a quarter of an hour, and no keepalive probe is sent meanwhile.
        user_timeout = getattr(socket, "TCP_USER_TIMEOUT", None)
        if user_timeout is not None:
            milliseconds = int(self._user_timeout * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, user_timeout, milliseconds)


def _shake_hands(sock: socket.socket, tls: TLSFilter, cancelled: Callable[[], bool]) -> None:
    # The socket's timeout is `_POLL`, so each round asks again whether it is still wanted.
    while not cancelled():
        with suppress(socket.timeout):
            if tls.handshake(sock):
                return
    raise _unavailable("no answer to the TLS handshake")


def _unavailable(reason: str) -> StreamEnded:
    return StreamEnded(StatusCode.UNAVAILABLE, reason)


def network_words(error: OSError) -> str:
    """What a socket's error says, for people."""
    return error.strerror or str(error) or type(error).__name__


class Addresses:
    """The addresses of one host and port.

    The order belongs to whoever looks the name up. Failures, which any thread may tell of, wait in
    a deque until then: a link may open a stream while another of its streams ends. Looked up for
    each attempt, because what a name has may change while a connector lives for months.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._order = AddressOrder()
        self._failures: deque[Address] = deque()
        self.count = 0  # at the last look; plain, set by whoever looks

    def find(self, cancelled: Callable[[], bool]) -> list[Address]:
        """Those of now, in the order to try them.

        ``cancelled`` is asked several times a second. Raises :class:`OSError`.
        """
        found = resolve(self._host, self._port, cancelled)
        with suppress(IndexError):
            while True:
                self._order.failed(self._failures.popleft())
        arranged = self._order.arrange(found)
        self.count = len(arranged)
        return arranged

    def failed(self, addresses: Iterable[Address]) -> None:
        """An attempt, or a connection, came to a bad end there; to the last one last."""
        self._failures.extend(addresses)


def resolve(host: str, port: int, cancelled: Callable[[], bool]) -> list[Address]:
    """What a name has now, as the system's resolver has it.

    ``cancelled`` is asked several times a second. Raises :class:`OSError`.
    """
    results: Mailbox[Any] = Mailbox()

    def look_up() -> None:
        try:
            results.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except BaseException as error:  # noqa: BLE001 - UnicodeError, say: not a name at all
            results.put(error)

    # In a thread of its own: nothing can interrupt a resolver. It may outlive the attempt by as
    # long as that takes, and then puts what it found into a queue that nobody reads.
    guarded_thread(f"revconn-resolver-{host}", look_up).start()
    while True:
        try:
            found = results.get(timeout=_POLL)
        except queue.Empty:
            if cancelled():
                raise OSError(f"{host} did not resolve in time") from None
            continue
        if isinstance(found, BaseException):
            reason = getattr(found, "strerror", None) or str(found)
            raise OSError(f"{host} does not resolve: {reason}") from None
        return [(family, address) for family, _, _, _, address in found]


class AddressOrder:
    """One target's addresses: an attempt begins with the one after that which failed last.

    So each has its turn, whichever step of the handshake fails at the others. Whoever owns it
    guards it.
    """

    def __init__(self) -> None:
        self._failed: dict[Address, None] = {}  # the last one last

    def arrange(self, found: Iterable[Address]) -> list[Address]:
        """What a name has resolved to now, in the order to try it.

        Those that failed come last, and in the order in which they did: a resolver that shuffles
        leaves none out.
        """
        addresses = _interleave(list(dict.fromkeys(found)))
        # What the name does not have any more is forgotten: it may come back as a new machine.
        self._failed = {each: None for each in self._failed if each in addresses}
        ranks = {address: rank for rank, address in enumerate(self._failed)}
        if self._failed:
            start = addresses.index(next(reversed(self._failed))) + 1
            addresses = addresses[start:] + addresses[:start]
        return sorted(addresses, key=lambda address: ranks.get(address, -1))

    def failed(self, address: Address) -> None:
        """An attempt, or a connection, came to a bad end there."""
        self._failed.pop(address, None)
        self._failed[address] = None


def _interleave(addresses: list[Address]) -> list[Address]:
    """IPv6 and IPv4 in turn (RFC 8305), the resolver's favourite first."""
    first = [each for each in addresses if each[0] == addresses[0][0]]
    others = [each for each in addresses if each[0] != addresses[0][0]]
    mixed = []
    while first or others:
        mixed += first[:1] + others[:1]
        first, others = first[1:], others[1:]
    return mixed


def _race(
    addresses: list[Address], cancelled: Callable[[], bool], failed: Callable[..., None]
) -> tuple[socket.socket, Address]:
    """The first connection that opens; each address gets a short head start over the next.

    ``failed`` is called with those where none does.
    """
    # RFC 8305, section 5: attempts run side by side, so an address that swallows packets costs its
    # head start and not the system's own time limit, which is minutes.
    waiting = deque(addresses)
    running: dict[socket.socket, Address] = {}
    failures: dict[str, list[Address]] = {}
    next_start = 0.0
    try:
        while waiting or running:
            if cancelled():
                failed(*running.values())
                raise OSError(f"no answer in time from {_list(running.values())}")
            if waiting and (not running or time.monotonic() >= next_start):
                address = waiting.popleft()
                try:
                    running[_begin(*address)] = address
                except OSError as error:
                    failed(address)
                    failures.setdefault(network_words(error), []).append(address)
                next_start = time.monotonic() + _HEAD_START
            for sock in _settled(running):
                address = running.pop(sock)
                # Writable means settled, well or badly: which, the socket says once.
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code == 0:
                    return sock, address
                sock.close()
                failed(address)
                failures.setdefault(os.strerror(code), []).append(address)
                next_start = 0.0  # no need to wait for the others
        raise OSError("; ".join(f"{reason} ({_list(where)})" for reason, where in failures.items()))
    finally:
        for sock in running:
            sock.close()


def _list(addresses: Iterable[Address]) -> str:
    return ", ".join(a if isinstance(a, str) else str(a[0]) for _, a in addresses)


def _begin(family: int, address: Any) -> socket.socket:
    sock = open_socket(family)
    try:
        sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError as error:
            if error.errno == errno.EAGAIN:  # a Unix socket with a full queue, not one under way
                raise
    except BaseException:
        sock.close()
        raise
    return sock


def _settled(running: Iterable[socket.socket]) -> list[socket.socket]:
    """Whose attempt has ended, well or badly; waits a moment for one."""
    with selectors.DefaultSelector() as selector:
        for sock in running:
            selector.register(sock, selectors.EVENT_WRITE, sock)
        if not selector.get_map():
            return []
        return [key.data for key, _ in selector.select(_POLL)]


def tunnel(
    sock: socket.socket, proxy: Proxy, target: Target, cancelled: Callable[[], bool]
) -> None:
    """Have a connection to the proxy continued to the target. Raises :class:`OSError`.

    ``sock`` has a short timeout, after each of which ``cancelled`` is asked.
    """
    lines = [f"CONNECT {target.destination} HTTP/1.1", f"Host: {target.destination}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = bytearray()
    # Byte by byte: what follows the answer is the gateway's, and may already be there.
    while not answer.endswith(b"\r\n\r\n"):
        if cancelled():
            raise OSError(f"no answer from the proxy {proxy}")
        try:
            byte = sock.recv(1)
        except socket.timeout:
            continue
        answer += byte
        if not byte or len(answer) > _LONGEST_ANSWER:
            break
    _check(bytes(answer), proxy)


def _check(answer: bytes, proxy: Proxy) -> None:
    status_line = _STATUS_LINE.match(answer)
    if status_line is None:
        said = f": it said {answer[:40]!r}" if answer else ", it hung up"
        raise OSError(f"the proxy {proxy} gave no HTTP answer{said}")
    status = status_line["status"].decode("latin-1")
    if status.startswith("407"):
        advice = "give user and password in the proxy's URL"
        if proxy.authorization is not None:
            advice = "check user and password in the proxy's URL"
        raise OSError(f"the proxy {proxy} refused: {status[:100]!r}; {advice}")
    if not status.startswith("2"):
        raise OSError(f"the proxy {proxy} refused: {status[:100]!r}")
    if not answer.endswith(b"\r\n\r\n"):
        raise OSError(f"the proxy {proxy} broke off its answer")


# Whoever dials adds to it. A child looks through it after a fork, where no other thread is.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def open_socket(family: int) -> socket.socket:
    """A stream socket that stays the parent's when the process forks."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    _sockets.add(sock)
    return sock


def _let_go() -> None:
    """In a forked child: put a dead end in the place of each connection.

    The child's copies would keep a connection up after the parent died, and a gateway would go on
    sending requests that nobody answers. Closing them would not do: green threads go on in the
    child with the number of the descriptor, which may be another file's by then.
    """
    descriptors = [sock.fileno() for sock in _sockets if sock.fileno() >= 0]
    if not descriptors:
        return
    dead_end, other_end = os.pipe()
    os.close(other_end)
    for descriptor in descriptors:
        os.dup2(dead_end, descriptor, inheritable=False)
    os.close(dead_end)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
