"""What one run measures: which paths under which loads."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gateway.paths import OURS, THIN, Path
from benchmarks.gateway.rounds import Cost, of_server, together
from benchmarks.golang import GUIDE_CLIENT
from benchmarks.measure import Load
from benchmarks.peers import connector

__all__ = [
    "BETWEEN",
    "CALLS",
    "CHANNELS",
    "DIRECT",
    "INLINE",
    "KIB_64",
    "LONE",
    "MIB",
    "PARTS",
    "POOL",
    "POOL_TLS",
    "SECTIONS",
    "THIN_TO_GUIDE",
    "TO_GUIDE",
    "Section",
]

_MANY = 16  # channels
_GUIDE = (str(GUIDE_CLIENT),)
_INLINE = connector("--inline")

DIRECT = Path("grpc.aio server, called directly")
POOL = Path("http2, handler pool", OURS, connector())
INLINE = Path("http2, inline handler", OURS, _INLINE)
POOL_TLS = Path("http2, handler pool, over TLS", OURS, connector(), tls=True)
THIN_INLINE = Path("thin gateway on grpc-go, inline handler", THIN, _INLINE)
GRPCIO = (
    Path("grpcio, handler pool", OURS, connector("--transport=grpcio")),
    Path("grpcio, inline handler", OURS, connector("--transport=grpcio", "--inline")),
)
DIRECT_MANY = Path(DIRECT.name, channels=_MANY)
INLINE_MANY = Path(INLINE.name, OURS, _INLINE, channels=_MANY)
TO_GUIDE = Path("to the guide's client in Go", OURS, _GUIDE, between=True)
TO_INLINE = Path("to an inline handler", OURS, _INLINE, between=True)
THIN_TO_GUIDE = Path("thin gateway on grpc-go, to the same", THIN, _GUIDE, between=True)


@dataclass(frozen=True)
class Section:
    """A load, and the paths that are put under it; of its ``part``, which ``--only`` names.

    The paths are compared with the ``baseline``, one of them, which the report calls
    ``against``: of CPU time by what ``cost`` counts.
    """

    part: str
    title: str
    load: Load
    paths: tuple[Path, ...]
    baseline: Path = DIRECT
    against: str = "direct"
    cost: Cost = together


_LOAD = Load(64, seconds=1.0, warmup=0.2)

CALLS = Section(
    "calls",
    "Calls from outside, on one channel",
    _LOAD,
    (DIRECT, POOL, INLINE, *GRPCIO, THIN_INLINE),
)
CHANNELS = Section(
    "calls", f"The same on {_MANY} channels", _LOAD, (DIRECT_MANY, INLINE_MANY), DIRECT_MANY
)
LONE = Section(
    "calls", "One call at a time", Load(1, seconds=1.0, warmup=0.2), (DIRECT, POOL, INLINE)
)
BETWEEN = Section(
    "between",
    "Calls between connectors",
    _LOAD,
    (THIN_TO_GUIDE, TO_GUIDE, TO_INLINE, DIRECT),
    THIN_TO_GUIDE,
    "grpc-go",
    of_server,
)
_LARGE = (DIRECT, POOL, INLINE, POOL_TLS)
KIB_64 = Section("payloads", "Large payloads", Load(64, 64 << 10, 1.0, 0.2), _LARGE)
# Sixteen, so that what waits for one connector stays within the gateway's max_queued_bytes.
MIB = Section("payloads", "Larger payloads", Load(16, 1 << 20, 1.0, 0.4), _LARGE)

SECTIONS = (CALLS, CHANNELS, LONE, BETWEEN, KIB_64, MIB)
PARTS = ("calls", "between", "payloads", "fleet")
