"""Every peer under every load, in interleaved rounds of one run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

from benchmarks import golang, plots, report, streams
from benchmarks.bars import judge
from benchmarks.cases import CASES, Case
from benchmarks.measure import Figures, Load, PeerFailed, measure
from benchmarks.peers import PEERS
from benchmarks.residents import Residents, measure_residents

_PYTHON_LOADGEN_CANNOT = "needs the load generator in Go"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report; return the exit code."""
    options = _parse(arguments)
    if options.plots:
        try:
            plots.require_matplotlib()
        except plots.PlotsMissing as problem:
            sys.exit(str(problem))
    cases = _cases(options)
    missing: dict[str, str] = {}
    loadgen, described = [str(golang.LOADGEN)], "Go"
    why_no_go = "as asked" if options.loadgen == "python" else golang.build()
    if why_no_go:
        loadgen = [sys.executable, "-m", "benchmarks.loadgen"]
        described = f"Python, slower than Go's ({why_no_go})"
        missing = _without_go(cases, why_no_go)

    facts = report.machine(described)
    facts["rounds"] = f"{options.rounds}; medians, of heartbeat lateness and memory the worst"
    before = report.load_average()
    figures = _run(cases, options.rounds, loadgen, missing)
    residents = None if options.in_flight or why_no_go else _residents(loadgen, missing)
    streaming = None if options.in_flight or options.peers or why_no_go else _streaming(missing)
    facts["load average before and after"] = f"{before}; {report.load_average()}"

    verdicts = judge(figures, residents) if options.check else []
    text = report.render(figures, missing, facts, residents, verdicts)
    print(text, end="")
    if streaming is not None:
        print(f"\n# Streaming calls\n\n{streaming.text}", end="")
    if options.report:
        options.report.write_text(f"# Benchmarks\n\n{text}", encoding="utf-8")
        if streaming is not None:
            streaming.write(options.report.with_name(f"{options.report.stem}-streams.md"))
    if options.json:
        run = {
            "facts": facts,
            "missing": missing,
            "figures": [dataclasses.asdict(each) for each in figures],
            "residents": dataclasses.asdict(residents) if residents else None,
        }
        options.json.write_text(json.dumps(run, indent=1), encoding="utf-8")
    if options.plots:
        footnote = f"{facts['machine']}; Python {facts['python']}, {facts['go']}"
        for path in plots.draw(figures, footnote, options.plots):
            _say(f"drew {path}")
    if options.check:
        verdicts += streams.judge({}) if streaming is None else streaming.verdicts
    missed = [verdict for verdict in verdicts if not verdict.met]
    for verdict in missed:
        print(f"MISSED: {verdict.bar}; measured: {verdict.measured or 'nothing'}")
    return 1 if missed else 0


def _cases(options: argparse.Namespace) -> list[Case]:
    if options.in_flight:
        loads = [
            Load(number, options.payload, options.seconds, dynamic_windows=options.dynamic_windows)
            for number in options.in_flight
        ]
        return [Case(load, tuple(options.peers or PEERS)) for load in loads]
    seconds = 120.0 if options.long else 10.0
    return [
        dataclasses.replace(
            case,
            load=dataclasses.replace(case.load, seconds=seconds) if case.once else case.load,
            peers=tuple(peer for peer in case.peers if peer in (options.peers or case.peers)),
        )
        for case in CASES
    ]


def _without_go(cases: Sequence[Case], why: str) -> dict[str, str]:
    """The peers that cannot be measured then, and why."""
    missing = {}
    for name in (name for case in cases for name in case.peers):
        if name.startswith("go"):
            missing[name] = why
        elif PEERS[name].tls or PEERS[name].connections > 1:
            missing[name] = _PYTHON_LOADGEN_CANNOT
    return missing


def _run(
    cases: Sequence[Case], rounds: int, loadgen: Sequence[str], missing: dict[str, str]
) -> list[Figures]:
    """Every figure of the run. A peer that fails is added to ``missing`` and not tried again."""
    figures: list[Figures] = []
    for case in cases:
        for number in range(1, 2 if case.once else rounds + 1):
            for name in case.peers:
                if name in missing:
                    continue
                _say(f"{case.load.title}, round {number}: {name}")
                try:
                    figures.append(measure(PEERS[name], case.load, loadgen))
                except PeerFailed as failure:
                    missing[name] = str(failure)
                    _say(f"{name} failed: {failure}")
    return figures


def _residents(loadgen: Sequence[str], missing: dict[str, str]) -> Residents | None:
    _say("memory at rest")
    try:
        return measure_residents(loadgen)
    except PeerFailed as failure:
        missing["memory at rest"] = str(failure)
        return None


def _streaming(missing: dict[str, str]) -> streams.Run | None:
    _say("streaming calls")
    try:
        return streams.run_all(streams.ROUNDS, streams.SECONDS)
    except (PeerFailed, OSError) as failure:
        missing["streaming calls"] = str(failure)
        return None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--peers",
        type=_peers,
        metavar="A,B",
        help="which to run: "
        + "; ".join(f"{each.name}: {each.description}" for each in PEERS.values()),
    )
    parser.add_argument(
        "--in-flight", type=_numbers, metavar="N,M", help="these loads, not those of the bars"
    )
    parser.add_argument("--payload", type=int, default=64, help="with --in-flight: bytes (64)")
    parser.add_argument("--seconds", type=float, default=2.5, help="with --in-flight: window (2.5)")
    parser.add_argument(
        "--dynamic-windows", action="store_true", help="with --in-flight: a gateway that pings"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take the median of (3)")
    parser.add_argument("--long", action="store_true", help="120 s where 10 s are the default")
    parser.add_argument("--loadgen", choices=["go", "python"], default="go", help="default: go")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="every figure of the run")
    parser.add_argument("--report", type=pathlib.Path, metavar="FILE", help="the report")
    parser.add_argument("--plots", type=pathlib.Path, metavar="DIR", help="pictures (matplotlib)")
    parser.add_argument("--check", action="store_true", help="judge the bars; 1 if one is missed")
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
