from __future__ import annotations

from collections.abc import Iterator

import pytest

from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus
from revconn.core.sending import answer
from revconn.core.status import StatusCode
from revconn.link.session import Session
from revconn.serving.handlers import Handlers
from revconn.serving.line import Line
from revconn.transport.base import StreamEnded
from tests.support.calls import open_calls
from tests.support.lines import let_answers_through
from tests.support.quiet_stream import QuietStream, new_session
from tests.support.threads import TIMEOUT


@pytest.fixture
def stream() -> QuietStream:
    return QuietStream()


@pytest.fixture
def session(stream: QuietStream) -> Iterator[Session]:
    with open_calls(Handlers()) as calls:
        session, ready = new_session(stream, calls)
        session.start("key", ("echo.Echo",))
        assert ready.wait(TIMEOUT)
        yield session
        session.retire("the test is over")
        session.join(TIMEOUT)


@pytest.fixture
def line(session: Session) -> Line:
    return session._line


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
    line._replies.answer([answer(b"answer", None)])
    session.say_goodbye()
    ((goodbye,),) = batches
    status = ConnectionMessage.FromString(goodbye).status
    assert status.status == ConnectionStatus.DISCONNECTED
    another = line._replies.open_line()
    let_answers_through(another)
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
    stream: QuietStream,
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
    assert (session.error is None) is in_peace
