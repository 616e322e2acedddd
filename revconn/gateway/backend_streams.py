"""A streaming call at a backend, from when it is dialled to its end.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from revconn.core.metadata import Metadata
from revconn.core.rope import Data
from revconn.core.status import StatusCode
from revconn.core.stream import Listener
from revconn.gateway.client import Client
from revconn.gateway.client_calls import Answer, Asker, ClientCall, Lost, UnaryAsker
from revconn.logger import get_logger

__all__ = ["UNREACHABLE", "BackendListener", "BackendStream", "Destination"]

# Its name is what applications configure: it stays, whatever the file is called.
logger = get_logger("revconn.gateway.dialling")

UNREACHABLE = "the backend of the service cannot be reached"

# What a backend surely did nothing for, because its connection was about to end, goes to the next
# connection; another time, and whoever calls is told.
MOST_ATTEMPTS = 2
_MOST_KEPT = 64 << 10  # bytes of what was said, for another attempt


class Destination(Protocol):
    """The backend, as its streaming calls need it."""

    async def connect(self, timeout: float) -> Client:
        """A connection on which a call may be made. Raises :class:`OSError`."""

    def log_lost(self, details: str) -> None:
        """A call did not get there, or lost its connection."""

    def stream_ended(self) -> None:
        """One streaming call less."""


class BackendListener(Listener):
    """Who is told of what comes on a :class:`BackendStream`."""

    __slots__ = ()

    def unreachable(self, messages: list[Data], *, ended: bool) -> None:
        """It is over, and nothing was done for it; this is what was said on it."""
        raise NotImplementedError


class BackendStream(Asker):
    """To who makes the call the same as a stream of a connector's.

    :param deadline: of the caller's own, on the loop's clock.
    :ivar is_over: whether nothing is sent or heard any more.
    """

    __slots__ = (
        "_asker", "_attempts", "_backend", "_call", "_deadline", "_has_ended", "_is_begun",
        "_is_open", "_kept", "_kept_bytes", "_listener", "_metadata", "_path", "_task", "_timeout",
        "_timer", "is_over",
    )  # fmt: skip

    def __init__(
        self, backend: Destination, path: str, metadata: Metadata, deadline: float | None
    ) -> None:
        self._backend = backend
        self._path = path
        self._metadata = metadata
        self._deadline = deadline
        self._listener: BackendListener | None = None
        self._call: ClientCall | None = None
        self._asker: UnaryAsker | None = None  # which has what came meanwhile
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timeout = 0.0
        self._attempts = 0
        self._kept: list[Data] | None = []  # what was said, as long as it may be said again
        self._kept_bytes = 0
        self._has_ended = False
        self._is_open = False  # whether what is said is sent
        self._is_begun = False  # whether something of the answer has come
        self.is_over = False

    def dial(self, listener: BackendListener, timeout: float) -> None:
        """Make the call; in so many seconds the backend has to take it."""
        self._listener = listener
        self._timeout = timeout
        self._attempt()

    @classmethod
    def of(cls, backend: Destination, asker: UnaryAsker) -> BackendStream:
        """What was taken for a unary call, until its answer has begun."""
        stream = cls(backend, "", (), None)
        stream._asker, stream._call, stream._kept = asker, asker.call, None
        stream._is_open = stream._has_ended = True
        return stream

    def listen(self, listener: BackendListener) -> None:
        """Be told of what has come, and of all that comes."""
        self._listener = listener
        asker, self._asker = self._asker, None
        if asker is not None:
            asker.hand_over(self)

    def _attempt(self) -> None:
        loop = asyncio.get_running_loop()
        self._attempts += 1
        if self._timer is None:
            self._timer = loop.call_later(self._timeout, self._expire)
        self._task = loop.create_task(self._connect())

    async def _connect(self) -> None:
        assert self._timer is not None
        left = self._timer.when() - asyncio.get_running_loop().time()
        try:
            client = await self._backend.connect(left)
            self._task = None
            # Before it is made, which may open it at once.
            call = ClientCall(client, self._path, self._metadata, self._deadline, self)
            self._call = call
            client.make(call)
        except OSError as error:
            if not self.is_over:  # given up in the turn in which the time to connect ran out
                self._lose(Lost(str(error), is_unsent=True))
        except asyncio.CancelledError:
            raise
        except BaseException:
            logger.exception("%.200r for a backend: a bug in the gateway", self._path)
            self._end(StatusCode.INTERNAL, "the gateway failed; its log says how")

    def _expire(self) -> None:
        self._end(StatusCode.DEADLINE_EXCEEDED, "the backend did not take the call in time")

    # What is said

    def opened(self) -> None:
        """What was said meanwhile is sent."""
        call = self._call
        assert call is not None
        assert self._kept is not None
        assert self._listener is not None
        self._stop_waiting()
        self._is_open = True
        if self._kept:
            call.send(self._kept)
        self._keep_less()
        if self._has_ended:
            call.end_data()
        elif call.room > 0:
            self._listener.resume()
        else:
            call.await_room()

    def send(self, message: Data) -> None:
        """Send a message, as soon as there is room."""
        if self._kept is not None:
            self._kept.append(message)
            self._kept_bytes += len(message)
        if self._is_open and self._call is not None:
            self._keep_less()
            self._call.send((message,))
            if self._call.room <= 0:
                self._call.await_room()

    def _keep_less(self) -> None:
        if self._kept_bytes > _MOST_KEPT:
            self._kept = None

    def half_close(self) -> None:
        """Say, behind all messages, that no more follow."""
        self._has_ended = True
        if self._is_open and self._call is not None:
            self._call.end_data()

    @property
    def room(self) -> int:
        """How much more would be sent at once."""
        return self._call.room if self._is_open and self._call is not None else 0

    def resume(self) -> None:
        """There is room again."""
        if self._listener is not None:
            self._listener.resume()

    # What is answered

    def take_initial(self, metadata: Metadata) -> None:
        """The answer has begun: the call is this backend's."""
        self._kept = None
        self._is_begun = True
        if not self.is_over and self._listener is not None:
            self._listener.take_initial(metadata)

    def take(self, messages: list[Data]) -> None:
        """Messages have come."""
        if not self.is_over and self._listener is not None:
            self._listener.take(list(messages), ended=False)

    def consume(self, cost: int) -> None:
        """So much of what came was dealt with: more may come."""
        if self._call is not None:
            self._call.consume(cost)

    def end(self, outcome: Answer | Lost) -> None:
        """The answer has ended, or the call was lost."""
        if self.is_over:
            return
        if isinstance(outcome, Lost):
            self._lose(outcome)
            return
        self._forget()
        if self._listener is not None:
            self._listener.take_status(outcome.code, outcome.message, outcome.trailing)

    # Its end

    def _lose(self, lost: Lost) -> None:
        kept, listener = self._kept, self._listener
        is_unsent = lost.is_unsent and kept is not None
        if is_unsent and self._call is not None and self._attempts < MOST_ATTEMPTS:
            self._try_again()
            return
        self._backend.log_lost(str(lost))
        self._forget()
        if listener is None:
            return
        if lost.is_unsent and kept is not None:
            listener.unreachable(kept, ended=self._has_ended)
        else:
            reason = "the backend's connection ended" if self._is_begun else UNREACHABLE
            listener.break_off(StatusCode.UNAVAILABLE, reason)

    def _try_again(self) -> None:
        self._is_open = False
        self._call = None
        self._attempt()

    def _end(self, code: StatusCode, problem: str) -> None:
        self.cancel(problem)
        if self._listener is not None:
            self._listener.break_off(code, problem)

    def cancel(self, reason: str) -> None:
        """Give the call up: nothing else is said of it, or heard. No backend is told why."""
        if not self.is_over:
            self._forget()
            if self._call is not None:
                self._call.cancel()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _forget(self) -> None:
        self.is_over = True
        self._kept = None
        self._stop_waiting()
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        self._backend.stream_ended()
