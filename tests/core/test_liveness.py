"""What is due, and when: both sides, in a time that is passed in."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto.registry_pb2 import ForwardRequest, ForwardResponse
from revconn.core.gateway_side import GatewayLiveness
from revconn.core.liveness import ConnectorLiveness, Prober, Tick

START = 1000.0
TOKEN = b"0" * 32


class Playing:
    """A connector's liveness, and a time that moves on when the test says so.

    Every heartbeat is handed to the network as soon as it is due, unless the network is stuck.
    """

    def __init__(
        self,
        *,
        interval: float = 30.0,
        timeout: float | None = 90.0,
        prober: Prober | None = None,
        accepted: bool = True,
    ) -> None:
        numbers = count(1)
        self.liveness = ConnectorLiveness(10.0, interval, timeout, lambda: f"r{next(numbers)}")
        self.now = START
        self.stuck = False
        self.reading = True
        self.probing = True
        self.beats: list[float] = []
        self.probes: list[ForwardRequest] = []
        self.end = ""
        self.liveness.registered(START, prober)
        if accepted:
            assert self.liveness.accept(START) == ""

    def tick(self, now: float) -> Tick:
        self.now = START + now
        tick = self.liveness.tick(self.now, reading=self.reading, probing=self.probing)
        due = self.liveness.due(probing=self.probing)
        assert due is None or due > self.now
        if tick.heartbeat:
            self.beats.append(now)
            if not self.stuck:
                self.liveness.heartbeat_left(self.now)
        if tick.probe is not None:
            self.probes.append(tick.probe)
        self.end = self.end or tick.end
        return tick

    def play(self, until: float, *, late: float = 0.0) -> None:
        """Look whenever it is due, each time so much too late, but not after ``until``."""
        while (due := self.due) is not None and due + late <= until:
            self.tick(due + late)

    @property
    def due(self) -> float | None:
        due = self.liveness.due(probing=self.probing)
        return None if due is None else due - START


# The handshake


def test_before_the_registration_nothing_is_due() -> None:
    liveness = ConnectorLiveness(10.0, 30.0, 90.0, str)
    assert liveness.due(probing=True) is None
    assert liveness.tick(1e9, reading=True, probing=True) == Tick()


def test_a_handshake_that_does_not_end_in_time_is_told_once_and_nothing_beats() -> None:
    playing = Playing(accepted=False)
    playing.play(9.9)
    assert playing.end == ""
    assert playing.tick(10.0) == Tick(end="no CONNECTED within 10 s")
    assert playing.due is None
    assert playing.tick(11.0) == Tick()


def test_connected_that_comes_too_late_is_of_no_use_though_nobody_had_looked() -> None:
    playing = Playing(accepted=False)
    assert playing.liveness.accept(START + 10.1) == "no CONNECTED within 10 s"


def test_the_end_of_a_suspend_in_the_handshake_is_noticed_within_seconds() -> None:
    assert Playing(accepted=False).due == 5.0


# Heartbeats


def test_the_first_beat_is_one_interval_after_connected_and_then_one_each_interval() -> None:
    playing = Playing()
    playing.play(125.0)
    assert playing.beats == [30.0, 60.0, 90.0, 120.0]
    assert playing.end == ""


def test_late_beats_do_not_shift_the_schedule() -> None:
    playing = Playing()
    for late in (30.4, 61.5, 90.0, 149.0, 150.1):
        playing.tick(late)
    assert playing.beats == [30.4, 61.5, 90.0, 149.0, 150.1]


def test_a_thousand_late_beats_do_not_add_up_to_drift() -> None:
    playing = Playing()
    playing.play(30_000.5, late=0.01)
    assert len(playing.beats) == 1000
    assert playing.beats[-1] == pytest.approx(30_000.01)


def test_after_a_long_stall_there_is_one_beat_and_no_burst() -> None:
    playing = Playing(timeout=None)
    for now in (30.0, 1060.0):
        playing.tick(now)
    playing.play(1115.0)
    assert playing.beats == [30.0, 1060.0, 1080.0, 1110.0]


def test_between_beats_it_looks_for_a_gap() -> None:
    playing = Playing(interval=12.0)
    looks = []
    while (due := playing.due) is not None and due < 25.0:
        looks.append(due)
        playing.tick(due)
    assert looks == [0.0, 5.0, 10.0, 12.0, 17.0, 22.0, 24.0]
    assert playing.beats == [12.0, 24.0]


def test_a_gateway_that_wants_more_heartbeats_gets_them() -> None:
    playing = Playing(accepted=False)
    playing.liveness.agree(1.0, 3.0)
    assert playing.liveness.accept(START) == ""
    playing.play(3.5)
    assert playing.beats == [1.0, 2.0, 3.0]


def test_a_gateway_that_wants_fewer_does_not_make_them_rarer() -> None:
    playing = Playing(accepted=False)
    playing.liveness.agree(300.0, 90.0)
    assert playing.liveness.accept(START) == ""
    playing.play(31.0)
    assert playing.beats == [30.0]


# Silence


def test_a_gap_longer_than_the_liveness_timeout_may_have_been_noticed() -> None:
    playing = Playing()
    assert playing.tick(90.0).end == ""
    playing = Playing()
    assert playing.tick(90.1).end == (
        "no heartbeat left this machine for 90 s: the gateway may have forgotten the connection"
    )
    assert playing.due is None


def test_a_network_that_takes_no_heartbeat_is_a_gap_however_many_were_due() -> None:
    playing = Playing()
    playing.stuck = True
    playing.play(200.0)
    assert playing.beats == [30.0, 60.0, 90.0]
    assert "no heartbeat left this machine for 95 s" in playing.end


def test_it_looks_for_a_gap_before_a_beat_could_hide_it() -> None:
    tick = Playing().tick(600.0)
    assert tick.end
    assert not tick.heartbeat


def test_a_late_heartbeat_does_not_undo_the_gap_that_it_ends() -> None:
    playing = Playing()
    playing.liveness.heartbeat_left(START + 600.0)
    playing.liveness.heartbeat_left(START + 600.0)
    assert "no heartbeat left this machine for 600 s" in playing.tick(601.0).end


def test_before_connected_there_was_nothing_to_forget() -> None:
    playing = Playing()
    playing.liveness.heartbeat_left(0.0)  # the registration
    assert playing.liveness.longest_silence(START + 7.0) == 7.0


def test_without_a_liveness_timeout_nothing_counts_as_forgotten() -> None:
    playing = Playing(timeout=None)
    assert playing.tick(1e6).end == ""


@given(st.lists(st.integers(1, 400), max_size=30), st.sampled_from([1.0, 7.0, 30.0]))
def test_nothing_is_due_in_the_past_and_no_silence_is_longer_than_the_timeout(
    quarters: list[int], interval: float
) -> None:
    playing = Playing(interval=interval, prober=Prober(["a.A"], 60.0, 1e9, TOKEN))
    now = 0.0
    for each in quarters:
        late = playing.liveness.longest_silence(START + now + each / 4) > 90.0
        now += each / 4
        playing.tick(now)
        assert bool(playing.end) == late
        if playing.end:
            assert playing.due is None
            break


# Probes


def probing(**options: float) -> Playing:
    return Playing(prober=Prober(["a.A"], 60.0, 20.0, TOKEN), **options)


def test_the_first_probe_is_due_when_the_connection_is_accepted() -> None:
    playing = probing()
    assert playing.due == 0.0
    assert playing.tick(0.0).probe == ForwardRequest(
        request_id="r1", method_path="/a.A/RevconnProbe", timeout_seconds=20
    )


def test_a_probe_that_stays_unanswered_ends_the_connection() -> None:
    playing = probing()
    playing.play(60.0)
    assert [each.request_id for each in playing.probes] == ["r1", "r2", "r3"]
    assert playing.end == (
        "a call to itself through the gateway (a.A) was unanswered for 20 s:"
        " requests may not come any more"
    )
    assert playing.now == START + 21.0


@pytest.mark.parametrize("since", [5.0, 15.0])  # one copy is on its way, or all three
def test_an_answer_that_came_while_the_machine_slept_may_still_be_read(since: float) -> None:
    playing = probing()
    playing.play(since)
    due = playing.due
    assert due is not None
    playing.tick(due + 50.0)
    assert playing.end == ""
    playing.play(69.0)
    assert playing.end == ""
    playing.play(75.0)
    assert "unanswered for 20 s" in playing.end
    assert len(playing.probes) == 3


def test_while_nothing_is_asked_a_sleep_makes_no_probe_later() -> None:
    playing = probing()
    probe = playing.tick(0.0).probe
    assert probe is not None
    prober = playing.liveness.prober
    assert prober is not None
    prober.answered(ForwardResponse(request_id=probe.request_id, status_code=503), START)
    playing.tick(59.0)
    playing.tick(60.0)
    assert len(playing.probes) == 2


def test_while_this_side_does_not_read_the_gateway_is_not_blamed() -> None:
    playing = probing()
    playing.reading = False
    playing.play(80.0)
    assert playing.end == ""
    playing.reading = True
    playing.play(120.0)
    assert "unanswered for 20 s" in playing.end


def test_after_the_goodbye_there_are_heartbeats_and_no_probes() -> None:
    playing = probing()
    playing.probing = False
    playing.play(200.0)
    assert playing.probes == []
    assert playing.beats == [30.0, 60.0, 90.0, 120.0, 150.0, 180.0]


# A gateway's side


def test_a_connector_that_says_nothing_is_ended_in_time_and_once() -> None:
    liveness = GatewayLiveness(START, 10.0, 120.0)
    assert liveness.due() == START + 10.0
    assert liveness.tick(START + 9.9) == ""
    assert liveness.tick(START + 10.0) == "no register message came within 10 seconds"
    assert liveness.due() is None
    assert liveness.tick(1e9) == ""


def test_a_registration_that_comes_too_late_is_not_taken_though_nobody_had_looked() -> None:
    liveness = GatewayLiveness(START, 10.0, 120.0)
    assert liveness.registered(START + 10.1) == "no register message came within 10 seconds"


def test_a_connector_without_heartbeats_is_ended_in_time_and_once() -> None:
    liveness = GatewayLiveness(START, 10.0, 120.0)
    assert liveness.registered(START + 1.0) == ""
    assert liveness.due() is None
    liveness.heard(START + 2.0)
    liveness.heard(START + 60.0)
    assert liveness.last_heartbeat == START + 60.0
    assert liveness.due() == START + 180.0
    assert liveness.tick(START + 179.9) == ""
    assert liveness.tick(START + 180.0) == "no heartbeat for 120 seconds"
    assert liveness.due() is None
