"""What a run says: the machine, a table per load, and the bars."""

from __future__ import annotations

import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sysconfig
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version

from benchmarks.bars import Verdict, ratio
from benchmarks.measure import Figures, readable
from benchmarks.peers import PEERS
from benchmarks.residents import Residents

__all__ = ["bars", "by_load", "load_average", "machine", "median", "render", "table"]

Rounds = Sequence[Figures]


def machine(loadgen: str) -> dict[str, str]:
    """What the figures depend on, for people to read."""
    return {
        "machine": f"{_cpu_model()}, {os.cpu_count()} cores, {platform.system()}",
        "load generator": loadgen,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "python build": _python_build(),
        "grpcio": version("grpcio"),
        "hpack": version("hpack"),
        "protobuf": version("protobuf"),
        "go": _go_version(),
    }


def load_average() -> str:
    return " ".join(f"{load:.1f}" for load in os.getloadavg())


def by_load(figures: Iterable[Figures]) -> dict[str, dict[str, list[Figures]]]:
    """Each load's title, each of its peers, each round."""
    grouped: dict[str, dict[str, list[Figures]]] = {}
    for figure in figures:
        grouped.setdefault(figure.load.title, {}).setdefault(figure.peer, []).append(figure)
    return grouped


def median(rounds: Rounds, value: Callable[[Figures], float]) -> float:
    return statistics.median(map(value, rounds))


def render(
    figures: Sequence[Figures],
    missing: Mapping[str, str],
    facts: Mapping[str, str],
    residents: Residents | None = None,
    verdicts: Iterable[Verdict] = (),
) -> str:
    """The report, as Markdown that also reads well in a terminal."""
    lines = [f"- {name}: {fact}" for name, fact in facts.items()]
    for title, peers in by_load(figures).items():
        lines += ["", f"## {title}", "", *_figures(peers)]
    if figures:
        lines += ["", _headroom(figures)]
    if residents is not None:
        lines += ["", _memory(residents)]
    for peer, reason in missing.items():
        lines += ["", f"Not measured: {peer}", "", textwrap.indent(reason, "    ")]
    for figure in figures:
        if figure.errors:
            lines += [
                "",
                f"Not valid: {figure.peer}, {figure.load.title}, had {figure.errors:,} errors: "
                f"{figure.first_error}",
            ]
    lines += bars(verdicts)
    return "\n".join(lines) + "\n"


def bars(verdicts: Iterable[Verdict]) -> list[str]:
    """The section about the bars; nothing when none was judged."""
    rows = [[each.bar, each.measured or "not measured", _word(each)] for each in verdicts]
    if not rows:
        return []
    return ["", "## Bars", "", *table(["bar", "measured", "met"], rows, left=3)]


def _word(verdict: Verdict) -> str:
    return "yes" if verdict.met else "MISSED"


def _figures(peers: Mapping[str, Rounds]) -> list[str]:
    baseline = "go" if "go" in peers else next(iter(peers))
    head = [
        "peer",
        "CPU µs/request",
        f"× {baseline}",
        "requests/s",
        f"× {baseline}",
        "p50 ms",
        "p99 ms",
        "heartbeat late ms",
        "peak MiB",
        "load generator µs/request",
    ]
    rows = []
    for peer, rounds in peers.items():
        cpu = ratio(rounds, peers[baseline], lambda figure: figure.cpu_per_request)
        rate = ratio(rounds, peers[baseline], lambda figure: figure.requests_per_second)
        late = f"{1e3 * max(figure.heartbeat_lateness for figure in rounds):.0f}"
        rows.append(
            [
                peer,
                f"{1e6 * median(rounds, lambda figure: figure.cpu_per_request):,.1f}",
                f"{cpu:.2f}",
                f"{median(rounds, lambda figure: figure.requests_per_second):,.0f}",
                f"{rate:.2f}",
                f"{1e3 * median(rounds, lambda figure: figure.p50):.2f}",
                f"{1e3 * median(rounds, lambda figure: figure.p99):.2f}",
                "–" if PEERS[peer].listens else late,
                f"{max(figure.peak_memory for figure in rounds) / (1 << 20):.0f}",
                f"{1e6 * median(rounds, lambda figure: figure.loadgen_cpu_per_request):,.1f}",
            ]
        )
    return table(head, rows, left=1)


def table(head: list[str], rows: Iterable[list[str]], *, left: int) -> list[str]:
    """A Markdown table with its columns aligned, the first ``left`` of them to the left."""
    cells = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        )
        + " |"
        for row in cells
    ]
    rule = [
        ("-" * width if column < left else "-" * (width - 1) + ":")
        for column, width in enumerate(widths)
    ]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return lines


def _memory(residents: Residents) -> str:
    return (
        f"Memory: a process with one idle connector holds {readable(residents.process)}, each "
        f"further connector {readable(round(residents.idle_connector))}, a request of 64 B in "
        f"flight {readable(round(residents.request_in_flight))}."
    )


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


def _python_build() -> str:
    """Who compiled the interpreter, and whether with the optimizations that make it faster."""
    given = sysconfig.get_config_var("CONFIG_ARGS") or ""
    optimized = [
        name
        for name, option in (("PGO", "--enable-optimizations"), ("LTO", "--with-lto"))
        if option in given
    ]
    return f"{platform.python_compiler()}, {' and '.join(optimized) or 'neither PGO nor LTO'}"


def _go_version() -> str:
    if shutil.which("go") is None:
        return "none"
    return subprocess.run(
        ["go", "env", "GOVERSION"], capture_output=True, text=True, check=True
    ).stdout.strip()
