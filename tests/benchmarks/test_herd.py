"""A thousand connectors that lose their gateway at once."""

from pathlib import Path

import pytest

from benchmarks import herd
from revconn import Backoff

PAGE = Path(__file__).resolve().parents[2] / "docs" / "topics" / "reconnection.md"


@pytest.mark.parametrize(("outage", "most"), [(5.0, 300), (30.0, 60), (600.0, 60)])
def test_they_do_not_come_back_at_once(outage: float, most: int) -> None:
    times = herd.arrivals(Backoff().delay, outage)
    assert len(times) == 1000
    assert herd.busiest_second(times) < most
    assert times[0] >= 0
    assert times[-1] < Backoff().maximum


def test_without_jitter_they_would() -> None:
    for outage in herd.OUTAGES:
        assert herd.busiest_second(herd.arrivals(Backoff().ceiling, outage)) == 1000


def test_after_a_mere_interruption_they_come_evenly_within_the_first_wait() -> None:
    times = herd.arrivals(Backoff(initial=10.0).delay, 0.0)
    assert times[-1] < 10.0
    assert herd.busiest_second(times) < 150


def test_the_busiest_second_begins_anywhere() -> None:
    assert herd.busiest_second([0.1, 0.9, 1.05, 1.1, 3.0]) == 4
    assert herd.busiest_second([5.0]) == 1


def test_the_documentation_shows_the_table() -> None:
    assert herd.table() in PAGE.read_text(encoding="utf-8")


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert herd.draw(tmp_path / "images").read_bytes().startswith(b"\x89PNG")
