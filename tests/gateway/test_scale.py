"""Many connectors on sockets of their own; `python -m benchmarks.gateway` holds a thousand."""

from __future__ import annotations

import pytest

from benchmarks.gateway.fleet import Fleet, measure_fleet


@pytest.mark.costly
def test_of_two_hundred_connectors_none_expires_and_every_call_of_any_is_answered() -> None:
    fleet = Fleet(200, idle=1.0, rate=60.0, seconds=5.0)  # longer than its heartbeat_timeout
    figures = measure_fleet(fleet)

    assert (figures.errors, figures.first_error) == (0, "")
    assert figures.calls == 300
    assert figures.heartbeats >= 200 * 5, "all beat every second"
    assert figures.stats["connections_opened"] == figures.stats["connections"] == 200
    assert figures.stats["calls_answered"] == 300
    assert figures.memory_per_connection < 1 << 20  # 0 where freed memory was enough
    assert 0 < figures.idle_cpu < figures.cpu
