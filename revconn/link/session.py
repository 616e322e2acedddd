"""One stream's life: the key it shows, and the threads around a connection, to its end."""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Collection
from typing import Callable, NoReturn

from revconn.core.connection import CHUNKS, DRAIN, STREAMS, Phase, Terms
from revconn.core.connector_side import ConnectorConnection, FromGateway, Probed
from revconn.core.liveness import ConnectorLiveness, Prober, Verdict
from revconn.core.rope import Data
from revconn.core.sending import answer
from revconn.core.status import Speaker, StatusCode
from revconn.exceptions import (
    AuthenticationError,
    ConfigurationError,
    ConnectionLost,
    HandshakeError,
    remedy,
)
from revconn.link.records import logger as link_logger
from revconn.logger import Mask, get_logger, presentable
from revconn.runtime import clock
from revconn.runtime.threads import Mailbox, guarded_thread, own_thread
from revconn.serving.calls import Calls
from revconn.serving.line import Line
from revconn.serving.replies import Replies
from revconn.settings.checks import require_api_key
from revconn.settings.environment import KeyFile
from revconn.settings.options import Options
from revconn.settings.target import Target
from revconn.transport.base import Stream, StreamEnded

__all__ = ["ApiKey", "Session"]

logger = get_logger(__name__)

_SHORTEST_PAUSE = 0.01  # seconds between two looks, however short a peer's silence may be
_JOIN_TIMEOUT = 5.0


class ApiKey:
    """The key to show to ``target``, as ``ask`` gives it. Owned by the link's thread.

    The user is asked before every session, and now and then while one serves.
    """

    def __init__(self, ask: Callable[[], str], target: Target) -> None:
        self._ask = ask
        self._target = target
        self._shown = ""

    def show(self) -> str:
        """The key of now. Raises :class:`HandshakeError` when there is none."""
        try:
            self._shown = require_api_key(self._ask())
        except ConfigurationError as error:
            raise HandshakeError(str(self._target), f"no usable API key: {error}") from error
        except SystemExit:
            raise
        except BaseException as error:  # a green thread's timeout is no Exception
            link_logger.exception("%s: the api_key callable failed", self._target)
            reason = f"the api_key callable raised {type(error).__name__}"
            raise HandshakeError(str(self._target), reason) from error
        return self._shown

    @property
    def is_watched(self) -> bool:
        """Whether to look for another one while a connection serves.

        Not where a function makes it: each of its keys may be another one.
        """
        return isinstance(self._ask, KeyFile)

    def is_another(self) -> bool:
        """Whether there is one other than was shown last; having none now is no reason to act."""
        try:
            return require_api_key(self._ask()) != self._shown
        except Exception:  # noqa: BLE001 - the next handshake will tell, if it is still so
            return False


class Session:
    """One stream from its opening to its end, in a thread of its own.

    ``terms`` are the connector's own until the gateway's first message has come. ``error`` says why
    it ended; ``None`` if the gateway, told goodbye, ended it with nothing unsettled.

    Three threads: the receiving one feeds the connection, the stream's sender takes from the line,
    the timer's sleeps until something is due. ``_lock`` guards the connection, ``_retired`` and
    ``_says_last``; no I/O happens under it, and nothing is logged.

    :param connect_timeout: seconds for this session's whole handshake.

    Whoever opened it is told in the receiving thread. Each is called with the session, but
    ``on_probed`` with what came of the probe:

    :param on_ready: CONNECTED arrived. It is to call :meth:`let_answers_through`.
    :param on_going_away: the gateway wants it replaced; it serves on.
    :param on_probed: what came of a call to itself. After ``LOST`` the session retires.
    :param on_end: it has ended, told last. If no thread could be had, in the one that started it.
    """

    def __init__(
        self,
        target: str,
        open_stream: Callable[[Line], Stream],
        calls: Calls,
        replies: Replies,
        options: Options,
        *,
        connect_timeout: float,
        on_ready: Callable[[Session], object],
        on_going_away: Callable[[Session], object],
        on_probed: Callable[[Probed], object],
        on_end: Callable[[Session], object],
    ) -> None:
        self._target = target
        self._calls = calls
        self._replies = replies
        self._line = line = replies.open_line()
        self._options = options
        self._on_ready = on_ready
        self._on_going_away = on_going_away
        self._on_probed = on_probed
        self._on_end = on_end
        self._stream = open_stream(line)
        self._lock = threading.Lock()
        # What it answers probes with. One for each session: an answer that another connection of
        # this very process gave proves nothing of this one.
        self._token = uuid.uuid4().hex
        self._connection = ConnectorConnection(
            ConnectorLiveness(
                connect_timeout,
                options.heartbeat_interval,
                options.liveness_timeout,
                lambda: str(uuid.uuid4()),
            ),
            token=self._token,
        )
        self._introduced = False
        self.terms = Terms(
            options.heartbeat_interval, options.liveness_timeout, options.max_message_bytes
        )
        self._mask = Mask("")
        self._retired: ConnectionLost | None = None
        self._failure: BaseException | None = None  # of the timer's thread, which sets it
        self._going_away = False
        self.services: tuple[str, ...] = ()
        self._prober: Prober | None = None
        self.error: BaseException | None = None
        self._says_last = False
        self._alarms: Mailbox[bool] = Mailbox()  # true: the end
        self._timer = guarded_thread(
            f"revconn-heartbeat-{target}", self._keep_time, on_failure=self._fail
        )
        self._thread: threading.Thread | None = None

    @property
    def connection_id(self) -> str:
        """The id that the gateway gave, to be shown; empty before CONNECTED."""
        return self._connection.shown_id

    @property
    def drains(self) -> bool:
        """Whether the gateway, told goodbye, sends nothing new and still reads answers."""
        return DRAIN in self.terms.features

    def start(
        self,
        api_key: str,
        services: tuple[str, ...],
        *,
        probed: tuple[str, ...] = (),
        astray: Collection[str] = (),
    ) -> None:
        """Register and serve until the stream ends. Returns at once.

        The session calls the ``probed`` ones of its services through the gateway now and then. For
        the sake of those that are ``astray`` the last one was given up.
        """
        self.services = services
        self._mask = Mask(api_key)
        interval = self._options.probe_interval
        if probed and interval is not None:
            patience = self._options.keepalive_timeout
            self._prober = Prober(probed, interval, patience, self._token.encode(), astray)
        self._thread = guarded_thread(
            f"revconn-receiver-{self._target}", lambda: self._run(api_key)
        )
        try:
            self._thread.start()
        except RuntimeError as error:  # no thread to be had: for now, or as the interpreter exits
            # Otherwise answers would be kept for a line that no stream will ever take from.
            self._line.close()
            self._end(self._loss(str(error)))

    def join(self, timeout: float | None) -> None:
        """Wait, at most ``timeout`` seconds (``None``: no limit), for its thread to end."""
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(timeout)

    # Its own thread

    def _run(self, api_key: str) -> None:
        error: BaseException | None
        with own_thread():
            try:
                self._serve(api_key)
            except StreamEnded as ended:
                error = None if self._left_in_peace(ended) else self._loss_by(ended)
            except ConfigurationError as problem:  # a certificate's file is being replaced, say
                error = self._loss(str(problem))
            except BaseException as failure:  # noqa: BLE001 - it is raised from start() and wait()
                error = failure
            error = self._failure or error
            try:
                if error is not None:  # perhaps its address was to blame: the next takes another
                    self._stream.blame()
                self._tear_down(settled=error is None and self._says_last)
            finally:  # the link waits for that
                self._end(error)

    def _serve(self, api_key: str) -> NoReturn:
        now = clock.with_suspend()
        with self._lock:
            registration = self._connection.register(
                api_key, self.services, now, self._prober, streaming=self._calls.streaming()
            )
        self._connection.log()
        # It waits before there is a stream to take it, so that nothing can go ahead of it: a
        # gateway fails a stream whose first message is another one.
        self._line.put_control(registration)
        try:
            # The timer before the stream: the handshake's limit ends what hangs in open() too.
            self._timer.start()
            self._stream.open(self._mask)
        except RuntimeError as error:  # no thread to be had
            raise self._loss(str(error)) from None
        while True:
            self._take_in(self._stream.receive())
            # Told once: the plan keeps it in mind until it can open another session. Meanwhile
            # this one goes on as before.
            if self._stream.going_away and not self._going_away:
                self._going_away = True
                self._on_going_away(self)

    def _left_in_peace(self, ended: StreamEnded) -> bool:
        """Whether the gateway ended the stream because all it had sent there is settled."""
        with self._lock:
            if self._connection.phase is not Phase.LEAVING or self._retired is not None:
                return False
        # Front proxies put a reset behind the gateway's last word, and grpcio shows CANCELLED in
        # the place of its OK. With nothing unsent that is the end too; what it cost before was
        # all of drain_timeout, and each answer once more, at every goodbye behind HAProxy.
        return ended.code is StatusCode.OK or (ended.status_lost and self._line.is_flushed)

    def _end(self, error: BaseException | None) -> None:
        self.error = error
        self._on_end(self)

    def _take_in(self, batch: list[Data]) -> None:
        if not self._introduced:
            self._meet()
        # Two clocks: the plan's, by which its waits go, stands still while the machine sleeps.
        # Deadlines and heartbeats do not: the gateway goes on counting them.
        arrived, now = time.monotonic(), clock.with_suspend()
        arriving = self._replies.arriving
        # A batch that is being decoded is not in the table of calls yet. Whoever asks whether all
        # is answered has to see it: a goodbye could overtake the answers to it. Entered here, and
        # nowhere else: methods of the replies' would be two calls more for a request alone.
        arriving[self._line] = arrived
        try:
            with self._lock:
                inbound = self._connection.receive(batch, now)
            if inbound.is_rare:
                self._take_in_rare(inbound, now)
            if inbound.streams:
                self._calls.streams.take_in(self._line, inbound.streams)
            if inbound.requests:
                self._calls.arrived(self._replies, inbound.requests, arrived, now)
        finally:
            del arriving[self._line]
            if self._replies.awaited:
                with self._replies.lock:
                    self._replies.notify()
        # Behind the requests: they came before what ended the connection, and their callers wait.
        if inbound.end is not None:
            raise self._loss(str(inbound.end))

    def _meet(self) -> None:
        """The gateway has said something: with its first message come its metadata."""
        self._introduced = True
        self.terms = self.terms.met_with(
            (name, self._mask(value) if isinstance(value, str) else value)
            for name, value in self._stream.metadata()
        )
        with self._lock:
            self._connection.agree(self.terms)
        if STREAMS in self.terms.features:
            self._calls.streams.open_line(self._line, self.terms.max_message_bytes)

    def _take_in_rare(self, inbound: FromGateway, now: float) -> None:
        """Act on what a batch brought besides requests for handlers."""
        self._connection.log()
        # CONNECTED first: the rest of the batch is about a connection that the plan knows by then.
        if inbound.connection_id is not None:
            self._on_ready(self)
            self._replies.log_refused()
        if inbound.cancelled:
            self._replies.withdraw(inbound.cancelled)
            self._calls.cancel(self._replies, inbound.cancelled)
        if inbound.answers:  # to probes, this connector's own or another's
            deadline = now + self._options.keepalive_timeout
            self._replies.answer([answer(message, deadline) for message in inbound.answers])
        for probed in inbound.probed:
            self._on_probed(probed)
            if probed.verdict is Verdict.LOST:
                self.retire(probed.reason)
        # No sign of life: gateways count heartbeats alone, so a probe that leaves hides no gap.
        for probe in inbound.probes:
            self._line.put_control(probe, is_sign_of_life=False)
        if inbound.connection_id is not None or inbound.probed or inbound.probes:
            self._alarms.put(False)  # something may be due sooner now

    def let_answers_through(self) -> None:
        """Send answers from now on: what the link calls when it is told that the session is ready.

        In the step in which it notes that, holding the lock of the calls: a link that leaves would
        find that all has been answered, and no session that it has to take leave of.
        """
        self._line.let_answers_through(
            self.terms.max_message_bytes,
            chunks=CHUNKS in self.terms.features,
            send_now=self._stream.send_now,
        )

    def _loss_by(self, ended: StreamEnded) -> ConnectionLost:
        # Whoever retired it knew the reason; what the stream ends with is an echo of that.
        if self._retired is None:
            return self._loss(ended.details, ended.code, ended.speaker)
        if ended.code is StatusCode.CANCELLED:  # it only says that we closed it
            return self._retired
        return self._loss(f"{self._retired.reason}: {ended.details}")

    def _loss(
        self,
        reason: str,
        code: StatusCode | None = None,
        speaker: Speaker = Speaker.STRANGER,
    ) -> ConnectionLost:
        # The key is hidden before the text is cut: what is left of one that was cut may not match.
        reason = presentable(self._mask(reason))
        if self._connection.connection_id:  # it was accepted
            return ConnectionLost(self._target, reason, code)
        if code is not None:
            reason = ": ".join(part for part in (code.name, reason) if part)
        advice = remedy(code, speaker)
        if advice is not None:
            reason = f"{reason}; {advice}"
        refused = code in (StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED)
        # While a gateway is redeployed its proxy answers 401 and 403 in its place, to any key.
        by_gateway = speaker is not Speaker.STRANGER
        kind = AuthenticationError if refused and by_gateway else HandshakeError
        return kind(self._target, reason, code, speaker=speaker)

    def _tear_down(self, *, settled: bool) -> None:
        with self._lock:
            self._connection.end()
        self._connection.log()
        self._alarms.put(True)
        # The line before the stream: what it has not sent, and what may not have arrived unless
        # all is settled, goes back to the replies, for the next session to send.
        dismissed = self._connection.is_dismissed and self.drains
        self._line.close(settled=settled, dismissed=dismissed)
        self._stream.close()
        self._stream.join(_JOIN_TIMEOUT)
        if self._timer.ident is not None:
            self._timer.join(_JOIN_TIMEOUT)

    # Any thread

    def say_goodbye(self, *, last: bool = True) -> None:
        """Send DISCONNECTED and go on serving until the gateway ends the stream.

        A gateway that knows no draining reads no answers from then on: they go out elsewhere.
        Not ``last``: there are answers to what came on other streams, which the gateway does not
        wait for; those that it may have missed go out elsewhere too.
        Does nothing where there is no connection to take leave of: it has just ended, say.
        """
        with self._lock:
            if self._connection.phase is not Phase.READY:
                return
            # Behind the look at the phase: only the first goodbye says whether it is the last word.
            self._says_last = last
            goodbye = self._connection.disconnect()
        self._connection.log()
        # Before the goodbye is queued: a gateway that knows no draining stops reading at it, and
        # what follows it on this stream is lost.
        if not self.drains:
            self._line.withhold_answers()
        self._line.put_control(goodbye)

    def retire(self, reason: str) -> None:
        """End the stream at once, for this reason. The first one counts."""
        with self._lock:
            if self._retired is None:
                self._retired = self._loss(reason)
        # The receiving thread wakes in receive(), or in open(), and tears all of it down: here the
        # caller may be any thread, and must not wait for another.
        self._line.close()
        self._stream.close()

    # The timer's thread

    def _fail(self, error: BaseException) -> None:
        """The timer cannot go on; nor can a session that sends no heartbeats."""
        self._failure = error
        self._line.close()
        self._stream.close()

    def _keep_time(self) -> None:
        """Sleep until something is due; a wait stands still while the machine sleeps."""
        look_by: float | None = None
        while True:
            with self._lock:
                due = self._connection.due()
            dues = [each for each in (due, look_by) if each is not None]
            pause = min(dues) - clock.with_suspend() if dues else None
            if self._wait(pause):
                return
            look_by = self._look(clock.with_suspend())

    def _wait(self, pause: float | None) -> bool:
        """Wait so many seconds, or until something is due sooner; whether it is the end."""
        try:
            return self._alarms.get(timeout=None if pause is None else max(_SHORTEST_PAUSE, pause))
        except queue.Empty:
            return False

    def _look(self, now: float) -> float | None:
        """Do what is due; return by when to look at the peer again, if that may not wait."""
        with self._lock:
            # Before the tick: a heartbeat that came due while the machine slept leaves as soon as
            # it wakes, and the gap that it ended is what the tick has to find.
            if self._line.control_left_at is not None:
                self._connection.heartbeat_left(self._line.control_left_at)
            # While answers have piled up nothing is read here, an answer to a probe neither.
            due = self._connection.tick(now, time.time(), reading=not self._line.blocked)
            established = self._connection.established
        if due.end:
            self.retire(due.end)
            return None
        if due.heartbeat is not None:
            self._line.put_control(due.heartbeat)
        if due.probe is not None:
            self._line.put_control(due.probe, is_sign_of_life=False)
        look_by = self._stream.check(time.monotonic()) if established else None
        if look_by is None:
            return None
        # Streams go by time.monotonic(), the timer by the clock that counts a suspend: it is awake.
        return clock.with_suspend() + (look_by - time.monotonic())
