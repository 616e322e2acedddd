"""What the log says of a link, and when an outage is worth a line."""

from __future__ import annotations

import logging

import pytest

from revconn.exceptions import ConnectionLost
from revconn.link.link import Link
from revconn.link.records import (
    AnotherKey,
    Connected,
    Failed,
    GaveUpReplacing,
    Lost,
    News,
    Outage,
    ServesOn,
    Shows,
    duration,
    log_news,
)
from revconn.runtime.state import State
from revconn.serving.handlers import Handlers
from revconn.settings.target import parse_targets
from tests.support.calls import open_calls
from tests.support.options import make_options

(TARGET,) = parse_targets("gw:1")
RESET = ConnectionLost("gw:1", "reset")
REFUSED = ConnectionLost("gw:1", "refused")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-0.1, "0.0 s"),
        (0.04, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 m 0 s"),
        (192.3, "3 m 12 s"),
        (3599.6, "1 h 0 m"),
        (7500.0, "2 h 5 m"),
        (86_400.0, "1 d 0 h"),
        (100 * 86_400 + 3 * 3600 + 59, "100 d 3 h"),
    ],
)
def test_a_duration_is_shown_in_two_units_at_most(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def said(caplog: pytest.LogCaptureFixture, news: News) -> str:
    caplog.set_level(logging.DEBUG, "revconn.runtime.link")
    caplog.clear()
    log_news(TARGET, news)
    (record,) = caplog.records
    assert record.name == "revconn.runtime.link", "as operators know it"
    return f"{record.levelname} {record.getMessage()}"


def connected(outage: Outage | None, now: float) -> Connected:
    return Connected(2, "id-2", 2, None, outage, now)


def test_after_a_loss_the_reminders_come_at_growing_intervals() -> None:
    outage = Outage(1000.0, RESET)
    reminded = [now for now in range(86_400) if outage.failed(REFUSED, 1000.0 + now)]
    assert reminded[:6] == [10, 30, 70, 150, 310, 630]
    intervals = [later - sooner for sooner, later in zip(reminded, reminded[1:])]
    assert intervals == sorted(intervals)
    assert intervals[-1] == 3600
    assert len(reminded) < 35


def test_what_never_was_connected_says_so_at_the_first_failure() -> None:
    outage = Outage(1000.0)
    reminded = [now for now in range(100) if outage.failed(REFUSED, 1000.0 + now)]
    assert reminded == [0, 10, 30, 70]


def test_a_reminder_says_how_long_it_has_lasted_and_what_was_tried(caplog) -> None:
    outage = Outage(1000.0, RESET)
    outage.failed(REFUSED, 1001.0)
    assert said(caplog, Failed(REFUSED, outage, True, 4.0, 1001.0)) == (
        "WARNING no connection: gw:1: refused; trying again in 4.0 s"
    )
    for now in range(6):
        outage.failed(REFUSED, 1010.0 + now)
    assert said(caplog, Failed(REFUSED, outage, False, 4.0, 1070.0)) == (
        "DEBUG no connection for 1 m 10 s, 7 attempts: gw:1: refused; trying again in 4.0 s"
    )
    assert "no connection: gw:1" in said(caplog, Failed(REFUSED, None, False, 4.0, 1070.0))


def test_the_end_says_how_long_it_took_and_what_went_wrong_last(caplog) -> None:
    outage = Outage(1000.0, RESET)
    assert said(caplog, connected(outage, 1000.4)) == (
        "INFO connected to gw:1 again as id-2: back after 0.4 s, 1 attempt, last error: reset"
    )
    for _ in range(8):
        outage.failed(REFUSED, 1100.0)
    assert said(caplog, connected(outage, 1192.0)) == (
        "INFO connected to gw:1 again as id-2: back after 3 m 12 s, 9 attempts, last error: refused"
    )


def test_a_start_that_succeeds_at_once_was_no_outage(caplog) -> None:
    outage = Outage(1000.0)
    assert said(caplog, connected(outage, 1001.0)._replace(number=1)) == (
        "INFO connected to gw:1 as id-2"
    )
    outage.failed(REFUSED, 1001.0)
    assert said(caplog, connected(outage, 1012.0)._replace(number=1)) == (
        "INFO connected to gw:1 as id-2: after 12 s, 2 attempts, last error: refused"
    )


def test_a_loss_is_a_line(caplog) -> None:
    assert said(caplog, Lost(REFUSED)) == (
        "WARNING lost the connection: gw:1: refused; connecting again"
    )


def test_one_in_the_place_of_another_is_not_connected_again(caplog) -> None:
    news = Connected(3, "id-3", 3, "id-2", None, 1000.0)
    assert said(caplog, news) == "INFO connected to gw:1 as id-3, in place of id-2"


def test_a_loss_while_another_serves_is_nobodys_to_act_on(caplog) -> None:
    news = ServesOn("id-3", REFUSED, "id-2")
    assert said(caplog, news) == "INFO lost id-3: gw:1: refused; id-2 serves on"


@pytest.mark.parametrize(("error", "has_traceback"), [(REFUSED, False), (KeyError("key"), True)])
def test_what_cannot_be_replaced_is_an_error_though_it_serves(
    caplog, error: Exception, has_traceback: bool
) -> None:
    assert said(caplog, GaveUpReplacing("id-2", error)) == (
        f"ERROR gw:1: gave up replacing id-2, which serves on until it ends: {error}"
    )
    (record,) = caplog.records
    assert bool(record.exc_info) is has_traceback, "of a user's function"


def test_another_key_is_a_line(caplog) -> None:
    assert said(caplog, AnotherKey()) == (
        "INFO gw:1: there is another API key: replacing the connection"
    )


def test_a_state_is_a_line_for_those_who_look_closely_and_whoever_shows_it_is_told(caplog) -> None:
    caplog.set_level(logging.DEBUG, "revconn.runtime.link")
    shown: list[State] = []
    with open_calls(Handlers()) as calls:
        link = Link(
            TARGET,
            None,
            make_options(),
            ("echo.Echo",),
            calls,
            on_change=lambda: shown.append(link.state),
            on_end=lambda link, error: None,
        )
        link._tell([Shows()])
    (record,) = caplog.records
    assert f"{record.levelname} {record.getMessage()}" == "DEBUG gw:1: IDLE"
    assert record.name == "revconn.runtime.link", "as operators know it"
    assert shown == [State.IDLE]
