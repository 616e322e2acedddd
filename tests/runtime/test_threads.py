from __future__ import annotations

import threading

import pytest

from revconn.runtime import threads
from revconn.runtime.threads import aside, is_own_thread, own_thread
from tests.support.threads import TIMEOUT, in_thread


def test_a_thread_is_the_librarys_own_while_it_says_so() -> None:
    assert not is_own_thread()
    with own_thread():
        assert is_own_thread()
    assert not is_own_thread()


def test_it_stays_its_own_until_the_outermost_end() -> None:
    with own_thread():
        with own_thread():
            pass
        assert is_own_thread()
    assert not is_own_thread()


def test_an_exception_ends_it_too() -> None:
    with pytest.raises(KeyError), own_thread():
        raise KeyError
    assert not is_own_thread()


def test_a_forked_childs_only_thread_is_nobodys_but_its_own() -> None:
    with own_thread():
        threads._disown()
        assert not is_own_thread()


def test_one_thread_does_not_speak_for_another() -> None:
    with own_thread():
        assert in_thread(is_own_thread).result(TIMEOUT) is False


# What the main thread is not to do itself


def thread_that_does_it() -> threading.Thread:
    seen: list[threading.Thread] = []
    aside(lambda: seen.append(threading.current_thread()), TIMEOUT)
    (thread,) = seen
    return thread


def test_what_the_main_thread_asks_for_is_done_in_another() -> None:
    thread = thread_that_does_it()
    assert thread.name == "revconn-close"
    thread.join(TIMEOUT)


def test_any_other_thread_does_it_itself() -> None:
    future = in_thread(lambda: thread_that_does_it() is threading.current_thread())
    assert future.result(TIMEOUT)
    with own_thread():
        assert thread_that_does_it() is threading.main_thread()


def test_the_main_thread_waits_no_longer_than_it_says() -> None:
    let_go = threading.Event()
    aside(lambda: let_go.wait(TIMEOUT), 0.01)
    let_go.set()


def test_where_no_thread_can_be_had_the_main_one_does_it(monkeypatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert thread_that_does_it() is threading.main_thread()
