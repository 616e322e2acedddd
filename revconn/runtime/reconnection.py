"""One session after the other: connect, serve, replace, back off, leave."""

from __future__ import annotations

import time
from typing import Protocol

import tenacity

from revconn.config import Options
from revconn.exceptions import ConnectionLost, HandshakeError
from revconn.runtime import journal
from revconn.runtime.attempts import Attempts
from revconn.runtime.farewell import Farewell, Leaver
from revconn.runtime.keys import ApiKey
from revconn.runtime.roster import Roster
from revconn.runtime.session import Session
from revconn.runtime.state import State
from revconn.target import Target

__all__ = ["Reconnected", "Reconnection"]


class Reconnected(Leaver, Protocol):
    """The link that is kept connected."""

    target: Target

    def enter(self, phase: State) -> None:
        """Its thread does something else now."""


class Reconnection:
    """How a link stays connected until it is to leave or stop. Owned by the link's thread."""

    def __init__(
        self, link: Reconnected, roster: Roster, api_key: ApiKey, options: Options
    ) -> None:
        self._link = link
        self._roster = roster
        self._api_key = api_key
        self._look_at_key_every = options.heartbeat_interval
        self._attempts = Attempts(options)
        self._farewell = Farewell(link, roster)
        self._hand_over_patience = options.drain_timeout
        self._kept: Session | None = None  # cannot be replaced, and serves until it ends

    def run(self) -> BaseException | None:
        """Until the link was told to end, or there is an error that ends it, which is returned."""
        try:
            self._stay_connected()
            while not self._take_leave():
                self._stay_connected()
        except BaseException as error:  # noqa: BLE001 - it is raised from start() and wait()
            return None if self._ended_on_request() else error
        return None

    def _stay_connected(self) -> None:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._is_retryable),
            stop=lambda retry_state: self._attempts.exhausted,
            wait=lambda retry_state: self._attempts.delay(),
            sleep=self._back_off,
            before_sleep=self._log_failure,
            reraise=True,
        )
        while not self._ended_on_request():
            try:
                retrying(self._connect_and_serve)
            except Exception as error:
                if not (self._ended_on_request() or self._keeps_serving(error)):
                    raise

    def _connect_and_serve(self) -> None:
        """Serve until the session is to be replaced, or raise why it ended."""
        if self._ended_on_request():  # it may have been the sleep that was interrupted
            return
        roster = self._roster
        if self._kept is not roster.serving:
            self._kept = None
        session = self._kept or self._connect()
        self._await_change(session, replaceable=session is not self._kept)
        if self._ended_on_request():
            return
        self._attempts.failed(session.ready_since)
        if session.error is not None:
            raise session.error
        if self._attempts.repeated:  # it did not last: the next one may have to be replaced too
            self._back_off(self._attempts.delay())

    def _await_change(self, session: Session, *, replaceable: bool) -> None:
        """Wait until the session is over, or there has to be another one."""
        roster = self._roster

        def has_changed() -> object:
            return (
                session.is_over
                or (session.ready_since and session.going_away and replaceable)
                or (roster.leaving and roster.serving)
            )

        if not self._api_key.is_watched:
            roster.wait_for(has_changed)
            return
        while not roster.wait_for(has_changed, self._look_at_key_every):
            if session.ready_since and self._api_key.is_another():
                journal.another_key(self._link.target)
                self._kept = None
                return

    def _connect(self) -> Session:
        """A session that takes over from the one that serves, if there is one."""
        self._link.enter(State.CONNECTING)
        try:
            session = self._link.open_session(
                registers=not self._roster.leaving, failures=self._attempts.failures
            )
        except HandshakeError:  # no key to show
            self._attempts.failed(None)
            raise
        self._farewell.hand_over(session, self._hand_over_patience)
        return session

    def _back_off(self, delay: float) -> None:
        roster = self._roster
        roster.next_attempt = time.monotonic() + delay
        self._link.enter(State.BACKING_OFF)
        leaving_already = roster.leaving
        roster.wait_for(lambda: roster.leaving and not leaving_already, delay)
        roster.next_attempt = None

    def _take_leave(self) -> bool:
        """Leave. False if there is still something to be answered, on another connection."""
        serving = self._roster.serving
        if serving is not None and not self._roster.stopping:
            if self._farewell.leave(serving):
                return True
            if not serving.ended_in_peace and not self._is_done():
                self._attempts.failed(serving.ready_since)
                self._log_loss(serving.error)
        if self._is_done():
            return True
        if serving is None or not (serving.ended_in_peace and serving.services):
            self._back_off(self._attempts.delay())
        return False

    # What to do next

    def _ended_on_request(self) -> bool:
        """Whether to open no other session: none is wanted, or one that is there is to be left."""
        roster = self._roster
        if roster.stopping:
            return True
        return roster.leaving and (roster.serving is not None or self._is_quiet())

    def _is_done(self) -> bool:
        return self._roster.stopping or self._is_quiet()

    def _is_quiet(self) -> bool:
        return self._link.become_quiet(time.monotonic())

    def _is_retryable(self, error: BaseException) -> bool:
        return not self._ended_on_request() and self._attempts.is_worth_another(error)

    def _keeps_serving(self, error: Exception) -> bool:
        """Whether it is only that another session could not be had in the place of one."""
        self._kept = self._roster.serving
        if self._kept is None:
            return False
        journal.gave_up_replacing(self._link.target, self._kept, error)
        return True

    # What to say

    def _log_failure(self, retry_state: tenacity.RetryCallState) -> None:
        assert retry_state.outcome is not None
        assert retry_state.next_action is not None
        error = retry_state.outcome.exception()
        assert isinstance(error, ConnectionLost)
        if self._attempts.was_ready:
            self._log_loss(error)
            return
        worth_a_line, so_far = self._roster.failed(error, time.monotonic())
        wait = retry_state.next_action.sleep
        journal.no_connection(error, so_far, wait, worth_a_line=worth_a_line)

    def _log_loss(self, error: BaseException | None) -> None:
        """The connection is gone, unless another has taken its place or it was said already."""
        if self._roster.lost(error, time.monotonic()):
            journal.lost(error)
