from __future__ import annotations

import threading
from itertools import product

import pytest

from revconn.link.link import combine
from revconn.runtime.state import State
from revconn.supervisor import StateBoard
from tests.support.threads import TIMEOUT, in_thread
from tests.support.waiting import eventually

PRECEDENCE = [State.READY, State.CONNECTING, State.BACKING_OFF, State.IDLE]


def move(board: StateBoard, state: State) -> None:
    board.update(lambda _: state)


# The states of several links


@pytest.mark.parametrize(("one", "other"), [*product(PRECEDENCE, repeat=2)])
def test_the_liveliest_link_speaks_for_the_connector(one: State, other: State) -> None:
    expected = min(one, other, key=PRECEDENCE.index)
    assert combine([one, other]) is expected
    assert combine([State.CLOSED, one]) is one


def test_a_connector_whose_links_have_all_ended_is_closed() -> None:
    assert combine([State.CLOSED, State.CLOSED]) is State.CLOSED


# Changes


def test_it_begins_idle_and_moves_where_it_is_told() -> None:
    board = StateBoard()
    assert board.state is State.IDLE
    board.update(lambda state: State.CONNECTING if state is State.IDLE else State.CLOSED)
    assert board.state is State.CONNECTING


def test_each_change_is_told_once_to_every_callback_and_no_change_to_none() -> None:
    board = StateBoard()
    first: list[State] = []
    second: list[State] = []
    board.subscribe(first.append)
    board.subscribe(second.append)
    for state in (State.CONNECTING, State.CONNECTING, State.READY):
        move(board, state)
    assert first == second == [State.CONNECTING, State.READY]


def test_a_callback_hears_only_what_changes_after_it_came() -> None:
    board = StateBoard()
    move(board, State.CONNECTING)
    heard: list[State] = []
    board.subscribe(heard.append)
    move(board, State.READY)
    assert heard == [State.READY]


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(1)])
def test_a_failing_callback_is_logged_and_keeps_nobody_from_hearing(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    board = StateBoard()
    heard: list[State] = []

    def fail(state: State) -> None:
        raise error

    board.subscribe(fail)
    board.subscribe(heard.append)
    move(board, State.CONNECTING)
    move(board, State.READY)
    assert heard == [State.CONNECTING, State.READY]
    assert [record.getMessage() for record in caplog.records] == ["a state callback failed"] * 2
    assert all(record.exc_info for record in caplog.records)


def test_an_interrupt_in_a_callback_comes_through_and_later_changes_are_told() -> None:
    board = StateBoard()
    interrupts = [KeyboardInterrupt()]
    heard: list[State] = []

    def listen(state: State) -> None:
        if interrupts:
            raise interrupts.pop()
        heard.append(state)

    board.subscribe(listen)
    with pytest.raises(KeyboardInterrupt):
        move(board, State.CONNECTING)
    move(board, State.READY)
    assert heard == [State.READY]


def test_a_callback_may_change_the_state_and_all_hear_both_changes_in_order() -> None:
    board = StateBoard()
    heard: list[State] = []

    def go_on(state: State) -> None:
        if state is State.CONNECTING:
            move(board, State.READY)

    board.subscribe(go_on)
    board.subscribe(heard.append)
    move(board, State.CONNECTING)
    assert heard == [State.CONNECTING, State.READY]
    assert board.state is State.READY


def test_a_change_during_a_callback_is_told_after_it_and_its_thread_does_not_wait() -> None:
    board = StateBoard()
    heard: list[State] = []
    in_callback, go_on = threading.Event(), threading.Event()

    def listen(state: State) -> None:
        if state is State.CONNECTING:
            in_callback.set()
            assert go_on.wait(TIMEOUT)
        heard.append(state)

    board.subscribe(listen)
    teller = in_thread(move, board, State.CONNECTING)
    assert in_callback.wait(TIMEOUT)
    move(board, State.READY)
    assert board.state is State.READY, "callbacks run without the lock"
    assert heard == []
    go_on.set()
    teller.result(TIMEOUT)
    assert heard == [State.CONNECTING, State.READY]


def test_callbacks_hear_every_change_in_order_whoever_makes_it() -> None:
    board = StateBoard()
    changes: list[State] = []  # appended under the board's lock, by choose
    heard: list[State] = []
    board.subscribe(heard.append)

    def toggle(state: State) -> State:
        new = State.READY if state is not State.READY else State.BACKING_OFF
        changes.append(new)
        return new

    def change() -> None:
        for _ in range(500):
            board.update(toggle)

    for future in [in_thread(change) for _ in range(4)]:
        future.result(TIMEOUT)
    assert len(changes) == 2000
    assert heard == changes


def test_with_new_locks_it_serves_although_the_old_ones_are_held_for_ever() -> None:
    board = StateBoard(State.READY)
    heard: list[State] = []
    board.subscribe(heard.append)
    board._lock.acquire()
    board.renew_locks()
    move(board, State.CLOSED)
    assert heard == [State.CLOSED]
    assert board.wait_for((State.CLOSED,), 0) is State.CLOSED


# Waiting


def test_a_wait_for_the_present_state_returns_it_at_once() -> None:
    assert StateBoard().wait_for((State.READY, State.IDLE), 0) is State.IDLE


def test_a_wait_that_runs_out_returns_nothing() -> None:
    assert StateBoard().wait_for((State.READY,), 0) is None


@pytest.mark.parametrize("timeout", [None, TIMEOUT, 1e300, float("inf")])
def test_a_wait_ends_with_the_state_it_waits_for(timeout: float | None) -> None:
    board = StateBoard()
    waiter = in_thread(board.wait_for, (State.READY, State.CLOSED), timeout)
    eventually(lambda: board._waiting)
    move(board, State.CONNECTING)
    assert not waiter.done()
    move(board, State.READY)
    assert waiter.result(TIMEOUT) is State.READY
    assert board._waiting == []


def test_the_state_is_read_and_waited_for_while_somebody_changes_it() -> None:
    """As by a main thread that its own signal handler, which closes the connector, interrupts."""
    board = StateBoard()
    with board._lock:
        assert board.state is State.IDLE
        assert board.wait_for((State.CLOSED,), 0.01) is None
