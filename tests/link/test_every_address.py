"""The thread that sees to a link for each address of a name, with links that are not there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from revconn import Backoff
from revconn.exceptions import AuthenticationError, HandshakeError
from revconn.link import every_address
from revconn.link.every_address import EveryAddress
from revconn.runtime.state import LinkStatus, State
from revconn.settings.target import Target
from tests.support.options import make_options
from tests.support.threads import TIMEOUT
from tests.support.waiting import eventually

NAME = "gateway.example.com:443"
AT_ONCE = Backoff(initial=0.001, maximum=0.001)


class FakeLink:
    """A link that does what the test says, and remembers what it was told."""

    def __init__(self, target: Target, on_change: Any, on_end: Any) -> None:
        self.target = target
        self.state = State.IDLE
        self.told: list[str] = []
        self.probe_round_trip: float | None = None
        self._on_change, self._on_end = on_change, on_end

    def becomes(self, state: State, error: Exception | None = None) -> None:
        self.state = state
        self._on_change()
        if state is State.CLOSED:
            self._on_end(self, error)

    @property
    def statuses(self) -> tuple[LinkStatus]:
        return (LinkStatus(str(self.target), self.state, None),)

    def start(self) -> None:
        self.told.append("start")
        self.becomes(State.CONNECTING)

    def leave(self, deadline: float) -> None:
        self.told.append("leave")

    def give_up(self) -> None:
        self.told.append("give up")

    def abort(self) -> None:
        self.told.append("abort")
        if self.state is not State.CLOSED:
            self.becomes(State.CLOSED)

    def forget(self) -> None:
        self.told.append("forget")

    def forsake(self) -> None:
        self.told.append("forsake")

    def stats(self) -> dict[str, int]:
        return {"connections": 1}

    def unsent(self) -> dict[tuple[str, object], int]:
        return {(str(self.target), "stream"): 1}

    def wait_flushed(self, timeout: float) -> bool:
        return timeout > 0 and self.state is State.READY


class Scene:
    """``ips`` are what the name has; an error there is what its look-up raises."""

    def __init__(self, **options: Any) -> None:
        self.ips: list[str] | Exception = ["a", "b"]
        self.looks = 0
        self.links: dict[str, list[FakeLink]] = {}
        self.ended: list[BaseException | None] = []
        self.is_over = threading.Event()
        options = make_options(NAME, every_address=True, proxy=False, **options)
        self.every = EveryAddress(
            options.targets[0],
            options,
            self.make_link,
            on_change=lambda: None,
            on_end=self.end,
            look_up=self.look_up,
        )

    def look_up(self, host: str, port: int, cancelled: Callable[[], bool]) -> list[Any]:
        self.looks += 1
        assert (host, port) == ("gateway.example.com", 443)
        if isinstance(self.ips, Exception):
            raise self.ips
        return [(2, (ip, port)) for ip in self.ips]

    def make_link(self, target: Target, on_change: Any, on_end: Any) -> Any:
        link = FakeLink(target, on_change, on_end)
        self.links.setdefault(target.ip, []).append(link)
        return link

    def end(self, every: EveryAddress, error: BaseException | None) -> None:
        assert every is self.every
        self.ended.append(error)
        self.is_over.set()

    def start(self) -> Scene:
        self.every.start()
        return self

    def link(self, ip: str, number: int = 1) -> FakeLink:
        """The link to an address, once it was made and started."""
        eventually(lambda: len(self.links.get(ip, [])) >= number)
        link = self.links[ip][number - 1]
        eventually(lambda: link.told)
        return link

    def ready(self, *ips: str) -> None:
        for ip in ips:
            self.link(ip).becomes(State.READY)

    def look_again(self) -> None:
        """Wait until what is found now has been acted upon."""
        seen = self.looks
        eventually(lambda: self.looks >= seen + 3)

    def shown(self) -> list[str]:
        return [status.target for status in self.every.statuses]

    def ends(self) -> BaseException | None:
        assert self.is_over.wait(TIMEOUT)
        (error,) = self.ended
        return error


@pytest.fixture(autouse=True)
def look_ups_follow_at_once(monkeypatch) -> None:
    monkeypatch.setattr(every_address, "_INTERVAL", 0.01)
    monkeypatch.setattr(every_address, "_FLUSH_WAIT", 0.01)


@pytest.fixture
def scenes() -> Iterator[Callable[..., Scene]]:
    """``scenes(**options)``: one that is not started; aborted after the test."""
    made: list[Scene] = []

    def make(**options: Any) -> Scene:
        made.append(Scene(**{"backoff": AT_ONCE, **options}))
        return made[-1]

    yield make
    for scene in made:
        scene.every.abort()


@pytest.fixture
def two(scenes) -> Scene:
    """Both links are ready."""
    scene: Scene = scenes().start()
    scene.ready("a", "b")
    return scene


# One link for each address


def test_each_address_has_a_link_to_the_name_at_that_address(two: Scene) -> None:
    assert two.shown() == [f"{NAME} (a)", f"{NAME} (b)"]
    target = two.link("b").target
    assert (target.host, target.authority, target.ip) == (
        "gateway.example.com",
        "gateway.example.com:443",
        "b",
    )


def test_they_are_ready_together_when_one_of_them_is(scenes) -> None:
    scene = scenes()
    assert scene.every.state is State.IDLE
    scene.start()
    scene.link("a")
    eventually(lambda: scene.every.state is State.CONNECTING)
    scene.ready("b")
    assert scene.every.state is State.READY


def test_while_the_first_link_is_about_to_begin_the_look_up_is_what_is_shown(
    scenes, monkeypatch
) -> None:
    shown: list[State] = []
    start = FakeLink.start

    def look_and_start(link: FakeLink) -> None:
        assert link.state is State.IDLE
        shown.append(scene.every.state)
        start(link)

    monkeypatch.setattr(FakeLink, "start", look_and_start)
    scene = scenes()
    scene.start()
    scene.link("b")
    assert shown == [State.CONNECTING, State.CONNECTING]


def test_the_slowest_probe_and_all_that_is_unsent_count(two: Scene) -> None:
    assert two.every.probe_round_trip is None
    two.link("a").probe_round_trip = 0.2
    two.link("b").probe_round_trip = 0.1
    assert two.every.probe_round_trip == 0.2
    assert two.every.unsent() == {(f"{NAME} (a)", "stream"): 1, (f"{NAME} (b)", "stream"): 1}
    assert two.every.wait_flushed(1.0)
    two.link("b").becomes(State.BACKING_OFF)
    assert not two.every.wait_flushed(1.0)


def test_an_address_that_appears_is_connected_to(two: Scene, caplog) -> None:
    caplog.set_level(logging.INFO)
    two.ips = ["a", "b", "c"]
    assert two.link("c").told == ["start"]
    assert f"{NAME} (c): the name has this address now: connecting" in caplog.messages


def test_a_scope_is_part_of_an_address(scenes) -> None:
    scene = scenes()
    scene.look_up = None
    scene.every._look_up = lambda *_: [(10, ("fe80::1", 443, 0, 7)), (10, ("fe80::2", 443, 0, 0))]
    scene.start()
    assert scene.link("fe80::1%7").told == ["start"]
    assert scene.link("fe80::2").told == ["start"]


def test_one_that_vanished_leaves_when_the_new_one_is_ready(two: Scene, caplog) -> None:
    caplog.set_level(logging.INFO)
    two.ips = ["a", "c"]
    two.link("c")
    two.look_again()
    assert two.link("b").told == ["start"]
    two.link("c").becomes(State.READY)
    eventually(lambda: two.link("b").told == ["start", "leave"])
    assert f"{NAME} (b): the name has this address no more: leaving" in caplog.messages
    assert len(two.every.statuses) == 3
    two.link("b").becomes(State.CLOSED)
    eventually(lambda: two.shown() == [f"{NAME} (a)", f"{NAME} (c)"])
    eventually(lambda: two.link("b").told[-1] == "forget")
    eventually(lambda: f"{NAME} (b): left" in caplog.messages)


def test_counters_of_links_that_have_left_still_count(two: Scene) -> None:
    assert two.every.stats() == {"connections": 2}
    two.ips = ["a"]
    eventually(lambda: "leave" in two.link("b").told)
    two.link("b").becomes(State.CLOSED)
    eventually(lambda: len(two.every.statuses) == 1)
    assert two.every.stats() == {"connections": 2}


def test_an_address_that_comes_back_after_its_link_left_has_a_new_one(two: Scene) -> None:
    two.ips = ["a"]
    eventually(lambda: "leave" in two.link("b").told)
    two.ips = ["a", "b"]
    assert two.link("b", 2).told == ["start"]


def test_one_that_does_not_come_to_an_end_is_given_up_and_aborted(scenes) -> None:
    scene = scenes(drain_timeout=0.01).start()
    scene.ready("a", "b")
    scene.ips = ["a"]
    eventually(lambda: scene.link("b").told[:4] == ["start", "leave", "give up", "abort"])
    eventually(lambda: len(scene.every.statuses) == 1)


# Look-ups that fail


def test_a_look_up_that_fails_leaves_the_links_there_are(two: Scene, caplog) -> None:
    two.ips = OSError("Temporary failure in name resolution")
    two.look_again()
    assert [two.link("a").told, two.link("b").told] == [["start"], ["start"]]
    said = [text for text in caplog.messages if "looking the name up" in text]
    assert said == [
        f"{NAME}: looking the name up again failed: Temporary failure in name resolution;"
        " the links that there are stay"
    ]


def test_an_answer_without_an_address_is_a_failure(two: Scene, caplog) -> None:
    two.ips = []
    two.look_again()
    assert len(two.every.statuses) == 2
    assert "gateway.example.com has no address" in caplog.text


def test_a_name_that_is_not_there_yet_is_backed_off_from(scenes, caplog) -> None:
    scene = scenes(backoff=Backoff(initial=1e6, maximum=1e6))
    scene.ips = OSError("gateway.example.com does not resolve: Name or service not known")
    scene.start()
    eventually(lambda: scene.every.state is State.BACKING_OFF)
    (status,) = scene.every.statuses
    assert status.target == NAME
    assert status.last_error == (
        "UNAVAILABLE: cannot connect: gateway.example.com does not resolve: Name or service not"
        " known"
    )
    assert status.next_attempt_in > 0
    assert f"no connection: {NAME}: {status.last_error}; trying again in " in caplog.text


def test_a_name_that_is_there_at_last_is_connected_to(scenes) -> None:
    scene = scenes()
    scene.ips = OSError("no")
    scene.start()
    scene.look_again()
    scene.ips = ["a"]
    assert scene.link("a").told == ["start"]
    (status,) = scene.every.statuses
    assert status.last_error is None


def test_a_name_that_never_is_ends_it_after_max_attempts(scenes) -> None:
    scene = scenes(backoff=Backoff(initial=0.001, maximum=0.001, max_attempts=3))
    scene.ips = OSError("no")
    scene.start()
    error = scene.ends()
    assert isinstance(error, HandshakeError)
    assert not error.by_gateway
    assert scene.looks == 3
    assert scene.every.state is State.CLOSED
    (status,) = scene.every.statuses
    assert (status.state, status.last_error) == (State.CLOSED, error.reason)


def test_is_fatal_is_asked_about_it(scenes) -> None:
    scene = scenes(is_fatal=lambda error: "no such" in str(error))
    scene.ips = OSError("no such name")
    scene.start()
    assert "no such name" in str(scene.ends())


def test_without_a_thread_for_a_link_the_next_look_up_finds_its_address_anew(
    scenes, monkeypatch
) -> None:
    refused = []

    def refuse(link: FakeLink) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(every_address, "_INTERVAL", 0.01)
        refused.append(link)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(FakeLink, "start", refuse)
    scene = scenes().start()
    assert scene.link("a", 2).told == ["start"]
    assert scene.link("b").told == ["start"]
    assert refused == [scene.links["a"][0]]
    assert refused[0].told == ["forget"]
    eventually(lambda: sorted(scene.shown()) == [f"{NAME} (a)", f"{NAME} (b)"])


# The end


def test_one_that_gave_up_is_shown_while_the_others_serve(two: Scene, caplog) -> None:
    two.link("a").becomes(State.CLOSED, AuthenticationError("a", "refused"))
    two.look_again()
    assert [status.state for status in two.every.statuses] == [State.CLOSED, State.READY]
    assert len(two.links["a"]) == 1, "nor is it tried again"
    assert not two.ended
    assert f"gave up {NAME} (a): a: refused" in caplog.messages


def test_when_all_gave_up_it_ends_with_the_first_error(two: Scene) -> None:
    first = AuthenticationError("b", "refused")
    two.link("b").becomes(State.CLOSED, first)
    two.link("a").becomes(State.CLOSED, AuthenticationError("a", "refused"))
    assert two.ends() is first
    assert two.every.state is State.CLOSED


def test_one_that_gave_up_and_vanished_is_shown_no_more(two: Scene) -> None:
    two.link("b").becomes(State.CLOSED, AuthenticationError("b", "refused"))
    two.ips = ["a"]
    eventually(lambda: two.shown() == [f"{NAME} (a)"])


def test_to_leave_is_to_leave_by_every_link_and_ends_with_the_last(two: Scene) -> None:
    two.every.leave(0.0)
    assert [two.link(ip).told for ip in "ab"] == [["start", "leave"], ["start", "leave"]]
    two.link("a").becomes(State.CLOSED)
    assert two.every.is_running
    two.link("b").becomes(State.CLOSED)
    assert two.ends() is None
    assert len(two.every.statuses) == 2, "they are shown to the end"


def test_what_fails_while_it_leaves_is_no_error_of_its_end(two: Scene) -> None:
    two.every.leave(0.0)
    for ip in "ab":
        two.link(ip).becomes(State.CLOSED, AuthenticationError(ip, "refused"))
    assert two.ends() is None


def test_to_abort_is_to_abort_every_link(two: Scene) -> None:
    two.every.abort()
    assert two.ends() is None
    assert [two.link(ip).told for ip in "ab"] == [["start", "abort"], ["start", "abort"]]


@pytest.mark.parametrize("end", ["leave", "abort"])
def test_a_resolver_that_hangs_does_not_hold_up_the_end(scenes, end: str) -> None:
    asked = threading.Event()

    def hang(host: str, port: int, cancelled: Callable[[], bool]) -> list[Any]:
        asked.set()
        eventually(cancelled)
        raise OSError(f"{host} did not resolve in time")

    scene = scenes()
    scene.every._look_up = hang
    scene.start()
    assert asked.wait(TIMEOUT)
    getattr(scene.every, end)(*([0.0] if end == "leave" else []))
    assert scene.ends() is None
    assert not scene.links


def test_a_resolver_that_hangs_is_waited_for_no_longer_than_an_attempt(scenes) -> None:
    scene = scenes(connect_timeout=0.02, backoff=Backoff(1e6, 1e6))

    def hang(host: str, port: int, cancelled: Callable[[], bool]) -> list[Any]:
        eventually(cancelled)
        raise OSError(f"{host} did not resolve in time")

    scene.every._look_up = hang
    scene.start()
    eventually(lambda: scene.every.state is State.BACKING_OFF)


def test_what_is_found_as_it_ends_gets_no_link_that_starts(scenes) -> None:
    scene = scenes()

    def end_first(*_: Any) -> list[Any]:
        scene.every.leave(0.0)
        return [(2, ("a", 443))]

    scene.every._look_up = end_first
    scene.start()
    assert scene.ends() is None
    assert [link.told for link in scene.links["a"]] == [["forget"]]
    assert scene.every.stats() == {}


def test_a_thread_that_cannot_go_on_ends_every_link_and_tells_why(two: Scene) -> None:
    bug = KeyError("a bug")
    two.ips = bug
    assert two.ends() is bug
    assert "abort" in two.link("a").told


def test_a_forked_child_opens_nothing_more(two: Scene) -> None:
    two.every.forsake()
    assert two.link("a").told == ["start", "forsake"]
    two.ips = ["a", "b", "c"]
    two.link("a").becomes(State.READY)  # its thread looks again, where it is there at all
    two.link("a").becomes(State.CLOSED)
    two.link("b").becomes(State.CLOSED)
    assert two.ends() is None
    assert "c" not in two.links
