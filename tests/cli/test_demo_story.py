"""The demo's story with actors for processes: what it says when one does not do as it should.

Real ones are in test_demo.py.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any, Callable

import pytest

from revconn._proto.demo_pb2 import HelloReply
from revconn.cli import main
from revconn.cli.demo import story
from revconn.cli.demo.greeter import Outcome
from revconn.cli.demo.processes import Said
from revconn.runtime.threads import Mailbox


@dataclass
class Play:
    """What the test has the actors do; by default all of it works."""

    silent: bool = False  # the gateway never says anything
    nth_dies: int = 0  # of those who come on
    exit_code: int = 0  # with which everybody leaves
    same_id: bool = False  # of the connector, when it comes back
    statuses: dict[int, str] = field(default_factory=dict)  # of calls to the nth gateway
    status_without_name: str = "INVALID_ARGUMENT"
    reply: dict[str, Any] = field(default_factory=dict)  # other fields than the handler's
    during_a_call: Callable[[], None] = lambda: None

    came_on: list[str] = field(default_factory=list)

    @property
    def connection_id(self) -> str:
        return "id-1" if self.same_id else f"id-{self.came_on.count('gateway')}"

    def start(self, name: str, arguments: object, env: object, said: Any) -> Process:
        self.came_on.append(name)
        return Process(name, self, said)

    def open(self, address: str) -> Caller:
        return Caller(self)


class Process:
    """Says at once what a process says in its life."""

    pid = 1
    command = "revconn"

    def __init__(self, name: str, play: Play, said: Mailbox[Said]) -> None:
        self.name = name
        self.expected_to_end = False
        self._play = play
        if len(play.came_on) == play.nth_dies:
            said.put(Said(self, None))  # type: ignore[arg-type]
        elif name == "gateway" and not play.silent:
            connection = f"connection {play.connection_id}"
            for event in (
                "gateway listening on 127.0.0.1:1",
                f"{connection} from 127.0.0.1:2 registered demo.Greeter",
                *[f"{connection}: heartbeat"] * 3,
            ):
                line = f"2026-01-01 00:00:00 INFO revconn.gateway: {event}"
                said.put(Said(self, line))  # type: ignore[arg-type]

    def end(self) -> int:
        self.expected_to_end = True
        return self._play.exit_code

    kill = end

    def obituary(self) -> str:
        return f"the {self.name} process ended"


class Caller:
    """Is answered as the demo's service answers, or as the play has it."""

    def __init__(self, play: Play) -> None:
        self._play = play

    def close(self) -> None:
        pass

    def hello(self, name: str, padding: bytes = b"") -> Outcome:
        play = self._play
        play.during_a_call()
        status = play.statuses.get(play.came_on.count("gateway"), "OK")
        if not name:
            status = play.status_without_name
        fields = {"greeting": f"Hello, {name}!", "padding": padding}
        reply = HelloReply(**{**fields, "connection_id": play.connection_id, **play.reply})
        return Outcome(status, "as told", reply, 0.001)

    def goodbye(self, name: str) -> Outcome:
        return Outcome("UNIMPLEMENTED", "as told", HelloReply(), 0.001)


@pytest.fixture
def act(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """``act(play)``: the demo's exit code, and what it says on stderr."""

    def act(play: Play, *arguments: str) -> tuple[int, str]:
        play.came_on.clear()
        monkeypatch.setattr(story, "Child", play.start)
        monkeypatch.setattr(story, "Caller", play.open)
        code = main(["demo", "--requests", "2", *arguments])
        return code, capsys.readouterr().err

    return act


@pytest.mark.parametrize(("arguments", "gateways"), [((), 2), (("--no-restart",), 1)])
def test_when_everybody_does_as_they_should_nothing_is_said_on_stderr(
    act, arguments: tuple[str, ...], gateways: int
) -> None:
    play = Play()
    assert act(play, *arguments) == (0, "")
    assert play.came_on.count("gateway") == gateways


@pytest.mark.parametrize(
    ("play", "reason"),
    [
        (Play(nth_dies=1), "the gateway process ended"),
        (Play(nth_dies=2), "the connector process ended"),
        (Play(nth_dies=3), "the gateway process ended"),
        (Play(silent=True), "the gateway did not listen within 0.01 seconds"),
        (
            Play(statuses={2: "UNAVAILABLE"}),
            "no call was answered within 0.01 seconds after the gateway was killed;"
            " the last one failed: UNAVAILABLE: as told",
        ),
        (Play(statuses={1: "INTERNAL"}), "a call failed: INTERNAL: as told"),
        (Play(reply={"greeting": "Hi"}), "a reply is not what the handler returned: 'Hi'"),
        (
            Play(reply={"padding": b"x"}),
            "a reply is not what the handler returned: 'Hello, world!'",
        ),
        (
            Play(reply={"connection_id": "x"}),
            "a call was answered on connection x, not on id-1",
        ),
        (Play(same_id=True), "the connector came back with its old id, id-1"),
        (
            Play(status_without_name="INTERNAL"),
            'Hello(name="") was to fail with INVALID_ARGUMENT, not with INTERNAL',
        ),
        (Play(exit_code=3), "the connector left with exit code 3, not 0"),
    ],
)
def test_one_that_does_not_do_as_it_should_is_the_reason(
    act, monkeypatch: pytest.MonkeyPatch, play: Play, reason: str
) -> None:
    monkeypatch.setattr(story, "_START_TIMEOUT", 0.01)
    monkeypatch.setattr(story, "_RETURN_TIMEOUT", 0.01)
    assert act(play) == (1, f"revconn demo: {reason}\n")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_is_told_and_is_the_exit_code(act, number: signal.Signals, code: int) -> None:
    play = Play(during_a_call=lambda: signal.raise_signal(number))
    assert act(play) == (code, f"revconn demo: interrupted by {number.name}\n")
