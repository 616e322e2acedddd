"""How a service that listens itself is reached: looked up by its name, and then connected to.

Everything here belongs to the gateway's thread, but for the looking up, which blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import grpc.aio

from revconn.gateway.addresses import Address, lookup
from revconn.gateway.limits import Limits, Watch
from revconn.settings.target import IPAddress, ip_address

__all__ = ["Dialled", "Dialler"]

# Seconds that a connection may take, or half of the call's time if that is less: whoever calls is
# told of a port that does not answer what is told of one that refuses.
_CONNECT_TIMEOUT = 5.0
_MOST_LOOKUPS = 4  # names that are looked up at once

_READY = grpc.ChannelConnectivity.READY
_FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Dialler:
    """Opens channels.

    :param dials_private: whether to private addresses, too.
    """

    def __init__(self, limits: Limits, *, dials_private: bool) -> None:
        self.dials_private = dials_private
        self._limits = limits
        self._resolver = ThreadPoolExecutor(_MOST_LOOKUPS, "revconn-resolver")

    async def open(self, address: Address) -> grpc.aio.Channel:
        """A channel to what was looked up, and to nothing else. Raises :class:`OSError`."""
        look = partial(lookup, address, dial_private=self.dials_private)
        if ip_address(address.host) is not None:  # which nobody has to be asked for
            return _open_channel(address, look(), self._limits)
        loop = asyncio.get_running_loop()
        return _open_channel(
            address, await loop.run_in_executor(self._resolver, look), self._limits
        )

    def close(self) -> None:
        """Look up nothing more."""
        self._resolver.shutdown(wait=False)


class Dialled:
    """One address, and the channel to it, which the first call opens."""

    def __init__(self, address: Address, dialler: Dialler) -> None:
        self._address = address
        self._dialler = dialler
        # One for all calls that come meanwhile.
        self._opening: asyncio.Task[grpc.aio.Channel] | None = None
        self._is_stale = False

    @property
    def is_ready(self) -> bool:
        """Whether it has not just been out of reach."""
        opening = self._opening
        if opening is None or not opening.done() or self._is_stale:
            return True
        return opening.exception() is None and opening.result().get_state() is not _FAILED

    def renew(self) -> None:
        """It says that it is there: what was out of reach is looked up anew."""
        self._is_stale = not self.is_ready

    async def connect(self, timeout: float, *, is_alone: bool) -> grpc.aio.Channel:
        """A channel that is connected, or says why it is not to the call that is made on it.

        ``is_alone``: whether no other call is under way. Raises :class:`OSError`.
        """
        if self._is_stale and is_alone:
            self._is_stale = False
            await self.close()
        within = min(_CONNECT_TIMEOUT, timeout / 2)
        opening = self._opening
        if opening is None or (opening.done() and opening.exception() is not None):
            self._opening = opening = asyncio.ensure_future(self._dialler.open(self._address))
        elif opening.done() and opening.result().get_state() is _READY:  # as a rule
            return opening.result()
        # Not wait_for(), which before Python 3.12 may swallow that the caller gave up.
        watch = Watch(within)
        try:
            return await _connected(opening)
        except asyncio.CancelledError:
            if watch.ran_out:
                raise OSError(f"no connection within {within:g} seconds") from None
            raise
        finally:
            watch.stop()

    async def close(self) -> None:
        """Close the channel."""
        opening, self._opening = self._opening, None
        # A look-up that still goes on comes to nothing.
        if opening is not None and not opening.cancel() and opening.exception() is None:
            await opening.result().close()


async def _connected(opening: asyncio.Task[grpc.aio.Channel]) -> grpc.aio.Channel:
    # Who gives up does not end it for the others.
    channel = await asyncio.shield(opening)
    while (state := channel.get_state(try_to_connect=True)) not in (_READY, _FAILED):
        await channel.wait_for_state_change(state)
    return channel


def _open_channel(address: Address, found: Sequence[IPAddress], limits: Limits) -> grpc.aio.Channel:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", limits.max_sent_message_bytes),
        # What is sent on was measured against max_message_bytes as it came.
        ("grpc.max_send_message_length", -1),
        # What was registered is dialled, not what the environment says.
        ("grpc.enable_http_proxy", 0),
        # The host keeps its name, towards its certificate too.
        ("grpc.default_authority", address.host_port),
    ]
    target = _target(found, address.port)
    # By the system's authorities: a Register has no field for others.
    if address.is_tls:
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(), options=options)
    return grpc.aio.insecure_channel(target, options=options)


def _target(found: Sequence[IPAddress], port: int) -> str:
    # The addresses that were looked at: a name would be looked up again, and could lead elsewhere
    # by then.
    if all(ip.version == 4 for ip in found):
        return "ipv4:" + ",".join(f"{ip}:{port}" for ip in found)
    # One scheme for all of them.
    written = (str(ip) if ip.version == 6 else f"::ffff:{ip}" for ip in found)
    return "ipv6:" + ",".join(f"[{text}]:{port}" for text in written)
