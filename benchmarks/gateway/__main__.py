"""What the gateway costs: for each call through it, and for a thousand connectors that it holds."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from benchmarks import golang
from benchmarks.gateway.calls import PATHS, Calls, measure_calls
from benchmarks.gateway.fleet import Fleet, FleetFigures, measure_fleet
from benchmarks.gateway.report import judge, render
from benchmarks.measure import Load, PeerFailed
from benchmarks.report import load_average, machine

_IN_FLIGHT = 64
_LONGEST_ROUND = 120.0  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report; return the exit code."""
    options = _parse(arguments)
    loadgen, described = [str(golang.LOADGEN)], "Go"
    why_no_go = "as asked" if options.loadgen == "python" else golang.build()
    if why_no_go:
        loadgen = [sys.executable, "-m", "benchmarks.loadgen"]
        described = f"Python, slower than Go's ({why_no_go})"
    facts = machine(described)
    load = Load(_IN_FLIGHT, seconds=_LONGEST_ROUND, warmup=0.2)
    facts["calls"] = (
        f"{load.title}, in {options.rounds} interleaved rounds; rates and latencies are medians"
    )
    before = load_average()
    calls: list[Calls] = []
    fleet: FleetFigures | None = None
    try:
        if options.requests:
            calls += measure_calls(PATHS, load, options.requests, options.rounds, loadgen)
        if options.connectors:
            seconds = options.seconds
            fleet = measure_fleet(Fleet(options.connectors, idle=seconds / 6, seconds=seconds))
    except PeerFailed as failure:
        sys.exit(f"not measured: {failure}")
    facts["load average before and after"] = f"{before}; {load_average()}"
    verdicts = judge(calls, fleet)
    text = render(facts, calls, fleet, verdicts)
    print(text, end="")
    if options.report:
        options.report.write_text(f"# Results of one run: the gateway\n\n{text}", encoding="utf-8")
    return int(options.check and not all(verdict.met for verdict in verdicts))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument(
        "--requests", type=int, default=20_000, help="calls on each path (20,000); 0: no calls"
    )
    parser.add_argument("--rounds", type=int, default=40, help="rounds they are made in (40)")
    parser.add_argument(
        "--connectors", type=int, default=1000, help="held at once (1,000); 0: none"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="that they are called, after a sixth of it at rest (60)",
    )
    parser.add_argument("--loadgen", choices=["go", "python"], default="go", help="default: go")
    parser.add_argument("--report", type=pathlib.Path, metavar="FILE", help="the report")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a bar is missed")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
