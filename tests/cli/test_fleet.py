"""``revconn serve --processes``: a parent that starts, watches, replaces and drains."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from revconn.cli import main
from revconn.cli.fleet import Fleet, _Child
from revconn.gateway import Gateway
from tests.support.commands import TIMEOUT, Command, run_command
from tests.support.waiting import eventually

KEY = "the-right-key"
PACE = 0.005  # seconds from an answer to the next call

APP = """\
import os
from revconn import Connector

connector = Connector({target!r}, api_key={key!r})

@connector.method("/app.App/Who")
def who(request):
    return str(os.getpid()).encode()
"""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway(api_keys=KEY) as gateway:
        yield gateway


@pytest.fixture
def app(gateway: Gateway, tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP.format(target=gateway.address, key=KEY))
    return tmp_path


class Caller:
    """Asks again and again which process answers, and remembers every failure."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._call = channel.unary_unary("/app.App/Who")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0
        self.errors: list[str] = []

    def who(self) -> int:
        return int(self._call(b"", timeout=TIMEOUT))

    def everybody(self) -> set[int]:
        return {self.who() for _ in range(6)}

    def _run(self) -> None:
        while not self._stopping.wait(PACE):
            try:
                self.who()
            except grpc.RpcError as error:
                self.errors.append(f"{error.code()}: {error.details()}")
            self.answered += 1

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._thread.join()


@pytest.fixture
def caller(gateway: Gateway) -> Iterator[Caller]:
    with grpc.insecure_channel(gateway.address) as channel:
        yield Caller(channel)


@pytest.fixture
def fleet(gateway: Gateway, app: Path) -> Iterator[Command]:
    with Command("serve", "app:connector", "--processes", "2", cwd=app) as command:
        eventually(lambda: len(gateway.connections()) == 2, TIMEOUT)
        yield command
        command.signal(signal.SIGTERM)
        command.wait()


def test_every_process_serves_and_sigterm_twice_in_a_row_is_one_that_drains_them_all(
    fleet: Command, caller: Caller
) -> None:
    assert len(caller.everybody()) == 2
    with caller:
        eventually(lambda: caller.answered, TIMEOUT)
        for _ in range(2):
            fleet.signal(signal.SIGTERM)
        assert fleet.wait() == 0
    assert "again: leaving at once" not in fleet.output
    assert "Traceback" not in fleet.output


class Process:
    """Hears signals."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def send_signal(self, number: int) -> None:
        self.heard.append(number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def test_a_process_that_leaves_already_is_not_told_to_twice_until_it_is_to_leave_at_once() -> None:
    fleet = Fleet([], 2)
    serving, leaving = Process(), Process()
    for slot, process in zip(fleet._slots, (serving, leaving)):
        slot.child = _Child(process, 0, 0, leaving=process is leaving)  # type: ignore[arg-type]
    fleet._receive_signal(signal.SIGTERM)
    assert (serving.heard, leaving.heard) == ([signal.SIGTERM], [])
    fleet._receive_signal(signal.SIGTERM)
    assert (serving.heard, leaving.heard) == ([signal.SIGTERM], [])
    fleet._receive_signal(signal.SIGINT)
    assert serving.heard == [signal.SIGTERM, signal.SIGINT], "SIGTERM could be taken for a repeat"
    assert leaving.heard == [signal.SIGINT]


def test_a_successor_that_is_ready_again_does_not_cut_short_the_drain_of_the_old_one() -> None:
    fleet, (reports, report_end) = Fleet([], 1), os.pipe()
    (slot,), old = fleet._slots, Process()
    slot.child = _Child(old, 0, 0)  # type: ignore[arg-type]
    slot.successor = _Child(Process(), reports, 0)  # type: ignore[arg-type]
    for _ in range(2):  # it lost its gateway in between
        os.write(report_end, b"ready\n")
        fleet._receive_report(slot, slot.successor)
    os.close(report_end)
    os.close(reports)
    assert old.heard == [signal.SIGTERM]


def test_sighup_replaces_the_processes_in_turn_without_a_failed_request(
    fleet: Command, caller: Caller
) -> None:
    before = caller.everybody()
    with caller:
        fleet.signal(signal.SIGHUP)
        for pid in before:
            fleet.wait_for_line(f"{pid} ended with 0")
    assert caller.answered > 0
    assert caller.errors == []
    assert not caller.everybody() & before
    fleet.signal(signal.SIGTERM)
    assert fleet.wait() == 0


def test_one_that_was_killed_is_replaced_and_all_leave_when_their_parent_is_killed(
    gateway: Gateway, fleet: Command, caller: Caller
) -> None:
    victim = caller.who()
    os.kill(victim, signal.SIGKILL)
    fleet.wait_for_line(f"{victim} ended with -9")
    eventually(
        lambda: len(gateway.connections()) == 2 and victim not in caller.everybody(), TIMEOUT
    )
    fleet.signal(signal.SIGKILL)
    eventually(lambda: not gateway.connections(), TIMEOUT)


def test_a_refused_key_ends_the_fleet_with_1(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP.format(target=gateway.address, key="wrong"))
    ended = run_command("serve", "app:connector", "--processes", "2", cwd=tmp_path)
    assert ended.returncode == 1
    assert "check api_key" in ended.stderr


@pytest.mark.parametrize("code", [1, 2])
def test_a_process_that_cannot_serve_ends_the_fleet_with_its_exit_code(code: int) -> None:
    command = [sys.executable, "-S", "-c", f"raise SystemExit({code})"]
    assert Fleet(command, 2).run() == code


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_a_count_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], count: str) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["serve", "app:connector", f"--processes={count}"])
    assert refused.value.code == 2
    assert "is not a count" in capsys.readouterr().err
