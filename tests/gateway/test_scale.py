"""Many connectors on sockets of their own; `python -m benchmarks.gateway` holds thousands."""

from __future__ import annotations

import pytest

from benchmarks.gateway.fleet import Fleet, measure_fleet
from benchmarks.gateway.paths import Programs
from benchmarks.peers import gateway


@pytest.mark.costly
def test_of_two_hundred_connectors_none_is_lost_and_all_come_back_to_a_new_gateway() -> None:
    fleet = Fleet(200, heartbeat_interval=1.0, idle=1.0, rate=60.0, seconds=5.0)
    assert fleet.idle + fleet.seconds > fleet.heartbeat_timeout
    figures = measure_fleet(fleet, Programs(loadgen=(), gateway=gateway(), go=False))

    assert (figures.errors, figures.first_error) == (0, "")
    assert figures.lost == 0
    assert figures.calls == 300
    assert figures.heartbeats >= 200 * 5, "all beat every second"
    assert figures.memory_per_connector < 1 << 20  # 0 where freed memory was enough
    assert 0 < figures.idle_cpu < figures.cpu
    assert len(figures.returns) == fleet.restarts
