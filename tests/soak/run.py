"""One soak: a gateway, a connector behind a network that breaks every second, and callers."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from revconn.testing import FaultProxy
from tests.soak.callers import MOST_AT_ONCE, Callers, Outcomes
from tests.soak.faults import FaultSchedule
from tests.soak.footprint import Footprint
from tests.soak.ledger import Ledger
from tests.support.apps import App

__all__ = ["Report", "soak"]

_ROOT = Path(__file__).resolve().parents[2]
_HEARTBEAT_TIMEOUT = 2.0
_SETTLING = 20.0
_LONGEST_TROUBLE = 5.0  # seconds: until no more faults begin, the last ends, and all is connected


@dataclass
class Report:
    """What came out of it. ``problems`` is empty if every promise was kept."""

    outcomes: Outcomes
    faults: dict[str, int] = field(default_factory=dict)
    stats: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    before: dict[str, Footprint] = field(default_factory=dict)
    after: dict[str, Footprint] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """Every promise that was broken."""
        grown = [
            f"{name}: {footprint} at the end, {self.before[name]} at the beginning"
            for name, footprint in self.after.items()
            if footprint.exceeds(self.before[name])
        ]
        left = self.outcomes.most_time_left
        lost = [f"an answer computed {left:.1f} s before its deadline did not arrive"]
        return self.outcomes.problems + grown + (lost if left > _LONGEST_TROUBLE else [])


def soak(requests: int, *, rate: float, seed: int, transport: str) -> Report:
    """Make so many calls, ``rate`` a second, and report.

    Others come first, which bring every process to its working size.
    """
    warm_up = max(1_000, requests // 10)
    report = Report(Outcomes())
    with tempfile.TemporaryDirectory(prefix="revconn-soak-") as directory:
        path = Path(directory, "ledger")
        ledger = Ledger.create(path, warm_up + requests)
        gateway = _gateway()
        address = gateway.hears("gateway listening on")[0].split()[-1]

        def callers() -> Callers:
            return Callers(address, ledger, report.outcomes, rate)

        with FaultProxy(int(address.rpartition(":")[2])) as proxy:
            service = App(
                [sys.executable, "-m", "tests.soak.service", proxy.address, transport, str(path)],
                _ROOT,
                env={"MALLOC_ARENA_MAX": "1"},  # else it is mostly which threads had large answers
            )
            try:
                service.hears("ready")
                pids = {"gateway": gateway.pid, "connector": service.pid}
                _ask(report, callers(), proxy, seed, range(warm_up))
                report.before = _settled(pids, None)
                report.outcomes = Outcomes()
                began = time.monotonic()
                numbers = range(warm_up, warm_up + requests)
                _ask(report, callers(), proxy, seed + 1, numbers)
                report.seconds = time.monotonic() - began
                report.after = _settled(pids, report.before)
                service.stop()
                report.stats = json.loads(service.hears("{")[0])
            finally:
                service.kill()
                gateway.kill()
                ledger.close()
    return report


def _gateway() -> App:
    command = [sys.executable, "-m", "revconn", "gateway", "--address=127.0.0.1:0"]
    limits = [f"--max-pending{of}={MOST_AT_ONCE}" for of in ("", "-per-connection")]
    options = ["--api-key=key", f"--heartbeat-timeout={_HEARTBEAT_TIMEOUT:g}"]
    return App([*command, *options, *limits], _ROOT)


def _ask(report: Report, callers: Callers, proxy: FaultProxy, seed: int, numbers: range) -> None:
    faults = FaultSchedule(proxy, seed, callers.has_overdue)
    faults.start()
    try:
        callers.ask(numbers)
    finally:
        faults.end()
    report.faults = dict(faults.counts)


def _settled(pids: dict[str, int], before: dict[str, Footprint] | None) -> dict[str, Footprint]:
    """What each process holds once it holds no more than ``before``, or waits for nothing more."""
    deadline = time.monotonic() + _SETTLING
    last: dict[str, Footprint] = {}
    while True:
        now = {name: Footprint.of(pid) for name, pid in pids.items()}
        if before is None and last and not any(now[name].exceeds(last[name]) for name in now):
            return now
        if before is not None and not any(now[name].exceeds(before[name]) for name in now):
            return now
        if time.monotonic() > deadline:
            return now
        last = now
        time.sleep(1.0)
