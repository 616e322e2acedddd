"""What waiting costs in memory: a connector that is idle, a request that is being handled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measure import Load, memory, running
from benchmarks.peers import Peer, connector

__all__ = ["Residents", "measure_residents"]

_CONNECTORS = 50
_REQUESTS = 1000


@dataclass(frozen=True)
class Residents:
    """Bytes of memory."""

    process: int
    idle_connector: float
    request_in_flight: float


def measure_residents(loadgen: Sequence[str]) -> Residents:
    """Compare processes that differ in one thing. Raises :class:`PeerFailed`."""
    alone = _held(loadgen, connectors=1, in_flight=0)
    several = _held(loadgen, connectors=1 + _CONNECTORS, in_flight=0)
    one = _held(loadgen, connectors=1, in_flight=16)  # as many as have a thread
    many = _held(loadgen, connectors=1, in_flight=_REQUESTS)
    return Residents(
        process=alone,
        idle_connector=(several - alone) / _CONNECTORS,
        request_in_flight=(many - one) / (_REQUESTS - 16),
    )


def _held(loadgen: Sequence[str], *, connectors: int, in_flight: int) -> int:
    command = connector("--handler=stuck", f"--connectors={connectors}")
    peer = Peer("residents", "", command, connections=connectors)
    with running(peer, Load(in_flight, warmup=1.0), loadgen) as (served, _):
        return memory(served.pid)
