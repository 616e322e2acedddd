"""No thread of the library's ends unnoticed."""

from __future__ import annotations

import threading

import pytest

from revconn.runtime.threads import guarded_thread, shielded

TIMEOUT = 30.0


class Peculiar(BaseException):
    """No Exception, and no exit either."""


def raising(error: BaseException):
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), Peculiar("x")], ids=repr)
def test_a_thread_that_fails_is_logged_and_told_of(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[BaseException] = []
    thread = guarded_thread("revconn-test", raising(error), told.append)
    assert thread.daemon
    thread.start()
    thread.join(TIMEOUT)
    assert told == [error]
    (record,) = caplog.records
    assert record.getMessage() == "the thread revconn-test failed"
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_one_that_nobody_depends_on_is_logged_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    thread = guarded_thread("revconn-test", raising(Peculiar()))
    thread.start()
    thread.join(TIMEOUT)
    assert "the thread revconn-test failed" in caplog.text


def test_telling_of_it_may_fail_too(caplog: pytest.LogCaptureFixture) -> None:
    thread = guarded_thread("revconn-test", raising(Peculiar()), raising(SystemExit()))
    thread.start()
    thread.join(TIMEOUT)
    assert "telling of it failed" in caplog.text


def test_a_thread_that_ends_well_tells_nobody(caplog: pytest.LogCaptureFixture) -> None:
    told: list[BaseException] = []
    thread = guarded_thread("revconn-test", lambda: None, told.append)
    thread.start()
    thread.join(TIMEOUT)
    assert not told
    assert not caplog.records


def test_foreign_code_is_called_and_costs_a_line_at_most(
    caplog: pytest.LogCaptureFixture,
) -> None:
    called: list[object] = []
    assert shielded("a callback", called.append, 1)
    assert not caplog.records
    assert not shielded("a callback", raising(Peculiar()))
    assert called == [1]
    assert caplog.messages == ["a callback failed"]


def test_ctrl_c_in_the_main_thread_is_not_the_callbacks_fault() -> None:
    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(KeyboardInterrupt):
        shielded("a callback", raising(KeyboardInterrupt()))
