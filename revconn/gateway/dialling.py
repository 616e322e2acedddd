"""How a service that listens itself is reached: looked up by its name, and then connected to.

Everything here belongs to the gateway's thread, but for the looking up, which blocks.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import zip_longest

from revconn.gateway.addresses import Address, lookup
from revconn.gateway.client import Client
from revconn.gateway.limits import Limits, Watch
from revconn.gateway.tls import TLSFilter
from revconn.gateway.wires import Turn
from revconn.http2.writing import Settings
from revconn.settings.target import IPAddress, ip_address

__all__ = ["Dialled", "Dialler"]

# Seconds that a connection may take, or half of the call's time if that is less: whoever calls is
# told of a port that does not answer what is told of one that refuses.
_CONNECT_TIMEOUT = 5.0
_USER_TIMEOUT = 20.0  # seconds that what was sent may go unacknowledged
_MOST_LOOKUPS = 4  # names that are looked up at once
# Seconds between two attempts to reach what is out of reach: as gRPC has it but for the longest,
# which is for clients that nobody tells when it is there again.
_FIRST_DELAY, _GROWTH, _LONGEST_DELAY, _JITTER = 1.0, 1.6, 30.0, 0.2


class Dialler:
    """Opens connections, and closes all of them at the end.

    :param dials_private: whether to private addresses, too.
    """

    def __init__(self, limits: Limits, *, dials_private: bool) -> None:
        self.dials_private = dials_private
        self._settings = Settings(
            message_limit=limits.max_sent_message_bytes,
            header_list=2 * limits.max_metadata_bytes,
        )
        self._resolver = ThreadPoolExecutor(_MOST_LOOKUPS, "revconn-resolver")
        self._context: ssl.SSLContext | None = None
        self._turn: Turn | None = None
        self._clients: dict[Client, None] = {}

    async def look_up(self, address: Address) -> tuple[IPAddress, ...]:
        """Where an address leads that may be dialled. Raises :class:`OSError`."""
        look = partial(lookup, address, dial_private=self.dials_private)
        if ip_address(address.host) is not None:  # which nobody has to be asked for
            return look()
        return await asyncio.get_running_loop().run_in_executor(self._resolver, look)

    async def open(self, address: Address, found: Sequence[IPAddress]) -> Client:
        """A connection to one of those, on which calls may be made. Raises :class:`OSError`."""
        end = asyncio.get_running_loop().time() + _CONNECT_TIMEOUT
        tls = await self._new_filter(address) if address.is_tls else None
        sock = await _connect(found, address.port, end)
        if self._turn is None:
            self._turn = Turn(asyncio.get_running_loop())
        client = Client(sock, address, self._settings, self._turn, tls, self._forget)
        self._clients[client] = None
        watch = Watch(_left_until(end))
        try:
            # A port may take connections and say nothing: calls are for what speaks HTTP/2.
            problem = await client.ready
        except asyncio.CancelledError:
            client.close()
            if watch.ran_out:
                raise _no_connection(_CONNECT_TIMEOUT) from None
            raise
        finally:
            watch.stop()
        if problem:
            self._forget(client)
            raise OSError(problem)
        return client

    async def _new_filter(self, address: Address) -> TLSFilter:
        if self._context is None:
            # Elsewhere: the authorities are hundreds of kilobytes to be read.
            loop = asyncio.get_running_loop()
            self._context = await loop.run_in_executor(self._resolver, _new_context)
        try:
            # The host keeps its name, towards its certificate too.
            return TLSFilter(self._context, address.host.rstrip(".").partition("%")[0])
        except ValueError as error:
            raise OSError(f"no certificate can be {address.host}'s: {error}") from None

    def _forget(self, client: Client) -> None:
        self._clients.pop(client, None)

    def close(self) -> None:
        """Look up nothing more, and end every connection."""
        self._resolver.shutdown(wait=False)
        for client in tuple(self._clients):
            client.close("the gateway is stopping")


class Dialled:
    """One address, and the connection to it, which the first call opens."""

    def __init__(self, address: Address, dialler: Dialler) -> None:
        self._address = address
        self._dialler = dialler
        self._client: Client | None = None
        self._is_closed = False
        # One for all calls that come meanwhile.
        self._dialling: asyncio.Task[None] | None = None
        self._failure = ""  # of the last attempt
        self._delay = _FIRST_DELAY
        self._retry: asyncio.TimerHandle | None = None  # until then calls fail at once

    @property
    def is_ready(self) -> bool:
        """Whether it has not just been out of reach."""
        return not self._failure

    def renew(self) -> None:
        """It says that it is there: what was out of reach is dialled by the next call."""
        self._failure = ""
        self._stop_waiting()

    async def connect(self, timeout: float) -> Client:
        """A connection on which a call may be made. Raises :class:`OSError`."""
        if self._client is not None and self._client.is_usable:  # as a rule
            return self._client
        if self._retry is not None:
            raise OSError(self._failure)
        dialling = self._dial()
        within = min(_CONNECT_TIMEOUT, max(0.0, timeout / 2))
        # Not wait_for(), which before Python 3.12 may swallow that the caller gave up.
        watch = Watch(within)
        try:
            await asyncio.shield(dialling)  # who gives up does not end it for the others
        except asyncio.CancelledError:
            if watch.ran_out:
                raise _no_connection(within) from None
            raise
        finally:
            watch.stop()
        if self._client is None or not self._client.is_usable:
            raise OSError(self._failure or "the connection ended at once")
        return self._client

    def _dial(self) -> asyncio.Task[None]:
        if self._dialling is None:
            self._retry = None
            self._client = None  # one that the backend wants to end does so by itself
            self._dialling = asyncio.ensure_future(self._open())
        return self._dialling

    async def _open(self) -> None:
        try:
            # Anew each time: a name may lead elsewhere by now.
            found = await self._dialler.look_up(self._address)
            try:
                self._client = await self._dialler.open(self._address, found)
            except OSError:
                if not self._is_closed:  # in the turn in which the time to connect ran out
                    self._wait()
                raise
            if self._is_closed:  # in the turn in which the time for another address ran out
                self._client.ask_to_go()
            self._failure = ""
            self._delay = _FIRST_DELAY
        except OSError as error:
            self._failure = str(error) or type(error).__name__
        finally:
            self._dialling = None

    def _wait(self) -> None:
        # Calls are not sent where others do better until it is there again, so it is tried without
        # any.
        delay = self._delay * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret
        self._retry = asyncio.get_running_loop().call_later(delay, self._dial)
        self._delay = min(self._delay * _GROWTH, _LONGEST_DELAY)

    def _stop_waiting(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def look(self) -> None:
        """See whether it is still there. To be called now and then."""
        if self._client is not None:
            self._client.look()

    def close(self) -> None:
        """Dial no more, and end the connection once what was asked on it is answered."""
        self._is_closed = True
        self._stop_waiting()
        if self._dialling is not None:
            self._dialling.cancel()
        if self._client is not None:
            self._client.ask_to_go()


async def _connect(found: Sequence[IPAddress], port: int, end: float) -> socket.socket:
    """A socket connected to the first that answers, in time. Raises :class:`OSError`."""
    loop = asyncio.get_running_loop()
    # Only what was looked at: the name could lead elsewhere by now.
    order = _in_order(found)
    problems = []
    for number, ip in enumerate(order):
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM)
        # One that does not answer leaves the others their part of the time.
        watch = Watch(_left_until(end) / (len(order) - number))
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, (str(ip), port))
            _tune(sock)
        except asyncio.CancelledError:
            sock.close()
            if not watch.ran_out:
                raise
            problems.append(f"{ip}: no answer")
        except OSError as error:
            sock.close()
            problems.append(f"{ip}: {error.strerror or error}")
        else:
            return sock
        finally:
            watch.stop()
    raise OSError(f"cannot connect to port {port} of {', '.join(problems)}")


def _in_order(found: Sequence[IPAddress]) -> list[IPAddress]:
    """The resolver's first choice first, and then IPv6 and IPv4 in turns (RFC 8305)."""
    families = [[ip for ip in found if ip.version == version] for version in (4, 6)]
    if found[0].version == 6:
        families.reverse()
    return [ip for pair in zip_longest(*families) for ip in pair if ip is not None]


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Without this Linux sends again, for a quarter of an hour, what nobody acknowledges.
    user_timeout = getattr(socket, "TCP_USER_TIMEOUT", None)
    if user_timeout is not None:
        sock.setsockopt(socket.IPPROTO_TCP, user_timeout, int(_USER_TIMEOUT * 1000))


def _new_context() -> ssl.SSLContext:
    # By the system's authorities: a Register has no field for others.
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= getattr(ssl, "OP_NO_RENEGOTIATION", 0)  # HTTP/2 forbids it
    context.set_alpn_protocols(["h2"])
    return context


def _left_until(end: float) -> float:
    return max(0.0, end - asyncio.get_running_loop().time())


def _no_connection(within: float) -> OSError:
    return OSError(f"no connection within {within:g} seconds")
