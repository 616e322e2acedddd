"""What may be stuck, told apart."""

from __future__ import annotations

import pytest

from revconn import Request
from revconn._proto.registry_pb2 import ForwardRequest
from revconn.observing.watchdog import FullPool, SlowHandlers, SlowReader
from revconn.serving.handlers import Runs
from revconn.serving.workers import Backlog
from tests.support.requests import request_of


def request(request_id: str = "r1", method: str = "/echo.Echo/Say") -> Request:
    message = ForwardRequest(request_id=request_id, method_path=method)
    return request_of(message)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged since the last time."""
    assert {record.levelname for record in caplog.records} <= {"WARNING"}
    messages = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return messages


class TestSlowHandlers:
    def test_a_run_is_named_once_when_it_has_lasted_too_long(self, caplog) -> None:
        runs = Runs()
        watch = SlowHandlers(runs, 10.0)
        runs.running[1] = (request(), 100.0)
        watch.look(110.0)
        assert said(caplog) == []
        watch.look(110.5)
        assert said(caplog) == [
            "slow handler: Request('/echo.Echo/Say', request_id='r1') has been in its handler for"
            " 10.5 s"
        ]
        for now in range(111, 1000):
            watch.look(now)
        assert said(caplog) == []

    def test_many_slow_runs_of_a_method_are_a_line_now_and_then(self, caplog) -> None:
        runs = Runs()
        watch = SlowHandlers(runs, 10.0)
        lines = []
        for now in range(100, 800):
            for thread in range(3):
                if now % 20 == 0:
                    if now > 100:
                        del runs.running[thread]
                    runs.running[thread] = (request(), now - thread)
            watch.look(now)
            lines += [(now, line) for line in said(caplog)]
        assert [now for now, _ in lines] == [109, 169, 289, 529]

    def test_the_longest_run_is_named_for_those_of_its_method(self, caplog) -> None:
        runs = Runs()
        watch = SlowHandlers(runs, 10.0)
        for thread, since in enumerate((103.0, 101.0, 102.0)):
            runs.running[thread] = (request(f"r{thread}"), since)
        runs.running[9] = (request("r9", "/other.Other/Do"), 104.0)
        watch.look(120.0)
        assert said(caplog) == [
            "slow handler: Request('/echo.Echo/Say', request_id='r1') has been in its handler for"
            " 19.0 s (and 2 others of this method)",
            "slow handler: Request('/other.Other/Do', request_id='r9') has been in its handler for"
            " 16.0 s",
        ]

    def test_another_run_in_the_same_thread_is_another(self, caplog) -> None:
        runs = Runs()
        watch = SlowHandlers(runs, 10.0)
        runs.running[1] = (request("a"), 100.0)
        watch.look(111.0)
        del runs.running[1]
        runs.running[1] = (request("b"), 200.0)
        watch.look(211.0)
        assert [line.partition("request_id=")[2][:3] for line in said(caplog)] == ["'a'", "'b'"]

    def test_names_that_a_gateway_makes_up_are_not_kept_for_ever(self, caplog) -> None:
        runs = Runs()
        watch = SlowHandlers(runs, 10.0)
        for number in range(300):
            runs.running[1] = (request(method=f"/echo.Echo/M{number}"), 20.0 * number)
            watch.look(20.0 * number + 11.0)
        assert len(said(caplog)) == 300
        assert len(watch._reminders._kinds) == 100


class Pool:
    def __init__(self) -> None:
        self.waits: Backlog | None = None

    def backlog(self, now: float) -> Backlog | None:
        return self.waits


class TestFullPool:
    def test_requests_that_wait_for_long_are_told_of(self, caplog) -> None:
        pool = Pool()
        watch = FullPool(pool.backlog)
        watch.look(100.0)
        pool.waits = Backlog(waiting=7, longest=0.9, workers=16, wanted=0)
        watch.look(101.0)
        assert said(caplog) == []
        pool.waits = Backlog(waiting=37, longest=1.9, workers=16, wanted=0)
        watch.look(102.0)
        assert said(caplog) == [
            "pool full: 37 requests wait for a worker, the first for 1.9 s; all 16 workers are busy"
        ]

    def test_an_executor_that_has_too_few_threads_is_told_of(self, caplog) -> None:
        pool = Pool()
        pool.waits = Backlog(waiting=5, longest=3.0, workers=2, wanted=4)
        FullPool(pool.backlog).look(100.0)
        assert said(caplog) == [
            "pool full: 5 requests wait for a worker, the first for 3.0 s; all 2 workers are busy,"
            " and the executor has no thread for 4 more"
        ]

    def test_a_pool_that_stays_full_is_mentioned_at_growing_intervals(self, caplog) -> None:
        pool = Pool()
        watch = FullPool(pool.backlog)
        mentioned = []
        for now in range(1000):
            pool.waits = Backlog(1, 2.0, 16, 0) if now % 3 else None
            watch.look(now)
            mentioned += [now for _ in said(caplog)]
        assert mentioned == [1, 61, 181, 421, 901]


class Sender:
    def __init__(self) -> None:
        self.waits: dict[object, int] = {}

    def unsent(self) -> dict[tuple[str, object], int]:
        return {("gateway:50051", stream): batches for stream, batches in self.waits.items()}


class TestSlowReader:
    def looks(self, watch: SlowReader, start: int, stop: int) -> None:
        for now in range(start, stop):
            watch.look(now)

    def test_a_gateway_that_takes_nothing_is_named(self, caplog) -> None:
        sender = Sender()
        watch = SlowReader(sender.unsent)
        watch.look(99)
        sender.waits = {"stream": 3}
        self.looks(watch, 100, 105)
        assert said(caplog) == []
        watch.look(105)
        assert said(caplog) == [
            "gateway not reading: gateway:50051 has taken nothing of what is sent for 5 s"
        ]
        self.looks(watch, 106, 165)
        assert said(caplog) == []
        watch.look(165)
        assert said(caplog) == [
            "gateway not reading: gateway:50051 has taken nothing of what is sent for 65 s"
        ]

    def test_progress_counts_however_slow(self, caplog) -> None:
        sender = Sender()
        watch = SlowReader(sender.unsent)
        for now in range(200):
            sender.waits = {"stream": now // 4}
            watch.look(now)
        assert said(caplog) == []

    def test_a_pause_in_which_nothing_is_to_be_sent_is_none(self, caplog) -> None:
        sender = Sender()
        watch = SlowReader(sender.unsent)
        for now in range(200):
            sender.waits = {"stream": 7} if now % 2 else {}
            watch.look(now)
        assert said(caplog) == []

    def test_one_of_two_streams_is_enough(self, caplog) -> None:
        sender = Sender()
        watch = SlowReader(sender.unsent)
        for now in range(8):
            sender.waits = {"old": 1, "new": now}
            watch.look(now)
        assert len(said(caplog)) == 1

    def test_the_one_of_several_gateways_that_reads_nothing_is_named(self, caplog) -> None:
        watch = SlowReader(lambda: {("a:1", "stream"): now, ("b:1", "stream"): 7})
        for now in range(8):
            watch.look(now)
        assert said(caplog) == [
            "gateway not reading: b:1 has taken nothing of what is sent for 5 s"
        ]
