"""What one run measures: which peers under which loads."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measure import Load

__all__ = [
    "BUSY",
    "CASES",
    "FLEET",
    "FLOOD",
    "KIB_64",
    "LARGEST",
    "LONE",
    "MANY",
    "MIB",
    "MIB_LONE",
    "PINGED",
    "Case",
]

LONE = Load(1)
PINGED = Load(1, dynamic_windows=True)
MANY = Load(256)
KIB_64 = Load(64, payload=64 << 10)
MIB = Load(64, payload=1 << 20, warmup=1.0)
MIB_LONE = Load(1, payload=1 << 20)
LARGEST = Load(1, payload=64 << 20, seconds=4.0, warmup=1.0)
BUSY = Load(32, seconds=10.0)
FLEET = Load(100, warmup=1.0)
FLOOD = Load(1000, payload=256 << 10, seconds=10.0)


@dataclass(frozen=True)
class Case:
    """A load, and the peers that are put under it; ``once`` where more rounds say no more."""

    load: Load
    peers: tuple[str, ...]
    once: bool = False


_SMALL = ("revconn", "revconn-inline", "revconn-grpcio", "literal", "bare", "server", "go")
_LARGE = ("revconn", "revconn-inline", "go", "revconn-tls", "go-tls")

CASES = (
    Case(LONE, _SMALL),
    Case(PINGED, ("revconn", "revconn-inline", "bare", "go")),
    Case(MANY, _SMALL),
    Case(KIB_64, _LARGE),
    Case(MIB, _LARGE),
    Case(MIB_LONE, ("revconn",)),
    Case(LARGEST, ("revconn",)),
    Case(FLEET, ("revconn-fleet", "revconn-fleet-5ms")),
    Case(BUSY, ("revconn-busy",), once=True),
    Case(FLOOD, ("revconn-slow",), once=True),
)
