"""One stream's life: handshake, receive loop, heartbeats, teardown."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection
from typing import Callable, NoReturn, Protocol

from revconn._proto.registry_pb2 import ForwardRequest
from revconn.config import Options
from revconn.core.features import CHUNKS
from revconn.core.protocol import Conversation, Phase
from revconn.core.status import StatusCode
from revconn.core.terms import Terms
from revconn.core.text import presentable
from revconn.exceptions import (
    AuthenticationError,
    ConfigurationError,
    ConnectionLost,
    HandshakeError,
)
from revconn.runtime import clock
from revconn.runtime.failures import remedy
from revconn.runtime.heartbeat import HeartbeatTimer
from revconn.runtime.outbox import Line
from revconn.transport.base import Stream, StreamEnded

__all__ = ["Session", "SessionOwner"]

logger = logging.getLogger(__name__)

_LONGEST_CHECK = 5.0
_JOIN_TIMEOUT = 5.0


class SessionOwner(Protocol):
    """Whom a session tells, from the thread that runs it."""

    def session_ready(self, session: Session) -> None:
        """CONNECTED arrived."""

    def requests_arrived(self, requests: list[ForwardRequest]) -> None:
        """A batch of requests arrived."""

    def requests_cancelled(self, request_ids: Collection[str]) -> None:
        """Nobody waits for these any more; some may be answered already, or unknown."""

    def watch(self) -> None:
        """A few seconds have passed; called from the timer's thread."""


class Session:
    """Runs one stream from its opening to its end, in the thread that calls :meth:`run`.

    ``terms`` are the connector's own until the gateway's first message has come.

    ``_lock`` guards the conversation and ``_retired``; no I/O happens under it.
    """

    def __init__(
        self,
        target: str,
        name: str,
        open_stream: Callable[[Line], Stream],
        line: Line,
        options: Options,
        owner: SessionOwner,
    ) -> None:
        self._target = target
        self._name = name
        self._line = line
        self._options = options
        self._owner = owner
        self._stream = open_stream(line)
        self._lock = threading.Lock()
        self._conversation = Conversation(liveness_timeout=options.liveness_timeout)
        self._introduced = False
        self.terms = Terms(
            options.heartbeat_interval, options.liveness_timeout, options.max_message_bytes
        )
        self._retired: ConnectionLost | None = None
        self._timer = HeartbeatTimer(
            self,
            handshake_timeout=options.connect_timeout,
            interval=options.heartbeat_interval,
            check_interval=min(_LONGEST_CHECK, options.heartbeat_interval),
        )
        self.ready_since: float | None = None

    @property
    def connection_id(self) -> str:
        """The id that the gateway gave; empty before CONNECTED."""
        return self._conversation.connection_id

    # The thread that runs it

    def run(self, api_key: str, services: tuple[str, ...]) -> NoReturn:
        """Register and serve until the stream ends.

        Always raises: :class:`ConnectionLost`, or :class:`HandshakeError` when CONNECTED never
        came.
        """
        timer = threading.Thread(
            target=self._timer.run, name=f"revconn-heartbeat-{self._name}", daemon=True
        )
        try:
            self._open(timer, api_key, services)
            while True:
                self._take_in(self._stream.receive())
        except StreamEnded as ended:
            raise self._loss_by(ended) from None
        except ConfigurationError as error:  # a certificate's file that is just being replaced, say
            raise self._loss(str(error)) from None
        finally:
            self._tear_down(timer)

    def _open(self, timer: threading.Thread, api_key: str, services: tuple[str, ...]) -> None:
        try:
            timer.start()
            with self._lock:
                registration = self._conversation.register(api_key, services)
            self._line.put_control(registration)
            self._stream.open()
        except RuntimeError as error:  # no thread to be had: for now, or as the interpreter exits
            raise self._loss(str(error)) from None

    def _take_in(self, batch: list[bytes]) -> None:
        if not self._introduced:
            self._introduced = True
            self.terms = self.terms.met_with(self._stream.metadata())
            with self._lock:
                self._conversation.agree(self.terms)
        with self._lock:
            inbound = self._conversation.receive(batch)
        if inbound.connection_id is not None:
            self._become_ready()
        if inbound.cancelled:
            self._owner.requests_cancelled(inbound.cancelled)
        if inbound.requests:
            self._owner.requests_arrived(inbound.requests)
        if inbound.end is not None:
            raise self._loss(str(inbound.end))

    def _become_ready(self) -> None:
        self.ready_since = time.monotonic()
        chunks = CHUNKS in self.terms.features
        self._line.let_answers_through(self.terms.max_message_bytes, chunks=chunks)
        self._timer.established(self.terms.heartbeat_interval)
        self._owner.session_ready(self)

    def _loss_by(self, ended: StreamEnded) -> ConnectionLost:
        if self._retired is None:
            return self._loss(ended.details, ended.code)
        if ended.code is StatusCode.CANCELLED:  # it only says that we closed it
            return self._retired
        return self._loss(f"{self._retired.reason}: {ended.details}")

    def _loss(self, reason: str, code: StatusCode | None = None) -> ConnectionLost:
        if self.ready_since is not None:
            return ConnectionLost(self._target, presentable(reason), code)
        if code is not None:
            reason = ": ".join(part for part in (code.name, presentable(reason)) if part)
        advice = remedy(code)
        if advice is not None:
            reason = f"{reason}; {advice}"
        refused = code in (StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED)
        kind = AuthenticationError if refused else HandshakeError
        return kind(self._target, reason, code)

    def _tear_down(self, timer: threading.Thread) -> None:
        with self._lock:
            self._conversation.end()
        self._timer.stop()
        self._line.close()
        self._stream.close()
        self._stream.join(_JOIN_TIMEOUT)
        if timer.ident is not None:
            timer.join(_JOIN_TIMEOUT)

    # Any thread

    def say_goodbye(self) -> bool:
        """Send DISCONNECTED and go on serving until the gateway ends the stream.

        False when there is no established connection to take leave of.
        """
        with self._lock:
            if self._conversation.phase is not Phase.READY:
                return False
            goodbye = self._conversation.disconnect()
        self._line.put_control(goodbye)
        return True

    def retire(self, reason: str) -> None:
        """End the stream at once; :meth:`run` raises with this reason. The first one counts."""
        with self._lock:
            if self._retired is None:
                self._retired = self._loss(reason)
        self._line.close()
        self._stream.close()

    # The timer's thread

    def handshake_overdue(self) -> None:
        """The gateway took the connection and never said CONNECTED."""
        self.retire(f"no CONNECTED within {self._options.connect_timeout:g} s")

    def beat(self) -> None:
        """Send a heartbeat, ahead of all answers that wait."""
        with self._lock:
            if not self._conversation.established:
                return
            heartbeat = self._conversation.heartbeat(time.time())
        self._line.put_control(heartbeat)

    def check_liveness(self) -> None:
        """Retire the stream after a silence that the gateway may not have waited out."""
        self._stream.check(time.monotonic())
        self._owner.watch()
        now = clock.with_suspend()
        left_at = self._line.control_left_at
        with self._lock:
            if left_at is not None:
                self._conversation.heartbeat_left(left_at)
            forgotten = self._conversation.may_be_forgotten(now)
            silence = self._conversation.longest_silence(now)
        if forgotten:
            self.retire(
                f"no heartbeat left this machine for {silence:.0f} s: the gateway may have"
                " forgotten the connection"
            )
