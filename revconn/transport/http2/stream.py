"""One gRPC stream over a socket: a receiving thread, a sending one, and an engine between."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from revconn.config import TLS
from revconn.core.addresses import Address
from revconn.core.frames import Goaway
from revconn.core.status import StatusCode
from revconn.core.terms import OFFER
from revconn.core.text import Mask
from revconn.guard import guarded_thread
from revconn.logger import get_logger
from revconn.proxy import Proxy
from revconn.target import Target
from revconn.transport.base import (
    LARGEST_MESSAGE,
    METHOD,
    Source,
    Stream,
    StreamEnded,
    Transport,
    user_agent,
)
from revconn.transport.http2.dial import Dialer
from revconn.transport.http2.engine import Engine
from revconn.transport.http2.wire import CAN_WRITE_NOW, Wire

__all__ = ["Http2Transport"]

logger = get_logger(__name__)

_SEND_STALL = 30.0


class Http2Transport(Transport):
    """Opens each stream on a connection of its own."""

    def __init__(
        self,
        target: Target,
        tls: TLS | None,
        proxy: Proxy | None,
        *,
        keepalive_interval: float | None,
        keepalive_timeout: float,
    ) -> None:
        self.target = target
        self.scheme = "http" if tls is None else "https"
        self.dialer = Dialer(target, tls, proxy, keepalive_timeout)
        self.keepalive_interval = keepalive_interval
        self.keepalive_timeout = keepalive_timeout

    @property
    def addresses(self) -> int:
        """How many the name had; none before the first look, and for a Unix socket."""
        return self.dialer.addresses

    def stream(self, source: Source, name: str) -> Stream:
        """A stream that dials when it is opened."""
        return _Http2Stream(self, source, name)

    def heed(self, goaway: Goaway, mask: Mask) -> None:
        """A gateway wants a connection to end: say so, and ping less if that was the reason."""
        if goaway.is_too_many_pings and self.keepalive_interval is not None:
            self.keepalive_interval *= 2
            logger.warning(
                "%s finds keepalive pings too frequent: the interval is %g s from now on",
                self.target,
                self.keepalive_interval,
            )
        else:
            logger.info("%s is going away (%s)", self.target, mask(str(goaway)))


class _Http2Stream(Stream):
    """The thread that calls :meth:`receive` reads the wire.

    ``_sender`` writes it, or while it has nothing to do whoever calls :meth:`send_now`: ``_turn``
    is held for writing. ``_lock`` guards ``_wire``, ``_closed`` and ``_failure``. The watch's three
    instants and ``_send_error`` are plain values, each written by one thread at a time.
    """

    def __init__(self, transport: Http2Transport, source: Source, name: str) -> None:
        self._transport = transport
        self._source = source
        self._engine = Engine(LARGEST_MESSAGE)
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._wire: Wire | None = None
        self._address: Address | None = None
        self._closed = False
        self._failure: StreamEnded | None = None
        self._sender = guarded_thread(f"revconn-sender-{name}", self._send)
        self._send_error = ""
        self._heeded = 0
        self._heard_at = 0.0
        self._pinged_at: float | None = None
        self._sending_since: float | None = None

    # The receiving thread

    def open(self) -> None:
        """Dial, and begin the stream."""
        wire = self._transport.dialer.dial(self._is_closed)
        self._address = wire.address
        with self._lock:
            if not self._closed:
                self._wire = wire
        if self._wire is None:  # close() came while dialling
            wire.release()
            raise StreamEnded(StatusCode.CANCELLED, "closed")
        authority = self._transport.target.authority
        metadata = {"user-agent": user_agent(), **dict(OFFER)}
        self._engine.open_stream(self._transport.scheme, authority, METHOD, metadata)
        self._heard_at = time.monotonic()
        self._sender.start()

    def receive(self) -> list[bytes]:
        """Every message that one read of the wire completed."""
        wire = self._wire
        assert wire is not None, "open() comes first"
        while True:
            if self._engine.end is not None:
                raise self._fail(*self._engine.end)
            try:
                data = wire.read()
            except OSError as error:
                raise self._fail(StatusCode.UNAVAILABLE, self._describe(error)) from None
            if not data:
                raise self._fail(StatusCode.UNAVAILABLE, self._describe(None))
            heeded = self._heeded
            messages = self._take_in(data)
            if messages or heeded != self._heeded:
                return messages

    @property
    def going_away(self) -> bool:
        """A GOAWAY came that lets the stream go on."""
        return bool(self._heeded)

    def metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """The response's headers."""
        return (self._engine.initial_metadata or {}).items()

    def _take_in(self, data: bytes) -> list[bytes]:
        self._heard_at = time.monotonic()
        messages = self._engine.receive(data)
        for goaway in self._engine.goaways[self._heeded :]:
            self._heeded += 1
            self._transport.heed(goaway, self.mask)
        if self._source.has_room():
            self._engine.grant()
        if self._engine.has_output:
            self._source.nudge()
        return messages

    def _describe(self, error: OSError | None) -> str:
        """Why the connection is over: an error, or the gateway's wish (``None``)."""
        if error is not None:
            where = "" if error.errno is None else self._engine.describe_end()
            return _network_words(error) + where
        reason = f"the gateway closed the connection{self._engine.describe_end()}"
        return f"{reason} ({self._send_error})" if self._send_error else reason

    # The sending thread

    def _send(self) -> None:
        wire = self._wire
        assert wire is not None, "open() comes first"
        try:
            while self._write_output(wire) and self._wait_for_more():
                pass
        except OSError as error:
            # What the peer said before it hung up may tell more: the receiving thread, which
            # reads that to its end, gives the reason.
            self._send_error = _network_words(error)
            wire.close()
        except BaseException:  # a stream that only receives would be worse than none
            logger.exception("%s: sending failed", self._transport.target)
            self._fail(StatusCode.INTERNAL, "sending failed; the log says why")

    def _write_output(self, wire: Wire) -> bool:
        """Write what may be written now; false after the end of the stream.

        What was taken and could not leave stays unconfirmed: see :meth:`Source.take`.
        """
        while True:
            with self._turn:  # whoever had it before may have reset the instant
                if self._sending_since is None:
                    self._sending_since = time.monotonic()
                output, carried = self._engine.take_output()
                if output or wire.has_backlog:
                    wire.write(output)
            if not output:
                return self._engine.end is None
            if carried:
                self._sending_since = time.monotonic()

    def _wait_for_more(self) -> bool:
        """Wait for messages, or for the peer's window; false when the stream is to end."""
        if self._engine.has_unsent:
            if not self._source.wait():
                return False
        else:
            self._sending_since = None
            batch = self._source.take()
            if batch is None:
                return False
            self._engine.put(batch)
        if self._source.has_room():
            self._engine.grant()
        return True

    # Any thread

    def send_now(self, messages: list[bytes]) -> bool:
        """Write what fits into the peer's windows and the system's buffer; the sender the rest."""
        if not CAN_WRITE_NOW or not self._turn.acquire(blocking=False):
            return False
        try:
            wire = self._wire
            if wire is None or self._engine.has_unsent or wire.has_backlog:
                return False
            is_left = self._write_now(wire, messages)
        finally:
            self._turn.release()
        if is_left:
            self._source.leave_to_sender()
        return True

    def _write_now(self, wire: Wire, messages: list[bytes]) -> bool:
        """Whether something is left for the sender. Requires holding ``_turn``."""
        assert self._turn.locked()
        self._engine.put(messages)
        output, _ = self._engine.take_output()
        self._sending_since = time.monotonic()  # green threads' sockets wait all the same
        try:
            wire.write_now(output)
        except OSError as error:
            self._send_error = _network_words(error)
            wire.close()
            return False
        self._sending_since = None
        return self._engine.has_unsent or wire.has_backlog

    def check(self, now: float) -> float | None:
        """Ping a quiet peer; give up one that is silent or does not read."""
        dues = [self._check_reading(now), self._check_silence(now)]
        return min((due for due in dues if due is not None), default=None)

    def _check_reading(self, now: float) -> float | None:
        since = self._sending_since
        if since is None:
            return None
        if now < since + _SEND_STALL:
            return since + _SEND_STALL
        self._fail(StatusCode.UNAVAILABLE, f"the gateway has read nothing for {now - since:.0f} s")
        return None

    def _check_silence(self, now: float) -> float | None:
        interval, timeout = self._transport.keepalive_interval, self._transport.keepalive_timeout
        if interval is None:
            return None
        heard_at = self._heard_at
        if self._pinged_at is None or heard_at > self._pinged_at:
            if now < heard_at + interval:
                return heard_at + interval
            self._pinged_at = now
            self._engine.ping()
            self._source.nudge()
        elif now >= self._pinged_at + timeout:
            self._fail(StatusCode.UNAVAILABLE, f"no answer to a ping within {timeout:g} s")
            return None
        # An answer may come at any time: then the next ping is due an interval later.
        return min(self._pinged_at + timeout, now + interval)

    def close(self) -> None:
        """End the stream at once."""
        self._fail(StatusCode.CANCELLED, "closed")

    def blame(self) -> None:
        """The address that it was dialled at failed."""
        if self._address is not None:
            self._transport.dialer.failed(self._address)

    def join(self, timeout: float) -> None:
        """Wait for the sender, then give back the socket."""
        if self._sender.ident is not None and self._sender is not threading.current_thread():
            self._sender.join(timeout)
        with self._lock:
            wire, self._wire = self._wire, None
        if wire is not None:
            with self._turn:  # whoever writes now notices that the wire is closed
                wire.release()

    def _fail(self, code: StatusCode, reason: str) -> StreamEnded:
        """Close the wire; the first reason counts, whichever thread finds it."""
        with self._lock:
            self._closed = True
            if self._failure is None:
                end = self._engine.end
                self._failure = (
                    StreamEnded(*end, self._engine.speaker) if end else StreamEnded(code, reason)
                )
            failure, wire = self._failure, self._wire
        if wire is not None:
            wire.close()
        self._source.nudge()
        return failure

    def _is_closed(self) -> bool:
        with self._lock:
            return self._closed


def _network_words(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
