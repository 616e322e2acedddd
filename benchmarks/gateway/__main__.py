"""What the gateway costs: for each call through it, and for thousands of connectors it holds."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

from benchmarks import golang
from benchmarks.gateway.bars import judge
from benchmarks.gateway.fleet import Fleet, FleetFigures, measure_fleet, room_for
from benchmarks.gateway.paths import Programs
from benchmarks.gateway.report import render
from benchmarks.gateway.rounds import Calls, measure_calls
from benchmarks.gateway.sections import PARTS, SECTIONS, Section
from benchmarks.measure import PeerFailed, line, programs
from benchmarks.peers import gateway
from benchmarks.report import load_average, machine


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report; return the exit code."""
    options = _parse(arguments)
    why_no_go = "as asked" if options.loadgen == "python" else golang.build()
    facts = machine(f"Python, slower than Go's ({why_no_go})" if why_no_go else "Go")
    facts["rounds"] = (
        f"{options.rounds}, interleaved, of {options.seconds:g} s; rates, latencies and their "
        "ratios are medians, CPU is of all rounds"
    )
    before = load_average()
    fleets: list[FleetFigures] = []
    measured: dict[Section, list[Calls]] = {}
    missing: dict[str, str] = {}
    try:
        if "fleet" in options.only:
            room_for(max(options.connectors, default=0))
        with _programs(options, go=not why_no_go) as started:
            facts["gateway"] = _describe(options, started)
            for section in SECTIONS:
                if section.part in options.only:
                    paths = [path for path in section.paths if not started.missing(path)]
                    missing.update((p.name, started.missing(p)) for p in section.paths)
                    load = dataclasses.replace(section.load, seconds=options.seconds)
                    measured[section] = [*measure_calls(paths, load, options.rounds, started)]
            if "fleet" in options.only:
                for connectors in options.connectors:
                    fleet = Fleet(connectors, idle=options.idle, seconds=0.75 * options.idle)
                    fleets.append(measure_fleet(fleet, started))
    except (PeerFailed, OSError) as failure:
        sys.exit(f"not measured: {failure}")
    facts["load average before and after"] = f"{before}; {load_average()}"
    verdicts = judge(measured, fleets)
    missing = {path: reason for path, reason in missing.items() if reason}
    text = render(facts, measured, missing, fleets, verdicts)
    print(text, end="")
    if options.report:
        options.report.write_text(f"# Results of one run: the gateway\n\n{text}", encoding="utf-8")
    return int(options.check and not all(verdict.met for verdict in verdicts))


@contextlib.contextmanager
def _programs(options: argparse.Namespace, *, go: bool) -> Iterator[Programs]:
    """What the run starts. With Go there is a certificate, for as long as the run takes."""
    loadgen = (str(golang.LOADGEN),) if go else (sys.executable, "-m", "benchmarks.loadgen")
    command = options.gateway or gateway(f"--loop={options.loop}")
    with tempfile.TemporaryDirectory() as directory:
        if go:
            subprocess.run([*loadgen, f"-make-certificate={directory}"], check=True)
        certificates = pathlib.Path(directory) if go else None
        yield Programs(loadgen, tuple(command), bool(options.gateway), go, certificates)


def _describe(options: argparse.Namespace, started: Programs) -> str:
    """Which gateway, and on which event loop: whether uvloop is among what its process has mapped.

    Raises :class:`PeerFailed`.
    """
    name = shlex.join(options.gateway) if started.replaced else "revconn"
    with programs() as start:
        server = start(*started.ours())
        line(server)
        maps = pathlib.Path(f"/proc/{server.pid}/maps")
        if not maps.exists():
            return name
        uses_uvloop = "/uvloop/" in maps.read_text()
    try:
        installed = f"uvloop {version('uvloop')}"
    except PackageNotFoundError:
        installed = "uvloop"
    return f"{name}, {'on' if uses_uvloop else 'without'} {installed}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument(
        "--only",
        type=lambda text: tuple(text.split(",")),
        default=PARTS,
        metavar="PART,…",
        help=f"the parts to measure, of {', '.join(PARTS)} (all)",
    )
    parser.add_argument("--rounds", type=int, default=8, help="of each path (8)")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a round takes (1)")
    parser.add_argument(
        "--connectors",
        type=lambda text: tuple(map(int, text.split(","))),
        default=(5000, 10_000),
        metavar="N,…",
        help="held at once, in one fleet after the other (5000,10000)",
    )
    parser.add_argument(
        "--idle",
        type=float,
        default=20.0,
        help="seconds that a fleet is at rest, before three quarters of it with calls (20)",
    )
    parser.add_argument("--loadgen", choices=["go", "python"], default="go", help="default: go")
    parser.add_argument(
        "--loop",
        choices=["auto", "asyncio"],
        default="auto",
        help="the gateway's; asyncio: as if uvloop was not installed (auto)",
    )
    parser.add_argument(
        "--gateway",
        type=shlex.split,
        metavar="COMMAND",
        help="put another gateway in the place: it gets --port=N appended, and prints its address",
    )
    parser.add_argument("--report", type=pathlib.Path, metavar="FILE", help="the report")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a bar is missed")
    options = parser.parse_args(arguments)
    unknown = set(options.only) - set(PARTS)
    if unknown:
        parser.error(f"--only: no part {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
