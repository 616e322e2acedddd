"""Threads that are kept for when none can be started."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest

from revconn.runtime import threads

TIMEOUT = 30.0


@pytest.fixture
def none_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """How many spare threads there are: no others start from now on."""
    monkeypatch.setattr(threads, "SPARES_NEEDED", True)
    kept = threads.keep_spares(1)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        yield kept
    threads.drop_spares(kept)


def test_a_thread_runs_in_a_spare_one_under_its_own_name_and_can_be_joined(
    none_starts: int,
) -> None:
    ran: list[tuple[str, int]] = []
    release = threading.Event()

    def body() -> None:
        ran.append((threading.current_thread().name, threading.get_ident()))
        release.wait(TIMEOUT)

    thread = threads.Thread(target=body, name="revconn-lent", daemon=True)
    assert (thread.ident, thread.is_alive()) == (None, False)
    thread.start()
    assert thread.is_alive()
    thread.join(0.01)
    assert thread.is_alive()
    release.set()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert ran == [("revconn-lent", thread.ident)]


def test_without_a_spare_one_left_starting_raises_what_it_does(none_starts: int) -> None:
    assert none_starts == 1
    threads.Thread(target=bool).start()
    with pytest.raises(RuntimeError, match="can't create new thread"):
        threads.Thread(target=bool).start()


def test_where_threads_start_none_are_kept_and_each_starts_once() -> None:
    assert threads.SPARES_NEEDED or threads.keep_spares(3) == 0
    thread = threads.Thread(target=bool)
    thread.start()
    thread.join(TIMEOUT)
    with pytest.raises(RuntimeError, match="once"):
        thread.start()


def test_a_spare_thread_of_a_forked_child_does_not_take_what_was_for_one_of_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_spares_lock", "_spares_parked", "_loans"):
        monkeypatch.setattr(threads, name, getattr(threads, name))  # as it was, afterwards
    monkeypatch.setattr(threads, "_loans", queue.SimpleQueue())
    monkeypatch.setattr(threads, "SPARES_NEEDED", True)
    threads._loans.put(None)  # one of the parent's was to end, and had not taken that yet
    threads._forsake_spares()
    before = threading.enumerate()
    assert threads.keep_spares(1) == 1
    (spare,) = (each for each in threading.enumerate() if each not in before)
    threads.drop_spares(1)
    spare.join(TIMEOUT)
    assert not spare.is_alive()
    assert threads._loans.empty()
