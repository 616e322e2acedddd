"""Every peer under every load, in interleaved rounds of one run."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks import golang, report
from benchmarks.measure import Figures, Load, PeerFailed, measure
from benchmarks.peers import PEERS


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report; return the exit code."""
    options = _parse(arguments)
    wants_go = options.loadgen == "go" or "go" in options.peers
    why_no_go = golang.build() if wants_go else ""
    missing = {"go": why_no_go} if why_no_go else {}
    loadgen, described = [str(golang.LOADGEN)], "Go"
    if options.loadgen == "python" or why_no_go:
        loadgen = [sys.executable, "-m", "benchmarks.loadgen"]
        described = f"Python, slower than Go's ({why_no_go or 'as asked'})"

    facts = report.machine(described)
    facts["rounds"] = (
        f"{options.rounds} of {options.seconds} s with {options.payload}-byte payloads; medians, "
        "of heartbeat lateness the worst"
    )
    before = report.load_average()
    figures = _run(options, loadgen, missing)
    facts["load average before and after"] = f"{before}; {report.load_average()}"

    text = report.render(figures, missing, facts)
    print(text, end="")
    if options.report:
        options.report.write_text(f"# Benchmarks\n\n{text}", encoding="utf-8")
    if options.json:
        run = {"facts": facts, "missing": missing, "figures": [asdict(each) for each in figures]}
        options.json.write_text(json.dumps(run, indent=1), encoding="utf-8")
    missed = report.missed_bars(figures, missing) if options.check else []
    for bar in missed:
        print(f"MISSED: {bar}")
    return 1 if missed else 0


def _run(
    options: argparse.Namespace, loadgen: Sequence[str], missing: dict[str, str]
) -> list[Figures]:
    """Every figure of the run. A peer that fails is added to ``missing`` and not tried again."""
    figures: list[Figures] = []
    for number in range(1, options.rounds + 1):
        for in_flight in options.in_flight:
            load = Load(in_flight, options.payload, options.seconds)
            for name in options.peers:
                if name in missing:
                    continue
                _say(f"round {number}: {name}, {in_flight} in flight")
                try:
                    figures.append(measure(PEERS[name], load, loadgen))
                except PeerFailed as failure:
                    missing[name] = str(failure)
                    _say(f"{name} failed: {failure}")
    return figures


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--peers",
        type=_peers,
        default=list(PEERS),
        metavar="A,B",
        help="which to run: "
        + "; ".join(f"{each.name}: {each.description}" for each in PEERS.values()),
    )
    parser.add_argument(
        "--in-flight", type=_numbers, default=[1, 64, 256], metavar="N,M", help="default: 1,64,256"
    )
    parser.add_argument("--payload", type=int, default=64, help="bytes per request (64)")
    parser.add_argument("--seconds", type=float, default=2.5, help="the measured window (2.5)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take the median of (3)")
    parser.add_argument("--loadgen", choices=["go", "python"], default="go", help="default: go")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="every figure of the run")
    parser.add_argument("--report", type=pathlib.Path, metavar="FILE", help="the report")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")
    return parser.parse_args(arguments)


def _peers(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"no peer {name!r}; there are {', '.join(PEERS)}")
    return names


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
