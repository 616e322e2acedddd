from __future__ import annotations

import itertools
import queue
import signal
import threading

import pytest

from revconn.runtime import threads
from revconn.runtime.threads import Mailbox
from tests.support.threads import TIMEOUT, in_thread


def test_what_was_put_is_taken_in_that_order() -> None:
    mailbox: Mailbox[int] = Mailbox()
    for item in range(3):
        mailbox.put(item)
    assert [mailbox.get(), mailbox.get(0.0), mailbox.get(TIMEOUT)] == [0, 1, 2]


def test_who_waits_gets_what_another_thread_puts() -> None:
    mailbox: Mailbox[str] = Mailbox()
    waits = in_thread(mailbox.get)
    mailbox.put("news")
    assert waits.result(TIMEOUT) == "news"


def test_a_wait_without_any_time_ends_at_once_however_often() -> None:
    mailbox: Mailbox[None] = Mailbox()
    for _ in range(10_000):  # SimpleQueue hangs once in some thousand, before Python 3.13
        with pytest.raises(queue.Empty):
            mailbox.get(timeout=0.0)


def test_a_wait_ends_where_the_process_stood_still_for_longer(monkeypatch) -> None:
    mailbox: Mailbox[None] = Mailbox()
    mailbox.put(None)
    mailbox.get()  # without a wait: the next one finds it open, and empty
    seconds = itertools.count(0.0, 10.0)
    with monkeypatch.context() as patch:
        patch.setattr(threads.time, "monotonic", lambda: next(seconds))
        with pytest.raises(queue.Empty):
            mailbox.get(timeout=1.0)


def test_a_signal_handler_may_put_what_the_main_thread_waits_for() -> None:
    mailbox: Mailbox[int] = Mailbox()
    before = signal.signal(signal.SIGUSR1, lambda number, _: mailbox.put(number))
    try:
        main = threading.main_thread().ident
        assert main is not None
        kill = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGUSR1))
        kill.start()
        assert mailbox.get(TIMEOUT) == signal.SIGUSR1
        kill.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
