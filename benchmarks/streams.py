"""What a message of a streaming call costs: behind a connector, and behind grpc's own server."""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Callable

from benchmarks import golang
from benchmarks.bars import Verdict
from benchmarks.measure import PeerFailed, cpu_seconds, event, line, programs, readable
from benchmarks.peers import gateway
from benchmarks.report import bars, load_average, machine, table

_OURS, _DIRECT = "revconn", "grpc.server"

# What jhump/grpctunnel (Go) was measured to take, µs of CPU for each message of 64 bytes at the end
# that serves: its module cannot be had everywhere.
_GRPCTUNNEL = {"down": 7.7, "echo": 14.6, "up": 7.6}


@dataclass(frozen=True)
class Stream:
    """What callers do: ``streams`` at once, with messages of ``size`` bytes."""

    mode: str
    size: int = 64
    streams: int = 1

    @property
    def title(self) -> str:
        """Such as "down, 64 B, 16 streams"."""
        number = "1 stream" if self.streams == 1 else f"{self.streams} streams"
        return f"{self.mode}, {readable(self.size)}, {number}"


DOWN, DOWN_16 = Stream("down"), Stream("down", streams=16)
UP, ECHO, PING_PONG, UNARY = (Stream(mode) for mode in ("up", "echo", "pingpong", "unary"))
KIB_64, KIB_64_16 = Stream("down", 64 << 10), Stream("down", 64 << 10, 16)
MIB, MIB_16 = Stream("down", 1 << 20), Stream("down", 1 << 20, 16)
# Beside so many that nobody reads; of the connector alone.
STALLED = 1_000
BESIDE = Stream(f"down beside {STALLED:,} that nobody reads")
_STALLED_BY = 4  # callers, each on a connection of its own
_TO_FILL = 10.0  # seconds
ROUNDS, SECONDS = 5, 1.0
STREAMS = (DOWN, DOWN_16, UP, ECHO, PING_PONG, UNARY, KIB_64, KIB_64_16, MIB, MIB_16)


@dataclass(frozen=True)
class Measured:
    """One round. CPU is in µs for each message."""

    rate: float
    cpu: float
    gateway_cpu: float
    p50: float


Start = Callable[..., "subprocess.Popen[str]"]
Rounds = dict[tuple[Stream, str], list[Measured]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the report; return the exit code."""
    options = _parse(arguments)
    why_no_go = golang.build()
    if why_no_go:
        sys.exit(f"not measured: {why_no_go}")
    try:
        run = run_all(options.rounds, options.seconds)
    except (PeerFailed, OSError) as failure:
        sys.exit(f"not measured: {failure}")
    print(run.text, end="")
    if options.report:
        run.write(options.report)
    return int(options.check and not all(verdict.met for verdict in run.verdicts))


@dataclass(frozen=True)
class Run:
    """What a run has to say. ``text`` is all of it, ``verdicts`` the bars alone."""

    text: str
    verdicts: list[Verdict]

    def write(self, path: pathlib.Path) -> None:
        """Write the report."""
        head = "# Results of one run: streaming calls\n\n"
        path.write_text(head + self.text, encoding="utf-8")


def run_all(rounds: int, seconds: float) -> Run:
    """Measure all loads, and judge. Go has to be built. Raises :class:`PeerFailed`."""
    facts = machine("Go")
    facts["rounds"] = f"{rounds}, interleaved, of {seconds:g} s; medians"
    before = load_average()
    measured = measure(rounds, seconds)
    facts["load average before and after"] = f"{before}; {load_average()}"
    verdicts = list(judge(measured))
    text = "\n".join([*_facts(facts), *_figures(measured), *bars(verdicts)]) + "\n"
    return Run(text, verdicts)


def measure(rounds: int, seconds: float) -> Rounds:
    """All loads on both, in turns."""
    measured: Rounds = {}
    python = sys.executable
    with programs() as start:
        through = start(*gateway("--loop=auto"), "--port=0")
        address = line(through)
        connector = start(python, "-m", "benchmarks.peers.streams", address)
        line(connector)
        server = start(python, "-m", "benchmarks.peers.streams", "--direct")
        direct = line(server)
        for _ in range(rounds):
            for load in STREAMS:
                for peer, target, pids in (
                    (_OURS, address, (connector.pid, through.pid)),
                    (_DIRECT, direct, (server.pid, server.pid)),
                ):
                    figures = _measured(start, load, target, pids, seconds)
                    measured.setdefault((load, peer), []).append(figures)
        stalled = STALLED // _STALLED_BY
        for _ in range(_STALLED_BY):
            lasting = 60 + 2 * rounds * seconds
            caller = start(
                str(golang.STREAM_LOAD),
                f"-target={address}",
                "-mode=stall",
                f"-streams={stalled}",
                f"-seconds={lasting:g}",
            )
            event(caller, "begun")
        time.sleep(_TO_FILL)  # windows: nothing tells that they are
        for _ in range(rounds):
            figures = _measured(start, DOWN, address, (connector.pid, through.pid), seconds)
            measured.setdefault((BESIDE, _OURS), []).append(figures)
    return measured


def _measured(
    start: Start, load: Stream, target: str, pids: tuple[int, int], seconds: float
) -> Measured:
    """One round of one load. ``pids``: who serves, and what is between."""
    caller = start(
        str(golang.STREAM_LOAD),
        f"-target={target}",
        f"-mode={load.mode}",
        f"-size={load.size}",
        f"-streams={load.streams}",
        f"-seconds={seconds:g}",
    )
    event(caller, "begun")
    began = [cpu_seconds(pid) for pid in pids]
    told = json.loads(line(caller))
    took = [cpu_seconds(pid) - then for pid, then in zip(pids, began)]
    caller.wait()
    count = max(1, told["messages"])
    cpu, gateway_cpu = (1e6 * each / count for each in took)
    return Measured(count / told["seconds"], cpu, gateway_cpu, told["p50_ms"])


Value = Callable[[Measured], float]


def _median(measured: Rounds, load: Stream, peer: str, value: Value) -> float:
    """``nan`` if it was not measured: that meets no bar."""
    rounds = measured.get((load, peer))
    return statistics.median(map(value, rounds)) if rounds else math.nan


def judge(measured: Rounds) -> Iterator[Verdict]:
    """The bars, each as a ratio of the same run, or to grpctunnel's own figures."""

    def cpu(load: Stream, peer: str = _OURS) -> float:
        return _median(measured, load, peer, lambda each: each.cpu)

    def rate(load: Stream, peer: str = _OURS) -> float:
        return _median(measured, load, peer, lambda each: each.rate)

    def p50(load: Stream) -> float:
        return _median(measured, load, _OURS, lambda each: each.p50)

    for load, most in ((DOWN, 1.2), (ECHO, 2.0), (UP, 2.0)):
        theirs = _GRPCTUNNEL[load.mode]
        bar = f"CPU of the connector, {load.title} ≤ {most:g} × grpctunnel's {theirs:g} µs"
        yield _verdict(bar, cpu(load), " µs", at_most=most * theirs)
    large = ((load, 0.8) for load in (KIB_64, KIB_64_16, MIB, MIB_16))
    for load, least in ((DOWN, 15.0), (DOWN_16, 5.0), *large):
        bar = f"messages/s, {load.title} ≥ {least:g} × {_DIRECT}"
        yield _verdict(bar, rate(load) / rate(load, _DIRECT), at_least=least)
    bar = f"CPU, {ECHO.title} ≤ 0.15 × {_DIRECT}"
    yield _verdict(bar, cpu(ECHO) / cpu(ECHO, _DIRECT), at_most=0.15)
    bar = "p50 of a ping-pong ≤ 1.5 × a unary call's"
    yield _verdict(bar, p50(PING_PONG) / p50(UNARY), at_most=1.5)
    bar = f"messages/s, {BESIDE.title} ≥ 0.8 × alone"
    yield _verdict(bar, rate(BESIDE) / rate(DOWN), at_least=0.8)


def _verdict(
    bar: str,
    found: float,
    unit: str = "",
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> Verdict:
    measured = "" if math.isnan(found) else f"{found:.3g}{unit}"
    return Verdict(bar, measured, at_least <= found <= at_most)


def _facts(facts: dict[str, str]) -> list[str]:
    return [*(f"- {name}: {value}" for name, value in facts.items()), ""]


def _figures(measured: Rounds) -> list[str]:
    head = ["load", "behind", "messages/s", "CPU µs", "gateway's", "p50 ms"]
    rows = []
    for load, peer in measured:
        rate, cpu, through, p50 = (
            _median(measured, load, peer, value)
            for value in (
                lambda each: each.rate,
                lambda each: each.cpu,
                lambda each: each.gateway_cpu,
                lambda each: each.p50,
            )
        )
        rows.append(
            [
                load.title,
                peer,
                f"{rate:,.0f}",
                f"{cpu:,.2f}",
                f"{through:,.2f}" if peer == _OURS else "",
                f"{p50:.3f}" if p50 else "",
            ]
        )
    return [*table(head, rows, left=2), ""]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streams", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each load ({ROUNDS})")
    seconds = f"that a round takes ({SECONDS:g})"
    parser.add_argument("--seconds", type=float, default=SECONDS, help=seconds)
    parser.add_argument("--report", type=pathlib.Path, metavar="FILE", help="the report")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a bar is missed")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
