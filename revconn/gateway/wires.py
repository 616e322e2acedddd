"""A network connection: its socket, TLS if there is any, and the HTTP/2 endpoint on it.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from bisect import bisect_right
from collections import deque
from functools import partial
from itertools import accumulate
from typing import Callable

from revconn.gateway.tls import TLSFilter
from revconn.http2.endpoint import Endpoint
from revconn.http2.writing import Acceptor, Output, Settings
from revconn.logger import get_logger

__all__ = ["Turn", "Wire"]

logger = get_logger(__name__)

_READ_BYTES = 64 << 10
_MOST_READ = 1 << 20
_COSTLY = 100  # of an endpoint's cost: how often it is worth a look at the clock
_WORTHY = -50_000  # the same, of one that has brought more than it cost
_MOST_GATHERED = 512  # pieces: systems allow about a thousand
_SMALL = 4 << 10  # bytes: pieces that are cheaper to join than to hand over one by one
_HEARTBEAT = 256  # bytes, and a few more: thousands of idle connectors send nothing else
_USUAL_TURN = 0.002  # seconds of work: a call that is made meanwhile waits for some of them
_SHORT_READ = 1 << 10  # bytes: most calls are no more, and none of these is put off
_CROWD = 8  # peers that wait for a turn to come
_SMALLEST_SHARE = 8  # of an endpoint's work: who makes a single call is not put off
_LINGER = 1.0  # seconds that a peer has to hear that we say nothing more
_RESET = struct.pack("ii", 1, 0)
_LAST_WORDS = 5.0  # seconds that it has to read what we said before


class Turn:
    """What is to be done once all that has arrived was taken in: each thing once.

    :ivar is_begun: whether more than heartbeats has come, or something is to be done at its end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: list[Callable[[], None]] = []
        self._put_off: deque[Callable[[], None]] = deque()
        self.is_begun = self._is_behind = False
        self._began_at: float | None = None  # when the first peer had its share

    def at_end(self, do: Callable[[], None]) -> None:
        """Do it at the end of this turn of the loop. Whoever calls this sees that it is once."""
        self.begin()
        self._due.append(do)

    def share(self, most: int, now: float) -> int:
        """How much may be done for one more peer in this turn: less, once it has lasted long.

        Without that many busy peers together would hold up all the others.
        """
        if self._began_at is None:
            self._began_at = now
        if self._put_off:
            most = max(_SMALLEST_SHARE, most // (1 + len(self._put_off)))
        left = 2.0 - (now - self._began_at) / _USUAL_TURN
        return most if left >= 1.0 else max(_SMALLEST_SHARE, int(most * left))

    @property
    def is_crowded(self) -> bool:
        """Whether many wait for a turn to come."""
        return len(self._put_off) >= _CROWD

    def later(self, do: Callable[[], None]) -> None:
        """Do it in a turn to come, behind all that was put off before.

        A turn does as much of that as there is time for: each busy peer in each turn, if only a
        little, would make long turns for all the others.
        """
        self._put_off.append(do)
        if not self._is_behind:
            self._is_behind = True
            self._loop.call_soon(self._catch_up)

    def _catch_up(self) -> None:
        put_off = self._put_off
        end = time.monotonic() + _USUAL_TURN
        try:
            while put_off:
                put_off.popleft()()
                if time.monotonic() > end:
                    break
        finally:
            self._is_behind = bool(put_off)
            if put_off:
                self._loop.call_soon(self._catch_up)

    def begin(self) -> None:
        """There is more in this turn than to take in a heartbeat: it has an end."""
        if not self.is_begun:
            self.is_begun = True
            self._loop.call_soon(self._end)

    def _end(self) -> None:
        # What is done may ask for more, a connector's messages above all: the frames that they
        # become are written in the same turn.
        due = self._due
        position = 0
        self._began_at = None
        try:
            while position < len(due):
                position += 1
                due[position - 1]()
        finally:
            del due[:position]
            self.is_begun = False
            if due:  # one failed, which is a bug, and not the others' fault
                self.begin()


class Wire(Acceptor):
    """One connection, from when its socket is connected to its end.

    Subclasses say what streams are for, on a server's side or a client's.

    :ivar address: the other end's, for logs.
    :ivar opened_at: monotonic seconds.
    :ivar heard_at: when something last came.
    :ivar pinged_at: when a sign of life was asked for that has not come.
    """

    __slots__ = (
        "_farewell",
        "_fd",
        "_is_held",
        "_is_last",
        "_is_lingering",
        "_is_paused",
        "_is_put_off",
        "_is_woken",
        "_left",
        "_loop",
        "_read_bytes",
        "_socket",
        "_tls",
        "_turn",
        "address",
        "endpoint",
        "heard_at",
        "is_closed",
        "opened_at",
        "pinged_at",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        address: str,
        settings: Settings,
        turn: Turn,
        loop: asyncio.AbstractEventLoop,
        tls: TLSFilter | None,
        *,
        is_server: bool = True,
    ) -> None:
        self._socket = sock
        self._fd = sock.fileno()
        self.address = address
        self._turn = turn
        self._loop = loop
        self._tls = tls
        self._read_bytes = _READ_BYTES
        self._left: list[Output] | None = None  # what the network did not take yet
        self._is_paused = self._is_woken = self._is_lingering = self._is_last = False
        self._is_held = self._is_put_off = False
        self._farewell: asyncio.TimerHandle | None = None  # when it is closed, come what may
        self.is_closed = False
        self.opened_at = self.heard_at = time.monotonic()
        self.pinged_at: float | None = None
        self.endpoint = Endpoint(settings, self, is_server=is_server)
        try:
            loop.add_reader(self._fd, self._readable)
        except OSError:
            self.is_closed = True  # what is to be said at the end of this turn is not
            raise

    def over(self, reason: str) -> None:
        """The connection is over; ``reason``: what the peer did wrong, if it did."""
        raise NotImplementedError

    @property
    def is_shaking_hands(self) -> bool:
        """Whether TLS is not there yet."""
        return self._tls is not None and self._tls.is_shaking_hands

    # Reading

    def _readable(self) -> None:
        try:
            data = self._socket.recv(self._read_bytes)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close("the connection broke")
            return
        # Who sends much is read in larger blocks, which cost others too much memory.
        self._read_bytes = _MOST_READ if len(data) >= _READ_BYTES else _READ_BYTES
        if self._tls is None:
            if not data:
                self.close("the peer closed the connection")
                return
            self._receive(data)
            return
        was_shaking_hands = self._tls.is_shaking_hands
        try:
            plain = self._tls.decrypt(data)
        except (OSError, ssl.SSLError) as error:
            self._fail_tls(error)
            return
        if was_shaking_hands and not self._tls.is_shaking_hands:
            self.wake()  # what there is to be said since the beginning
        if output := self._tls.take_output():
            self._send(output)
        if plain:
            self._receive(plain)
        if not data or self._tls.is_over:
            self._is_last = True
            self._hang_up()

    def _fail_tls(self, error: Exception) -> None:
        assert self._tls is not None
        if output := self._tls.take_output():
            self._send(output)  # the alert tells the peer why
        self.close(f"TLS: {error}" if self._tls.is_shaking_hands else "the connection broke")

    def _receive(self, data: bytes) -> None:
        turn = self._turn
        self.heard_at = time.monotonic()
        self.pinged_at = None
        if len(data) > _HEARTBEAT:
            turn.begin()
        # To take a little of what each of hundreds says would be a long turn, too.
        is_put_off = len(data) > _SHORT_READ and turn.is_crowded
        rest = data if is_put_off else self._take(data, self.heard_at)
        if rest:
            self._is_put_off = True
            self._stop_reading()
            # Nor is more read at once than that: it would wait here, and be cut again and again.
            self._read_bytes = _READ_BYTES
            turn.later(partial(self._go_on, rest))

    def _take(self, data: bytes, now: float) -> bytes:
        """Take in what has come; what is left of it for a turn to come."""
        endpoint, turn = self.endpoint, self._turn
        most = endpoint.settings.turn
        if turn.is_begun:
            most = turn.share(most, now)
        try:
            rest = endpoint.receive(data, most)
        except Exception:
            logger.exception("a connection of %s: a bug in the gateway", self.address)
            self.close("the gateway failed")
            return b""
        if not _WORTHY < endpoint.cost < _COSTLY:
            endpoint.settle(now)
        if endpoint.is_ended and not self.is_closed:
            self.end_soon()
        return rest

    def _hang_up(self) -> None:
        """The peer has said that it says nothing more: once all that it said was taken in."""
        if not self._is_paused:
            self.close("the peer closed the connection")

    def _go_on(self, rest: bytes) -> None:
        """Others were first: what one peer sends at once must not hold up all."""
        if self.is_closed or self.endpoint.is_ended:
            return
        # Heard as it is taken in: no answer to a ping can be read before all of it was.
        self.heard_at, self.pinged_at = time.monotonic(), None
        rest = self._take(rest, self.heard_at)
        if self.is_closed or self.endpoint.is_ended:
            return
        if rest:
            self._turn.later(partial(self._go_on, rest))
            return
        self._is_put_off = False
        if not self._is_held:
            self._start_reading()

    def put_off(self, do: Callable[[float], None]) -> None:
        """Do it in a turn to come, as of then, if the connection is there still."""
        self._turn.later(lambda: None if self.is_closed else do(time.monotonic()))

    def hold_reading(self) -> None:
        """Read nothing more, until :meth:`go_on_reading`: nobody takes it."""
        self._is_held = True
        self._stop_reading()

    def go_on_reading(self) -> None:
        """Read again, if that was held."""
        if self._is_held:
            self._is_held = False
            if not (self._is_put_off or self.is_closed or self.endpoint.is_ended):
                self._start_reading()

    def _start_reading(self) -> None:
        self._is_paused = False
        self._loop.add_reader(self._fd, self._readable)
        if self._is_last:
            self._hang_up()

    # Writing

    def wake(self) -> None:
        """There is something to write: at the end of this turn, together with what else comes."""
        if not self._is_woken:
            self._is_woken = True
            self._turn.at_end(self._flush)

    def _flush(self) -> None:
        self._is_woken = False
        if self._left is not None or self.is_closed:
            return  # _writable() goes on
        endpoint = self.endpoint
        if self.is_shaking_hands:  # nothing can be encrypted yet: _readable() goes on
            if endpoint.is_ended:
                self.close(endpoint.end_reason)
            return
        out = endpoint.take()
        if out:
            if self._tls is not None:
                self._send(self._tls.encrypt(out))
            elif len(out) == 1:
                self._send(out[0])
            else:
                self._gather(out)
        if self._left is not None or self.is_closed:
            return
        if endpoint.is_waiting:
            # In the next turn: who reads as fast as this writes would have this one for itself.
            self._loop.call_soon(self._pump)
        elif endpoint.is_ended:
            self._linger()

    def _pump(self) -> None:
        if self._left is None and not self.is_closed:
            self.endpoint.pump()  # which wakes, if anything leaves

    def _send(self, data: Output) -> None:
        if self._left is not None:
            self._left.append(data)
            return
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.close("the connection broke")
            return
        if sent < len(data):
            self._keep([data], [len(data)], sent)

    def _gather(self, out: list[Output]) -> None:
        """Send several pieces. To join large ones takes longer than the system does to gather."""
        ends = list(accumulate(map(len, out)))
        can_gather = hasattr(self._socket, "sendmsg") and len(out) <= _MOST_GATHERED
        if not can_gather or ends[-1] < _SMALL * len(out):
            out = [b"".join(out)]
            ends = [len(out[0])]
        try:
            sent = self._socket.sendmsg(out) if len(out) > 1 else self._socket.send(out[0])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.close("the connection broke")
            return
        if sent < ends[-1]:
            self._keep(out, ends, sent)

    def _keep(self, out: list[Output], ends: list[int], sent: int) -> None:
        """What the network did not take is for later."""
        number = bisect_right(ends, sent)
        begun = memoryview(out[number])
        self._left = [begun[sent - ends[number] + len(begun) :], *out[number + 1 :]]
        self._loop.add_writer(self._fd, self._writable)

    @property
    def is_behind(self) -> bool:
        """Whether the network has not taken all that was to be written."""
        return self._left is not None

    @property
    def behind_bytes(self) -> int:
        """How much that is."""
        return sum(map(len, self._left or ()))

    def _writable(self) -> None:
        left, self._left = self._left, None
        self._loop.remove_writer(self._fd)
        if left is not None:
            self._gather(left)
        if self._farewell is not None and not self.is_closed:
            self._close_in(_LAST_WORDS)  # it reads, if slowly
        if self._left is None and not self.is_closed:
            self.endpoint.pump()
            self._flush()

    # The end

    def ping(self, now: float) -> None:
        """Ask for a sign of life."""
        self.pinged_at = now
        self.endpoint.ping()

    def leave(self) -> None:
        """Have the peer open no more streams; once there are none it ends."""
        if not self.endpoint.is_leaving:
            self.endpoint.go_away()
        if not self.endpoint.streams:
            self.end()

    def end(self, reason: str = "") -> None:
        """End it, with all its streams, once what was said is written."""
        if not (self.is_closed or self.endpoint.is_ended):
            self.endpoint.end(reason=reason)
            self.end_soon()

    def end_soon(self) -> None:
        """The endpoint has ended: what it said last is written, if the peer takes it."""
        self._stop_reading()
        self.wake()
        # Who does not read would keep the socket, and what is to be written, for ever.
        self._close_in(_LAST_WORDS)

    def _close_in(self, seconds: float) -> None:
        if self._farewell is not None:
            self._farewell.cancel()
        self._farewell = self._loop.call_later(seconds, self.close, self.endpoint.end_reason)

    def _linger(self) -> None:
        """All was written. What the peer still sends is read, or it might lose our last words."""
        if self._is_lingering:
            return
        self._is_lingering = True
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close(self.endpoint.end_reason)
            return
        self._stop_reading()
        self._loop.add_reader(self._fd, self._read_to_the_end)
        self._is_paused = False
        self._close_in(_LINGER)

    def _read_to_the_end(self) -> None:
        try:
            if self._socket.recv(_READ_BYTES):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self.close(self.endpoint.end_reason)

    def _stop_reading(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._loop.remove_reader(self._fd)

    def abort(self) -> None:
        """End it at once, so that the peer knows that it is before its end."""
        if not self.is_closed:
            # TCP's reset, in the place of its usual end.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close()

    def close(self, reason: str = "") -> None:
        """End it at once."""
        if self.is_closed:
            return
        self.is_closed = True
        self._stop_reading()
        if self._left is not None:
            self._loop.remove_writer(self._fd)
        self._socket.close()
        if self._farewell is not None:
            self._farewell.cancel()
            self._farewell = None
        try:
            self.endpoint.lose(reason or "the connection ended")
        finally:
            self.over(reason)
