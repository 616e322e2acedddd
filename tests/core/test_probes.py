"""What a connector's calls to its own services prove."""

from __future__ import annotations

import pytest

from revconn._proto.registry_pb2 import ForwardRequest, ForwardResponse
from revconn.core.liveness import Prober, Verdict

INTERVAL, PATIENCE = 60.0, 20.0
OWN = b"0" * 32
NO_ROUTE = ForwardResponse(
    status_code=500, error_message="No reverse connection found for service: a.A"
)
UNKNOWN_METHOD = ForwardResponse(status_code=404, error_message="unknown method")
BUSY = ForwardResponse(status_code=500, error_message="Too many pending requests")
TIMED_OUT = ForwardResponse(status_code=500, error_message="Request timeout")


def token(payload: bytes) -> ForwardResponse:
    return ForwardResponse(status_code=200, payload=payload)


def other(number: int = 1) -> ForwardResponse:
    """What another replica answers."""
    return token(f"{number:032}".encode())


class Probing:
    """A prober whose time passes as the test says."""

    def __init__(self, *services: str, started: bool = True, astray: tuple[str, ...] = ()) -> None:
        self.prober = Prober(services or ("a.A",), INTERVAL, PATIENCE, OWN, astray)
        self.now = 100.0
        self.asked = 0
        if started:
            self.prober.start(self.now)

    def ask(self) -> str:
        """The service of the probe that is due now."""
        assert self.prober.is_due(self.now)
        self.asked += 1
        request = self.prober.ask(f"r{self.asked}", self.now)
        service, method = request.method_path[1:].split("/")
        assert method == "RevconnProbe"
        return service

    def hear(self, response: ForwardResponse, *, of: int = 0) -> Verdict:
        answer = ForwardResponse()
        answer.CopyFrom(response)
        answer.request_id = f"r{of or self.asked}"
        return self.prober.answered(answer, self.now)

    def turn(self, *responses: ForwardResponse) -> list[Verdict]:
        """Each asked for and heard at once."""
        verdicts = []
        for response in responses:
            self.ask()
            verdicts.append(self.hear(response))
        return verdicts

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def probing() -> Probing:
    return Probing()


@pytest.fixture
def proven() -> Probing:
    """One whose probe came back at once; the next is due in a minute."""
    proven = Probing()
    assert proven.turn(token(OWN)) == [Verdict.ALIVE]
    return proven


# Whose turn it is


def test_a_probe_is_a_call_of_a_service_that_is_served() -> None:
    probing = Probing("a.A")
    assert probing.prober.ask("r1", 100.0) == ForwardRequest(
        request_id="r1", method_path="/a.A/RevconnProbe", timeout_seconds=20
    )


def test_each_service_is_probed_in_turn_and_all_of_them_at_each_interval() -> None:
    probing = Probing("a.A", "b.B", "c.C")
    for _ in range(2):
        for service in ("a.A", "b.B", "c.C"):
            assert probing.ask() == service
            assert probing.hear(token(OWN)) is Verdict.ALIVE
        assert not probing.prober.is_due(probing.now)
        assert probing.prober.look_by() == probing.now + INTERVAL
        probing.pass_time(INTERVAL)


def test_before_the_connection_is_established_nothing_is_due() -> None:
    probing = Probing(started=False)
    assert not probing.prober.is_due(1e9)
    assert probing.prober.look_by() is None
    assert probing.prober.service == ""


def test_a_round_that_took_long_is_followed_at_once(probing: Probing) -> None:
    probing.ask()
    probing.pass_time(2 * INTERVAL)
    assert probing.hear(token(OWN)) is Verdict.ALIVE
    assert probing.prober.is_due(probing.now)


# What an answer proves


def test_our_own_token_proves_the_route_and_tells_how_long_it_took(probing: Probing) -> None:
    probing.ask()
    probing.pass_time(0.25)
    assert probing.hear(token(OWN)) is Verdict.ALIVE
    assert probing.prober.round_trip == 0.25


def test_it_may_come_in_grpcs_framing(probing: Probing) -> None:
    assert probing.turn(token(b"\0\0\0\0\x20" + OWN)) == [Verdict.ALIVE]


def test_after_another_replicas_answer_it_is_asked_again_at_once(probing: Probing) -> None:
    assert probing.turn(other(), other(), token(OWN)) == [
        Verdict.UNKNOWN,
        Verdict.UNKNOWN,
        Verdict.ALIVE,
    ]


def miss(probing: Probing, *replicas: int) -> Verdict:
    """A turn in which all probes go to others; the last verdict."""
    for number in range(1000):
        verdict = probing.turn(other(replicas[number % len(replicas)]))[0]
        if not probing.prober.is_due(probing.now):
            break
    assert number + 1 == 8 * (len(replicas) + 1)
    probing.pass_time(INTERVAL)
    return verdict


def test_a_route_on_which_only_others_are_reached_twice_is_lost(proven: Probing) -> None:
    proven.pass_time(INTERVAL)
    assert miss(proven, 1, 2) is Verdict.UNKNOWN
    assert miss(proven, 1, 2) is Verdict.LOST


def test_the_more_replicas_there_are_the_longer_it_is_asked(proven: Probing) -> None:
    proven.pass_time(INTERVAL)
    assert miss(proven, *range(1, 11)) is Verdict.UNKNOWN


def test_a_miss_is_forgotten_when_we_are_reached(proven: Probing) -> None:
    proven.pass_time(INTERVAL)
    for _ in range(3):
        assert miss(proven, 1) is Verdict.UNKNOWN
        assert proven.turn(token(OWN)) == [Verdict.ALIVE]
        proven.pass_time(INTERVAL)


def test_a_connection_that_was_never_reached_is_not_lost(probing: Probing) -> None:
    for _ in range(3):
        assert miss(probing, 1) is Verdict.UNKNOWN


def test_replicas_that_do_not_say_who_they_are_prove_nothing(proven: Probing) -> None:
    """An older connector, or one in another language, that knows no such method."""
    for _ in range(3):
        proven.pass_time(INTERVAL)
        assert set(proven.turn(*[UNKNOWN_METHOD] * 8, *[other()] * 8)) == {Verdict.UNKNOWN}
        assert not proven.prober.is_due(proven.now)


def test_a_great_many_replicas_are_not_all_remembered(proven: Probing, monkeypatch) -> None:
    monkeypatch.setattr("revconn.core.liveness._MOST_REPLICAS", 2)
    proven.pass_time(INTERVAL)
    for number in range(24):
        proven.turn(other(number + 1))
    assert not proven.prober.is_due(proven.now)


# No route


def test_a_route_that_is_gone_is_lost_at_the_second_look(proven: Probing) -> None:
    proven.pass_time(INTERVAL)
    assert proven.turn(NO_ROUTE) == [Verdict.UNKNOWN]
    assert not proven.prober.is_due(proven.now)
    proven.pass_time(1.0)
    assert proven.turn(NO_ROUTE) == [Verdict.LOST]


def test_so_is_the_embedded_gateways(proven: Probing) -> None:
    proven.pass_time(INTERVAL)
    for verdict in (Verdict.UNKNOWN, Verdict.LOST):
        nobody = ForwardResponse(status_code=404, error_message="no connector serves a.A")
        assert proven.turn(nobody) == [verdict]
        proven.pass_time(1.0)


def test_of_several_services_one_that_is_gone_is_enough() -> None:
    probing = Probing("a.A", "b.B")
    assert probing.turn(token(OWN), token(OWN)) == [Verdict.ALIVE] * 2
    probing.pass_time(INTERVAL)
    assert probing.turn(token(OWN), NO_ROUTE) == [Verdict.ALIVE, Verdict.UNKNOWN]
    probing.pass_time(1.0)
    assert probing.turn(NO_ROUTE) == [Verdict.LOST]


def test_one_that_others_were_reached_on_is_lost_too(probing: Probing) -> None:
    assert probing.turn(other(), NO_ROUTE) == [Verdict.UNKNOWN] * 2
    probing.pass_time(1.0)
    assert probing.turn(NO_ROUTE) == [Verdict.LOST]


def without_route(probing: Probing) -> Verdict:
    assert probing.turn(NO_ROUTE) == [Verdict.UNKNOWN]
    probing.pass_time(1.0)
    (verdict,) = probing.turn(NO_ROUTE)
    return verdict


def test_one_that_was_never_there_is_lost_once_and_from_then_on_astray(probing: Probing) -> None:
    assert without_route(probing) is Verdict.LOST
    again = Probing(astray=("a.A",))
    for _ in range(3):
        assert without_route(again) is Verdict.ASTRAY
        assert not again.prober.is_due(again.now)
        again.pass_time(INTERVAL)
    assert again.turn(token(OWN)) == [Verdict.ALIVE]
    again.pass_time(INTERVAL)
    assert without_route(again) is Verdict.LOST


@pytest.mark.parametrize("between", [token(OWN), other(), UNKNOWN_METHOD])
def test_any_answer_in_between_shows_that_there_is_one(proven: Probing, between) -> None:
    proven.pass_time(INTERVAL)
    for _ in range(3):
        assert proven.turn(NO_ROUTE) == [Verdict.UNKNOWN]
        proven.pass_time(1.0)
        assert proven.turn(between)[0] is not Verdict.LOST
        if not proven.prober.is_due(proven.now):
            proven.pass_time(INTERVAL)


# Gateways that do not do it


def test_a_service_that_is_not_routed_is_not_probed_any_more() -> None:
    probing = Probing("a.A", "b.B")
    assert probing.turn(*[UNKNOWN_METHOD] * 16)[-1] is Verdict.UNABLE
    for _ in range(3):
        assert probing.ask() == "b.B"
        probing.hear(token(OWN))
        probing.pass_time(INTERVAL)


def test_a_gateway_that_routes_no_such_calls_is_asked_a_few_times(probing: Probing) -> None:
    assert probing.turn(*[UNKNOWN_METHOD] * 16) == [*[Verdict.UNKNOWN] * 15, Verdict.UNABLE]
    assert probing.prober.look_by() is None
    assert not probing.prober.is_due(1e9)


@pytest.mark.parametrize("response", [BUSY, TIMED_OUT, ForwardResponse(status_code=503)])
def test_a_gateway_that_has_other_troubles_is_asked_at_the_next_interval(
    probing: Probing, response
) -> None:
    for _ in range(20):
        assert probing.turn(response) == [Verdict.UNKNOWN]
        assert not probing.prober.is_due(probing.now)
        probing.pass_time(INTERVAL)


# Silence


def silent(probing: Probing) -> None:
    """A probe and its copies stay unanswered for as long as there is patience."""
    for _ in range(3):
        probing.ask()
        probing.now = probing.prober.look_by()
    assert not probing.prober.is_due(probing.now)


def test_an_unanswered_probe_is_repeated_and_lost_at_the_second_look(probing: Probing) -> None:
    started = probing.now
    silent(probing)
    assert probing.now == started + PATIENCE
    assert not probing.prober.is_lost(probing.now)
    assert not probing.prober.is_due(probing.now)
    probing.pass_time(1.0)
    assert probing.prober.is_lost(probing.now)


def test_before_its_time_is_over_it_is_not(probing: Probing) -> None:
    assert not probing.prober.is_lost(probing.now)
    probing.ask()
    probing.pass_time(PATIENCE - 0.1)
    assert not probing.prober.is_lost(probing.now)


@pytest.mark.parametrize("copy", [1, 3])
def test_an_answer_to_any_copy_will_do_and_the_others_come_late(probing: Probing, copy) -> None:
    silent(probing)
    assert not probing.prober.is_lost(probing.now)
    assert probing.hear(token(OWN), of=copy) is Verdict.ALIVE
    assert probing.hear(token(OWN), of=2) is Verdict.UNKNOWN
    probing.pass_time(1.0)
    assert not probing.prober.is_lost(probing.now)


def test_while_the_gateway_says_other_things_a_replica_may_be_stuck(proven: Probing) -> None:
    proven.pass_time(INTERVAL)
    silent(proven)
    proven.prober.heard()
    assert not proven.prober.is_lost(proven.now)
    proven.pass_time(INTERVAL)
    assert proven.turn(token(OWN)) == [Verdict.ALIVE]


def test_one_that_came_to_us_and_whose_answer_is_gone_is_lost_all_the_same(
    probing: Probing,
) -> None:
    silent(probing)
    probing.prober.heard()
    probing.prober.arrived("r2")
    probing.prober.arrived("another's")
    assert not probing.prober.is_lost(probing.now)
    probing.pass_time(1.0)
    assert probing.prober.is_lost(probing.now)


def test_while_this_side_does_not_read_a_probe_is_not_repeated(probing: Probing) -> None:
    probing.ask()
    for _ in range(10):
        probing.pass_time(PATIENCE / 4)
        probing.prober.excuse(probing.now)
        assert not probing.prober.is_due(probing.now)


def test_time_in_which_this_side_does_not_read_does_not_count(probing: Probing) -> None:
    silent(probing)
    assert not probing.prober.is_lost(probing.now)
    probing.prober.excuse(probing.now)
    probing.pass_time(PATIENCE - 0.1)
    assert not probing.prober.is_lost(probing.now)
    probing.pass_time(0.1)
    assert not probing.prober.is_lost(probing.now)
    probing.pass_time(1.0)
    assert probing.prober.is_lost(probing.now)
