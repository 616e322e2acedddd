from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import pytest

from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus
from revconn.core.outbound import Answer
from revconn.core.status import StatusCode
from revconn.runtime.outbox import Line, Outbox
from revconn.runtime.session import Session
from revconn.transport.base import Stream, StreamEnded
from tests.support.options import make_options
from tests.support.threads import TIMEOUT


class Welcome(Stream):
    """A stream on which the gateway says CONNECTED, and nothing else until it ends."""

    def __init__(self) -> None:
        status = ConnectionStatus(connection_id="id-1", status=ConnectionStatus.CONNECTED)
        self._unheard = [[ConnectionMessage(status=status).SerializeToString()]]
        self._closed = threading.Event()
        self._end = StreamEnded(StatusCode.CANCELLED, "closed")

    def open(self) -> None:
        pass

    def receive(self) -> list[bytes]:
        if self._unheard:
            return self._unheard.pop()
        self._closed.wait(TIMEOUT)
        raise self._end

    def ends(self, end: StreamEnded) -> None:
        self._end = end
        self._closed.set()

    def metadata(self) -> Iterable[tuple[str, str | bytes]]:
        return ()

    def blame(self) -> None:
        pass

    def close(self) -> None:
        self._closed.set()

    def join(self, timeout: float) -> None:
        pass


class Owner:
    def __init__(self) -> None:
        self.ready = threading.Event()

    def session_ready(self, session: Session) -> None:
        self.ready.set()

    def session_over(self, session: Session) -> None:
        pass


@pytest.fixture
def line() -> Line:
    return Outbox().open_line()


@pytest.fixture
def stream() -> Welcome:
    return Welcome()


@pytest.fixture
def session(line: Line, stream: Welcome) -> Iterator[Session]:
    owner = Owner()
    session = Session("gateway:1", "gateway", lambda _: stream, line, make_options(), owner)
    session.start("key", ("echo.Echo",))
    assert owner.ready.wait(TIMEOUT)
    yield session
    session.retire("the test is over")
    session.join(TIMEOUT)


def test_no_answer_follows_the_goodbye_to_a_gateway_that_reads_none_after_it(
    session: Session, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.take()  # the registration
    batches: list[list[bytes] | None] = []
    put_control = line.put_control

    def put_control_to_a_fast_sender(message: bytes) -> None:
        put_control(message)
        batches.append(line.take())

    monkeypatch.setattr(line, "put_control", put_control_to_a_fast_sender)
    line._outbox.put([Answer(b"answer", None)])
    session.say_goodbye()
    ((goodbye,),) = batches
    status = ConnectionMessage.FromString(goodbye).status
    assert status.status == ConnectionStatus.DISCONNECTED
    another = line._outbox.open_line()
    another.let_answers_through()
    assert another.take() == [b"answer"]


@pytest.mark.parametrize(
    ("code", "status_lost", "flushed", "in_peace"),
    [
        (StatusCode.OK, False, False, True),  # the gateway says so: it wants nothing else
        (StatusCode.CANCELLED, True, True, True),
        (StatusCode.CANCELLED, True, False, False),
        (StatusCode.CANCELLED, False, True, False),
        (StatusCode.UNAVAILABLE, False, True, False),
    ],
)
def test_after_the_goodbye_a_lost_status_is_the_end_unless_something_is_unsent(
    session: Session,
    stream: Welcome,
    line: Line,
    code: StatusCode,
    status_lost: bool,
    flushed: bool,
    in_peace: bool,
) -> None:
    line.take()  # the registration
    session.say_goodbye()
    if flushed:
        line.take()  # the goodbye
    stream.ends(StreamEnded(code, "", status_lost=status_lost))
    session.join(TIMEOUT)
    assert session.ended_in_peace is in_peace
