"""What a connector's calls to itself prove."""

from __future__ import annotations

import pytest

from revconn._proto.registry_pb2 import ForwardRequest, ForwardResponse
from revconn.core.probing import Prober, Verdict

INTERVAL, PATIENCE = 60.0, 20.0
REFUSALS = [
    (404, "unknown method"),
    (500, "No reverse connection found for service: revconn.probe.p1"),
    (501, "not here"),
    (403, "not with this key"),
]


def prober() -> Prober:
    prober = Prober(INTERVAL, PATIENCE, "1")
    prober.start(100.0)
    return prober


def answer(status: int = 200, error: str = "") -> ForwardResponse:
    return ForwardResponse(request_id="r1", status_code=status, error_message=error)


def proven() -> Prober:
    """One whose probe at 100 came back at once; the next is due at 160."""
    proven = prober()
    proven.ask("r0", 100.0)
    assert proven.answered(answer(), 100.0) is Verdict.ALIVE
    return proven


def test_a_probe_is_a_request_of_a_service_with_a_dot_that_nobody_else_registers() -> None:
    request = prober().ask("r1", 100.0)
    assert request == ForwardRequest(
        request_id="r1", method_path="/revconn.probe.p1/Probe", timeout_seconds=20
    )
    assert prober().is_own(request)
    assert prober().is_own(ForwardRequest(method_path="revconn.probe.p1/Probe/"))
    assert not prober().is_own(ForwardRequest(method_path="/revconn.probe.p2/Probe"))
    assert not prober().is_own(ForwardRequest(method_path="/echo.Echo/Say"))


def test_the_first_is_due_with_the_connection_and_the_next_after_the_interval() -> None:
    assert Prober(INTERVAL, PATIENCE, "1").look_by() is None
    assert not Prober(INTERVAL, PATIENCE, "1").is_due(1e9)
    probes = prober()
    assert probes.look_by() == 100.0
    assert probes.is_due(100.0)
    probes.ask("r1", 100.0)
    assert not probes.is_due(1e9)
    assert probes.look_by() == 120.0
    assert probes.answered(answer(), 100.25) is Verdict.ALIVE
    assert probes.round_trip == 0.25
    assert not probes.is_due(159.9)
    assert probes.is_due(160.0)
    assert probes.look_by() == 160.0


def test_an_unanswered_probe_loses_the_connection_at_the_second_look() -> None:
    probes = prober()
    probes.ask("r1", 100.0)
    assert not probes.is_lost(119.9)
    assert not probes.is_lost(120.0)
    assert probes.look_by() == 121.0
    assert not probes.is_lost(120.5)
    assert probes.is_lost(121.0)


def test_an_answer_between_the_two_looks_saves_it() -> None:
    probes = prober()
    probes.ask("r1", 100.0)
    assert not probes.is_lost(500.0)  # as after a pause in which nothing could run
    assert probes.answered(answer(), 500.1) is Verdict.ALIVE
    assert not probes.is_lost(600.0)


def test_time_in_which_this_side_does_not_read_does_not_count() -> None:
    probes = prober()
    probes.ask("r1", 100.0)
    assert not probes.is_lost(120.0)
    probes.excuse(120.9)
    assert not probes.is_lost(140.8)
    assert not probes.is_lost(140.9)
    assert probes.is_lost(141.9)


@pytest.mark.parametrize(("status", "error"), REFUSALS)
def test_a_gateway_that_never_routed_a_probe_is_asked_no_more(status: int, error: str) -> None:
    probes = prober()
    probes.ask("r1", 100.0)
    assert probes.answered(answer(status, error), 100.1) is Verdict.UNABLE
    assert probes.look_by() is None
    assert not probes.is_due(1e9)
    assert not probes.is_lost(1e9)


@pytest.mark.parametrize(
    ("status", "error"),
    [(429, ""), (503, ""), (504, ""), (500, "Too many pending requests"), (500, "Request timeout")],
)
def test_a_gateway_in_trouble_has_said_nothing_yet(status: int, error: str) -> None:
    probes = prober()
    probes.ask("r1", 100.0)
    assert probes.answered(answer(status, error), 100.1) is Verdict.UNKNOWN
    assert probes.look_by() == 160.0


@pytest.mark.parametrize(
    ("status", "error"),
    [*REFUSALS, (503, "no connector serves …"), (500, "Request timeout")],
)
def test_two_refusals_after_a_success_say_that_the_route_is_gone(status: int, error: str) -> None:
    probes = proven()
    probes.ask("r1", 160.0)
    assert probes.answered(answer(status, error), 160.1) is Verdict.UNKNOWN
    assert probes.look_by() == 161.1
    probes.ask("r2", 161.1)
    assert probes.answered(answer(status, error), 161.2) is Verdict.LOST


def test_one_refusal_among_successes_does_not() -> None:
    probes = proven()
    for start in (160.0, 260.0, 360.0):
        probes.ask("r1", start)
        assert probes.answered(answer(500), start) is Verdict.UNKNOWN
        probes.ask("r2", start + 1)
        assert probes.answered(answer(), start + 2) is Verdict.ALIVE


@pytest.mark.parametrize(("status", "error"), [(429, ""), (500, "Too many pending requests")])
def test_an_overloaded_gateway_has_not_lost_the_route(status: int, error: str) -> None:
    probes = proven()
    for start in (160.0, 260.0, 360.0):
        probes.ask("r1", start)
        assert probes.answered(answer(status, error), start) is Verdict.UNKNOWN


def test_an_answer_to_nothing_is_harmless() -> None:
    probes = prober()
    assert probes.answered(answer(), 101.0) is Verdict.ALIVE
    assert probes.round_trip == 0.0
