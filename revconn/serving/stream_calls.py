"""Streaming calls at the connector: each runs in a worker while there is something for it to do.

A call's handler reads messages, yields messages, or both. While it may not send more it holds no
thread: between two messages it is put aside, and taken up again, by any worker, once the caller has
read. While it waits for a message it holds its worker. At most ``most`` workers are held by
streaming calls; others wait for one, and unary calls keep the rest.

A call is in the table of calls like any other, and ends once::

    opened --> waits for a worker --> runs --> answered, or failed
                     ^                 |
                     |  may send again |  may not send more
                     +--- put aside <--+

    and from each of them: expired | cancelled, or its connection ended | given up
"""

from __future__ import annotations

import enum
import time
import uuid
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from revconn._proto.registry_pb2 import StreamFrame, StreamOpening
from revconn.core.metadata import Metadata
from revconn.core.requests import LargeAlone
from revconn.core.status import StatusCode
from revconn.core.stream import OVERHEAD, Large, Listener, Received, Stream
from revconn.core.streams import Streams
from revconn.logger import get_logger
from revconn.messages import Request
from revconn.runtime.threads import BinarySemaphore
from revconn.serving.handlers import run_frames
from revconn.serving.line import Line
from revconn.serving.stream_requests import RETURNED, Behavior, EndCall, Ending, StreamRequest
from revconn.serving.workers import Backlog

if TYPE_CHECKING:
    from revconn.serving.calls import Calls

__all__ = ["StreamCalls"]

logger = get_logger(__name__)

LARGEST_MESSAGE = 100_000_000  # bytes, either way: a gateway may take less
_MOST_OPEN = 10_000  # on one connection: gateways open fewer
_SLICE = 0.01  # seconds that a call may run while others wait for a worker


class _Stopped(enum.Enum):
    """Why a call goes on later."""

    AWAITS = enum.auto()  # its one message has not come
    ASIDE = enum.auto()  # it may not send more
    HAD_ITS_TURN = enum.auto()  # others wait for a worker


class _Heard(Listener):
    """Hears what comes on a call's stream. All of it requires the lock."""

    __slots__ = ("_calls", "_request")

    def __init__(self, calls: StreamCalls, request: StreamRequest) -> None:
        self._calls = calls
        self._request = request

    def take(self, messages: list[Received], *, ended: bool) -> None:
        """Messages have come."""
        request = self._request
        request._inbox.extend(map(bytes, messages))  # which copies none that are that already
        request._has_ended |= ended
        self._calls.wake(request)

    def break_off(self, code: StatusCode, reason: str) -> None:
        """The call is over."""
        self._calls.broken_off(self._request, code, reason)

    def resume(self) -> None:
        """There is room for more answers."""
        self._calls.resume(self._request)


class StreamCalls:
    """The streaming calls of a connector. The lock of the table of calls guards all of it.

    :param most: workers that streaming calls may hold at once.
    """

    def __init__(
        self,
        calls: Calls,
        open_behavior: Callable[[StreamRequest], Behavior],
        *,
        most: int,
        most_held: int,
    ) -> None:
        self._calls = calls
        self._workers = calls.workers
        self._lock = calls._lock
        self._open_behavior = open_behavior
        self._most = most
        self._most_held = most_held
        self._running = 0  # workers that are held, or will be
        self._queue: dict[StreamRequest, None] = {}  # that wait for one
        self._to_run: list[StreamRequest] = []
        self._ended: list[Request] = []  # whose callbacks are to be called

    # What comes: the receiving threads

    def open_line(self, line: Line, frame_limit: int) -> None:
        """The gateway of a line knows streams, and takes messages of so many bytes."""
        # Whatever a gateway passes on of others' ids, none of theirs is one of ours.
        token = uuid.uuid4().hex
        streams = Streams(
            line.unpark,
            accept=lambda stream, opening: self._accept(line, token, stream, opening),
            message_limit=LARGEST_MESSAGE,
            most_streams=_MOST_OPEN,
            most_held=self._most_held,
            held_option="the service's max_in_flight_bytes",
            frame_limit=frame_limit,
        )
        with self._lock:
            line.take_streams(streams)

    def take_in(
        self, line: Line, frames: Iterable[tuple[StreamFrame | LargeAlone, Large | None]]
    ) -> None:
        """Take in what a gateway says of its streams."""
        problems = []
        with self._lock:
            for frame, large in frames:
                if line.streams is not None and (problem := line.streams.receive(frame, large)):
                    problems.append(problem)
        self.follow_up()
        for problem in problems:
            logger.debug("ignored %s", problem)

    def _accept(self, line: Line, token: str, stream: Stream, opening: StreamOpening) -> None:
        request_id = f"{stream.id}@{token}"
        request = StreamRequest.opened(self, line.replies, request_id, stream, opening)
        stream.listener = _Heard(self, request)
        self._enter(request)
        self._schedule(request)

    # Each of these requires the lock

    def _enter(self, request: StreamRequest) -> None:
        """It is in the table from now on, and takes no place of what comes as one message."""
        calls = self._calls
        request._replies.in_flight[request.request_id] = request
        calls._total += 1
        calls._exempt += 1
        calls._counts["accepted"] += 1
        if request._due is not None and request._due < calls._deadlines.next_due:
            calls._deadlines.expect(request._due)

    def _leave(self, request: StreamRequest, count: str) -> bool:
        """It is over, if it was not already: then it is counted so."""
        calls = self._calls
        replies = request._replies
        if replies.in_flight.get(request.request_id) is not request:
            return False
        del replies.in_flight[request.request_id]
        request._is_over = True
        calls._total -= 1
        calls._exempt -= 1
        calls._counts[count] += 1
        calls._tell_settled(replies)
        return True

    def cut_short(self, request: Any, code: StatusCode, reason: str) -> None:
        """It is out of the table: answer it with that."""
        self._calls._exempt -= 1
        request._is_over, request._why = True, (code, reason)
        # What it said before goes first, unless its caller does not take it.
        if request._stream.room > 0:
            request._stream.finish(code, reason)
        else:
            request._stream.cut_short(code, reason)
        self.interrupt(request)

    def _schedule(self, request: StreamRequest) -> None:
        request._since = time.monotonic()
        if self._running < self._most or self._calls._closed:
            self._running += 1
            self._to_run.append(request)
        else:
            self._queue[request] = None

    def wake(self, request: StreamRequest) -> None:
        """Something has come that a call may wait for, or its end."""
        if request._is_reading:
            request._is_reading = False
            request._reader.release()
        elif request._behavior is not None and request._behavior.is_detached:
            request._behavior.notify()
        elif request._awaits:
            request._awaits = False
            self._schedule(request)

    def resume(self, request: StreamRequest) -> None:
        """A call that was put aside may send again."""
        if request._is_aside:
            request._is_aside = False
            if request._behavior.is_detached:
                request._behavior.notify()
            elif request._room is not None:
                request._room.release()
                request._room = None
            else:
                self._schedule(request)

    def broken_off(self, request: StreamRequest, code: StatusCode, reason: str) -> None:
        """The stream of a call is over: whoever runs or reads it is to notice."""
        request._why = code, reason
        if self._leave(request, "cancelled"):
            self._ended.append(request)
            logger.debug("%r: %s, %s", request, code.name, reason)
        self.interrupt(request)

    def interrupt(self, request: StreamRequest) -> None:
        """A call is over, and out of the table; its handler may not know yet."""
        request._is_over = True  # a table that was closed forgets all that is in it
        if request in self._queue and request._responses is None:  # nothing is to be closed
            del self._queue[request]
            request._inbox.clear()
        self.wake(request)
        if request._is_aside:  # what it holds open is to be closed
            self.resume(request)

    # After that, without it

    def follow_up(self) -> None:
        """Have done what is not to be done under the lock."""
        if not (self._to_run or self._ended):
            return
        with self._lock:
            to_run, self._to_run = self._to_run, []
            ended, self._ended = self._ended, []
            is_closed = self._calls._closed
            hire = bool(to_run) and not is_closed and self._workers.put(to_run)
        if hire:
            self._workers.hire()
        if is_closed:
            self._close_aside(to_run)
        if ended:
            self._workers.call_back(ended)

    # The handler's thread

    def wait_for_message(self, request: StreamRequest) -> bool:
        """Wait until there is a message; false if there will be none.

        Raises what the handler is to see of a call that is over.
        """
        self.return_credit(request)
        with self._lock:
            if request._inbox:
                return True
            if request._is_over:
                raise request._behavior.interrupted()
            if request._has_ended:
                return False
            request._is_reading = True
        request._reader.acquire()
        return True

    @property
    def waiting(self) -> int:
        """How many calls wait for a worker."""
        return len(self._queue)

    def backlog(self, now: float) -> Backlog | None:
        """The calls that wait for a worker, though not all workers are busy; ``None`` if none."""
        with self._lock:
            first = next((each for each in self._queue if not each._is_over), None)
            if first is None:
                return None
            return Backlog(len(self._queue), now - first._since, self._most, 0)

    def return_credit(self, request: StreamRequest) -> None:
        """The caller may send as much again as was read."""
        cost, request._unreturned = request._unreturned, 0
        if cost:
            with self._lock:
                request._stream.consume(cost)

    def run(self, request: StreamRequest) -> None:
        """Go on with a call, in this worker, as far as it goes. Never raises."""
        goes_on = False
        try:
            step = self._begin if request._responses is None else self._produce
            stopped = request._context.run(step, request)
            # Not before its context was left: another worker may enter that at once.
            goes_on = stopped is not None and not self._put_aside(request, stopped)
        except EndCall as end:
            request._context.run(self._close, request)
            self._finish(request, end.ending)
        except BaseException:
            logger.exception("%r: serving it failed", request)
            request._context.run(self._close, request)
            self._finish(request, (StatusCode.INTERNAL, "internal error", ()))
        self._leave_worker(request if goes_on else None)

    def strand(self, request: StreamRequest) -> None:
        """There is no worker for a call that was given a place, and has failed for that."""
        # Nor is there one for those that wait for a place: nobody is hired here, where an executor
        # may be that is just being shut down.
        with self._lock:
            self._running -= 1
            queued = tuple(self._queue)
            self._queue.clear()
        for each in queued:
            self._calls._fail(
                each, StatusCode.UNAVAILABLE, "the service has no thread to run it in"
            )
        self._close_aside((request, *queued))

    def abandon(self, requests: Iterable[Request]) -> None:
        """The table is closed: no worker comes to these, nor to those that wait for a place."""
        with self._lock:
            queued = tuple(self._queue)
            self._queue.clear()
        self._close_aside(each for each in (*requests, *queued) if each._is_streaming)

    def _close_aside(self, requests: Iterable[Any]) -> None:
        """What these hold open is closed where callbacks are called: no worker does it."""
        self._workers.call_aside(
            partial(each._context.run, self._close, each)
            for each in requests
            if each._responses is not None
        )

    def _leave_worker(self, again: StreamRequest | None) -> None:
        with self._lock:
            self._running -= 1
            if again is not None:
                again._since = time.monotonic()
                self._queue[again] = None
            while self._queue and (self._running < self._most or self._calls._closed):
                self._running += 1
                following = next(iter(self._queue))
                del self._queue[following]
                self._to_run.append(following)
        self.follow_up()

    def _begin(self, request: StreamRequest) -> _Stopped | None:
        """Call its handler, once there is what that takes; why it goes on later, if it does."""
        if request._is_over:
            return None
        behavior = request._behavior
        if behavior is None:
            behavior = request._behavior = self._open_behavior(request)
            request._decode = behavior.decode
        if behavior.is_detached:
            behavior.begin()
            return None
        argument: Any = request._read()
        if not behavior.reads:
            message = self._only_message(request)
            if message is None:
                return _Stopped.AWAITS
            argument = behavior.decode(message)
        try:
            answer = behavior.invoke(argument)
            if behavior.yields:
                request._responses = iter(answer)
        except EndCall:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the application's code raises
            self._finish(request, behavior.failed(error, "calling application"))
            return None
        if behavior.yields:
            return self._produce(request)
        data = _bounded(behavior.encode(answer))
        with self._lock:
            if not request._is_over:
                request._stream.send(data)
        self._finish(request, behavior.ended())
        return None

    def _only_message(self, request: StreamRequest) -> bytes | None:
        """The caller's one message; ``None`` if it has not come: this goes on when it has."""
        with self._lock:
            if request._inbox:
                message = request._payload = request._inbox.popleft()
                request._stream.consume(len(message) + OVERHEAD)
                return message
            if not (request._has_ended or request._is_over):
                return None
        problem = f'"{request.method}" requires exactly one request message.'
        raise EndCall((StatusCode.UNIMPLEMENTED, problem, ()))

    def _produce(self, request: StreamRequest) -> _Stopped | None:
        """Have it answer; why it goes on later, if it does."""
        stream, behavior, responses = request._stream, request._behavior, request._responses
        encode, put, queue = behavior.encode, stream.queue.append, self._queue
        until = time.monotonic() + _SLICE
        while True:
            if request._is_over:
                self._close(request)
                return None
            if stream.put >= stream.granted:
                if not behavior.is_bound:
                    return _Stopped.ASIDE
                self.wait_for_room(request)
                continue
            try:
                answer = next(responses)
            except StopIteration:
                self._finish(request, behavior.ended())
                return None
            except EndCall:
                raise
            except Exception as error:  # noqa: BLE001 - whatever the application's code raises
                self._finish(request, behavior.failed(error, "iterating responses"))
                return None
            data = _bounded(encode(answer))
            if request._is_over:  # it ended itself, say
                continue
            put(data)
            stream.put += len(data) + OVERHEAD
            if not stream.is_listed:
                self._announce(request)
            if queue and time.monotonic() > until and not behavior.is_bound:
                return _Stopped.HAD_ITS_TURN

    def wait_for_room(self, request: StreamRequest) -> None:
        """Wait, in the thread that a call is bound to, until it may say more or is over."""
        with self._lock:
            if request._is_over or request._stream.room > 0:
                return
            request._is_aside = True
            room = request._room = BinarySemaphore()
        room.acquire()

    def _announce(self, request: StreamRequest) -> None:
        with self._lock:
            if not request._is_over:
                request._stream._streams.enlist(request._stream)

    def _put_aside(self, request: StreamRequest, why: _Stopped) -> bool:
        """Whether it waits, without a thread, until something happens that it waits for."""
        with self._lock:
            if request._is_over:
                return False
            if why is _Stopped.AWAITS:
                request._awaits = not (request._inbox or request._has_ended)
                return request._awaits
            if why is _Stopped.ASIDE:
                request._is_aside = request._stream.room <= 0
                return request._is_aside
            return False

    def _close(self, request: StreamRequest) -> None:
        """Its handler does not go on: what it holds open is closed now, not when it is found."""
        close = getattr(request._responses, "close", None)
        request._responses = None
        if close is not None:
            try:
                close()
            except Exception:
                logger.exception("%r: its handler failed as it was closed", request)

    def _finish(self, request: StreamRequest, ending: Ending) -> None:
        """The call is answered, unless it is over."""
        request._responses = None
        with self._lock:
            if self._leave(request, "answered"):
                request._stream.finish(*ending)
                self._ended.append(request)
                self.wake(request)  # a thread of the application's may be reading

    # Where the handler runs elsewhere: whichever thread that is, one at a time

    def read(self, request: StreamRequest) -> bytes | None:
        """The next message, if one has come."""
        try:
            message = request._inbox.popleft()
        except IndexError:
            self.return_credit(request)
            return None
        request._unreturned += len(message) + OVERHEAD
        if request._unreturned >= RETURNED:
            self.return_credit(request)
        return message

    def expects_more(self, request: StreamRequest) -> bool:
        """Whether there is a message, or may still be one."""
        return bool(request._inbox) or not request._has_ended

    def write(self, request: StreamRequest, message: bytes) -> None:
        """Say a message, if the call is not over."""
        with self._lock:
            if not request._is_over:
                request._stream.send(message)

    def is_full(self, request: StreamRequest) -> bool:
        """Whether nothing more should be said now; then the behavior is told when it may be."""
        with self._lock:
            request._is_aside = not request._is_over and request._stream.room <= 0
            return request._is_aside

    def end(self, request: StreamRequest, ending: Ending) -> None:
        """The call is answered, unless it is over."""
        self._finish(request, ending)
        self.follow_up()

    def send_initial(self, request: StreamRequest, metadata: Metadata) -> None:
        """Metadata that goes before the answer."""
        with self._lock:
            if not request._is_over:
                request._stream.begin(metadata)


def _bounded(data: bytes) -> bytes:
    if len(data) > LARGEST_MESSAGE:
        problem = f"a message of {len(data):,} bytes exceeds the {LARGEST_MESSAGE:,} of any"
        raise EndCall((StatusCode.RESOURCE_EXHAUSTED, problem, ()))
    return data


run_frames.add(StreamCalls.run.__code__)
