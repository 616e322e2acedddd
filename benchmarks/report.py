"""What a run says: the machine, a table per load, and the bars that were missed."""

from __future__ import annotations

import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version

from benchmarks.measure import Figures
from benchmarks.peers import PEERS

__all__ = ["load_average", "machine", "missed_bars", "render"]

SUBJECT = "revconn"
BASELINE = "literal"
EFFICIENCY_BAR = 1.5  # times the baseline's requests per CPU second ...
EFFICIENCY_IN_FLIGHT = 256  # ... with so many in flight
LATENESS_BAR = 1.0  # seconds

Rounds = Sequence[Figures]


def machine(loadgen: str) -> dict[str, str]:
    """What the figures depend on, for people to read."""
    return {
        "machine": f"{_cpu_model()}, {os.cpu_count()} cores, {platform.system()}",
        "load generator": loadgen,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
        "go": _go_version(),
    }


def load_average() -> str:
    return " ".join(f"{load:.1f}" for load in os.getloadavg())


def render(figures: Iterable[Figures], missing: Mapping[str, str], facts: Mapping[str, str]) -> str:
    """The report, as Markdown that also reads well in a terminal."""
    lines = [f"- {name}: {fact}" for name, fact in facts.items()]
    grouped = _group(figures)
    for in_flight, peers in grouped.items():
        lines += ["", f"## {in_flight} in flight", "", *_table(peers)]
    everything = [
        figure for peers in grouped.values() for rounds in peers.values() for figure in rounds
    ]
    if everything:
        lines += ["", _headroom(everything)]
    for peer, reason in missing.items():
        lines += ["", f"Not measured: {peer}", "", textwrap.indent(reason, "    ")]
    wrong = [figure for figure in everything if figure.errors]
    for figure in wrong:
        lines += [
            "",
            f"Not valid: {figure.peer} with {figure.in_flight} in flight had "
            f"{figure.errors:,} errors: {figure.first_error}",
        ]
    return "\n".join(lines) + "\n"


def missed_bars(figures: Iterable[Figures], missing: Iterable[str] = ()) -> list[str]:
    """One sentence for every bar that the library misses.

    CPU time is judged for the connector as it comes, all else for its variants too.
    """
    grouped = _group(figures)
    missed = [f"{peer} could not be measured" for peer in filter(_is_subject, missing)]
    peers = grouped.get(EFFICIENCY_IN_FLIGHT, {})
    if SUBJECT not in peers or BASELINE not in peers:
        missed.append(
            f"{SUBJECT} and {BASELINE} were not both measured with {EFFICIENCY_IN_FLIGHT} in flight"
        )
    for in_flight, peers in grouped.items():
        for peer in filter(_is_subject, peers):
            rounds, where = peers[peer], f"with {in_flight} in flight"
            if (peer, in_flight) == (SUBJECT, EFFICIENCY_IN_FLIGHT) and BASELINE in peers:
                ratio = _ratio(rounds, peers[BASELINE])
                if ratio < EFFICIENCY_BAR:
                    missed.append(
                        f"{peer} gives {ratio:.2f}x {BASELINE}'s requests per CPU second {where}; "
                        f"the bar is {EFFICIENCY_BAR}x"
                    )
            late = max(figure.heartbeat_lateness for figure in rounds)
            if late >= LATENESS_BAR:
                missed.append(
                    f"{peer}'s heartbeat was {late:.2f} s late {where}; the bar is {LATENESS_BAR} s"
                )
            wrong = [figure for figure in rounds if figure.errors]
            missed += [
                f"{peer}: {each.errors} errors {where}: {each.first_error}" for each in wrong
            ]
    return missed


def _is_subject(peer: str) -> bool:
    return peer.startswith(SUBJECT)  # its variants are named revconn-…


def _group(figures: Iterable[Figures]) -> dict[int, dict[str, list[Figures]]]:
    grouped: dict[int, dict[str, list[Figures]]] = {}
    for figure in figures:
        grouped.setdefault(figure.in_flight, {}).setdefault(figure.peer, []).append(figure)
    return grouped


def _ratio(subject: Rounds, baseline: Rounds) -> float:
    """Requests per CPU second, against the baseline's.

    Each round has its own ratio: whatever else the machine did in that round weighs on both.
    """
    return statistics.median(
        ours.requests_per_cpu_second / theirs.requests_per_cpu_second
        for ours, theirs in zip(subject, baseline)
    )


def _table(peers: Mapping[str, Rounds]) -> list[str]:
    rows = [
        [
            "peer",
            "CPU µs/request",
            f"per CPU s, × {BASELINE}",
            "requests/s",
            "p50 ms",
            "p99 ms",
            "heartbeat late ms",
            "load generator µs/request",
        ]
    ]
    for peer, rounds in peers.items():
        ratio = f"{_ratio(rounds, peers[BASELINE]):.2f}" if BASELINE in peers else "–"
        late = f"{1e3 * max(figure.heartbeat_lateness for figure in rounds):.0f}"
        rows.append(
            [
                peer,
                f"{1e6 * _median(rounds, lambda figure: figure.cpu_per_request):.1f}",
                ratio,
                f"{_median(rounds, lambda figure: figure.requests_per_second):,.0f}",
                f"{1e3 * _median(rounds, lambda figure: figure.p50):.2f}",
                f"{1e3 * _median(rounds, lambda figure: figure.p99):.2f}",
                "–" if PEERS[peer].listens else late,
                f"{1e6 * _median(rounds, lambda figure: figure.loadgen_cpu_per_request):.1f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        )
        + " |"
        for row in rows
    ]
    rule = [
        ("-" * width if column == 0 else "-" * (width - 1) + ":")
        for column, width in enumerate(widths)
    ]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return lines


def _median(rounds: Rounds, value: Callable[[Figures], float]) -> float:
    return statistics.median(map(value, rounds))


def _headroom(figures: Rounds) -> str:
    """Whether the load generator could have been the bottleneck."""
    fastest = max(figures, key=lambda figure: figure.requests_per_second)
    text = (
        f"The load generator's highest rate was {fastest.requests_per_second:,.0f} requests/s, "
        f"against {fastest.peer}, at {1e6 * fastest.loadgen_cpu_per_request:.1f} µs of its own "
        "CPU per request"
    )
    others = [figure for figure in figures if figure.peer != fastest.peer]
    if not others:
        return text + "."
    second = max(others, key=lambda figure: figure.requests_per_second)
    return text + f"; next came {second.peer} with {second.requests_per_second:,.0f}."


def _cpu_model() -> str:
    try:
        cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    for line in cpuinfo.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _go_version() -> str:
    if shutil.which("go") is None:
        return "none"
    return subprocess.run(
        ["go", "env", "GOVERSION"], capture_output=True, text=True, check=True
    ).stdout.strip()
