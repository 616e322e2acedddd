"""One gRPC stream over a socket: a receiving thread, a sending one, and an engine between."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

from revconn.core.connection import OFFER
from revconn.core.rope import Data
from revconn.core.status import StatusCode
from revconn.http2.connection import Engine
from revconn.http2.grpc import Goaway
from revconn.logger import Mask, get_logger
from revconn.runtime.threads import guarded_thread
from revconn.settings.options import TLS
from revconn.settings.proxy import Proxy
from revconn.settings.target import Target
from revconn.transport.base import (
    LARGEST_MESSAGE,
    METHOD,
    Source,
    Stream,
    StreamEnded,
    Transport,
    user_agent,
)
from revconn.transport.dial import Address, Dialer, network_words
from revconn.transport.wire import TLSWire, Wire

__all__ = ["Http2Transport"]

logger = get_logger(__name__)

_SEND_STALL = 30.0  # seconds in which a peer takes nothing of one write: a gateway that is stuck
_MOMENT = 0.001  # seconds; a write that does not wait takes a hundredth of that


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
        self.authority = target.authority
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
        # Servers built on gRPC's C core and grpc-go end a connection whose pings are too frequent.
        # Remembered here and not by the stream, because it is the next connection that has to ping
        # less, and the one after it less again, until it is as seldom as the gateway bears.
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

    ``_turn`` is held for writing: by ``_sender`` as a rule, and while it has nothing to do by
    whoever calls :meth:`send_now`, and by the receiving thread for what the gateway asked for. All
    else are plain values. ``_wire`` and ``_closed`` are each set before the other is read, so that
    of :meth:`open` and :meth:`close` one at least sees both; the first of ``_failures`` counts; the
    watch's three instants and ``_send_error`` are each written by one thread at a time.
    """

    def __init__(self, transport: Http2Transport, source: Source, name: str) -> None:
        self._transport = transport
        self._source = source
        self._engine = Engine(LARGEST_MESSAGE)
        self._mask = Mask("")
        # Held while writing, which is I/O: a write is whole frames, and two threads' would mix. Who
        # could do anything else instead never waits for it longer than `_MOMENT`.
        self._turn = threading.Lock()
        self._wire: Wire | None = None
        self._address: Address | None = None
        self._closed = False
        self._failures: list[StreamEnded] = []
        self._sender = guarded_thread(f"revconn-sender-{name}", self._send)
        self._send_error = ""
        self._heeded = 0
        self._brought_messages = False  # the last read
        self._waited_since = -1  # how much control was written when it last waited for an answer
        self._heard_at = 0.0  # the receiving thread's, as of its last read
        self._pinged_at: float | None = None  # whoever calls check()'s
        self._sending_since: float | None = None  # whoever has the turn to write's

    # The receiving thread

    def open(self, mask: Mask) -> None:
        """Dial, and begin the stream."""
        self._mask = mask
        # The receiver's thread dials, and close() may come at any instant of it: `_closed` is set
        # before `_wire` is looked at there, and looked at after `_wire` is set here.
        sock, tls, self._address = self._transport.dialer.dial(self._is_closed)
        self._wire = wire = Wire(sock) if tls is None else TLSWire(sock, tls)
        if self._closed:  # close() came while dialling
            self._wire = None
            wire.release()
            raise StreamEnded(StatusCode.CANCELLED, "closed")
        metadata = {"user-agent": user_agent(), **dict(OFFER)}
        transport = self._transport
        self._engine.open_stream(transport.scheme, transport.authority, METHOD, metadata)
        self._heard_at = time.monotonic()
        self._sender.start()

    def receive(self) -> list[Data]:
        """Every message that one read of the wire completed."""
        wire = self._wire
        assert wire is not None, "open() comes first"
        engine = self._engine
        while True:
            if engine.end is not None:
                raise self._fail(*engine.end)
            # What the last read asked for leaves now, if no answer has taken it along: waking the
            # sender for each PING of a gateway that estimates its bandwidth would cost half of a
            # lone request's time. If requests came with it an answer may take it in a moment; once,
            # or a gateway that sends without a pause and gets no answers would wait for it.
            owes_window = engine.inbound.is_half_used and not self._source.blocked
            if engine.unsent:  # the sender waits for the peer's window
                if owes_window or engine.control:
                    self._source.nudge()
            elif owes_window:
                self._write_control(wire)
            elif engine.control:
                may_wait = self._brought_messages and engine.control_taken != self._waited_since
                self._waited_since = engine.control_taken
                if not (may_wait and wire.await_data(_MOMENT)):
                    self._write_control(wire)
            self._brought_messages = False
            try:
                data = wire.read()
            except OSError as error:
                raise self._fail(StatusCode.UNAVAILABLE, self._describe(error)) from None
            if not data:
                raise self._fail(StatusCode.UNAVAILABLE, self._describe(None))
            self._heard_at = time.monotonic()
            if engine.inflater is not None and not self._source.blocked:
                engine.inflater.renew()
            messages = engine.receive(data)
            if engine.unsent and engine.may_send:  # now: an inline handler may take its time
                self._source.nudge()
            # Returned even with nothing to deliver: the session looks at `going_away` in between,
            # and has another connection opened before this one ends.
            if engine.goaways and len(engine.goaways) > self._heeded:
                self._heed(engine.goaways)
                return messages
            if messages:
                self._brought_messages = True
                return messages

    def metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """The response's headers."""
        return (self._engine.initial_metadata or {}).items()

    def _heed(self, goaways: list[Goaway]) -> None:
        self.going_away = True
        for goaway in goaways[self._heeded :]:
            self._heeded += 1
            self._transport.heed(goaway, self._mask)

    def _write_control(self, wire: Wire) -> None:
        """Write what waits, in this thread if nobody else writes."""
        is_left = True
        if wire.can_write_now and self._turn.acquire(blocking=False):
            try:
                if not (self._engine.unsent or wire.has_backlog):
                    is_left = self._write_now(wire, ())
            finally:
                self._turn.release()
        if is_left:
            self._source.nudge()

    def _describe(self, error: OSError | None) -> str:
        """Why the connection is over: an error, or the gateway's wish (``None``)."""
        # An error with a number comes from the system, in the middle of whatever was under way; one
        # without is TLS's, which already says what is wrong.
        if error is not None:
            where = "" if error.errno is None else self._engine.describe_end()
            return network_words(error) + where
        reason = f"the gateway closed the connection{self._engine.describe_end()}"
        return f"{reason} ({self._send_error})" if self._send_error else reason

    # The sending thread

    def _send(self) -> None:
        wire = self._wire
        assert wire is not None, "open() comes first"
        batch: list[Data] | None = []
        try:
            while batch is not None and self._write_output(wire, batch):
                batch = None  # a thread that waits keeps nothing alive
                batch = self._wait_for_more()
        except OSError as error:
            # What the peer said before it hung up may tell more: the receiving thread, which
            # reads that to its end, gives the reason.
            self._send_error = network_words(error)
            wire.close()
        except BaseException:  # a stream that only receives would be worse than none
            logger.exception("%s: sending failed", self._transport.target)
            self._fail(StatusCode.INTERNAL, "sending failed; the log says why")

    def _write_output(self, wire: Wire, batch: list[Data]) -> bool:
        """Write what may be written now; false after the end of the stream.

        What was taken and could not leave stays unconfirmed: see :meth:`Source.take`.
        """
        while True:
            with self._turn:  # whoever had it before may have reset the instant
                if self._sending_since is None:
                    self._sending_since = time.monotonic()
                if self._engine.inbound.is_half_used and not self._source.blocked:
                    self._engine.grant()
                output, carried = self._engine.take_output(batch)
                batch = []
                if output or wire.has_backlog:
                    wire.write(output)
            if not output:
                return self._engine.end is None
            if carried:  # a slow gateway is not a stuck one, however much there is to send
                self._sending_since = time.monotonic()

    def _wait_for_more(self) -> list[Data] | None:
        """Wait for messages, or for the peer's window; ``None`` when the stream is to end."""
        # take() would say that the batch before has left, which waits in the engine for the window
        # to open: if the stream ended meanwhile those answers would go out on no other. Nor is
        # `_sending_since` reset, so that a window that never opens is noticed.
        if self._engine.unsent:
            return [] if self._source.wait() else None
        self._sending_since = None
        return self._source.take()

    # Any thread

    def send_now(self, messages: list[Data]) -> bool:
        """Write what fits into the peer's windows and the system's buffer; the sender the rest."""
        # The receiving thread may just be writing what the gateway asked for together with the
        # request: waiting for that is cheaper than a change of threads.
        wire = self._wire
        if wire is None or not wire.can_write_now or not self._turn.acquire(timeout=_MOMENT):
            return False
        try:
            if self._engine.unsent or wire.has_backlog:
                return False
            is_left = self._write_now(wire, messages)
        finally:
            self._turn.release()
        if is_left:
            self._source.leave_to_sender()
        return True

    def _write_now(self, wire: Wire, messages: Sequence[Data]) -> bool:
        """Whether something is left for the sender. Requires holding ``_turn``."""
        if self._engine.inbound.is_half_used and not self._source.blocked:
            self._engine.grant()
        self._sending_since = time.monotonic()
        try:
            output, _ = self._engine.take_output(messages)
            if output:
                wire.write_now(output)
        except OSError as error:  # as in _send(): the receiving thread tells why
            self._send_error = network_words(error)
            wire.close()
            return False
        except BaseException:  # what was taken is lost: a stream that goes on would lack it
            self._fail(StatusCode.INTERNAL, "sending failed; the log says why")
            raise
        self._sending_since = None
        return bool(self._engine.unsent or wire.has_backlog)

    def check(self, now: float) -> float | None:
        """Ping a quiet peer; give up one that is silent or does not read."""
        dues = [self._check_reading(now), self._check_silence(now)]
        return min((due for due in dues if due is not None), default=None)

    def _check_reading(self, now: float) -> float | None:
        since = self._sending_since  # once: whoever writes may reset it any time
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
        # Whatever was heard since the ping answers it: a gateway may have much to send before its
        # acknowledgement. One ping is under way at a time.
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
        # Last of all: a descriptor that is given back while a thread still uses it may be another
        # file's by then.
        wire, self._wire = self._wire, None
        if wire is not None:
            with self._turn:  # whoever writes now notices that the wire is closed
                wire.release()

    def _fail(self, code: StatusCode, reason: str) -> StreamEnded:
        """Close the wire; the first reason counts, whichever thread finds it."""
        self._closed = True
        # Two threads may both find none and append: the first in the list is what all tell.
        if not self._failures:
            end = self._engine.end
            self._failures.append(
                StreamEnded(*end, self._engine.speaker) if end else StreamEnded(code, reason)
            )
        wire = self._wire
        if wire is not None:  # which wakes a thread that reads or writes it
            wire.close()
        self._source.nudge()  # and this the sender, if it waits for something to send
        return self._failures[0]

    def _is_closed(self) -> bool:
        return self._closed
