"""What a sidecar costs: calls through a gateway and `revconn proxy`, and to the server directly."""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

import grpc

from benchmarks import golang
from benchmarks.measure import PeerFailed, cpu_seconds, event, line, programs
from benchmarks.peers import gateway
from benchmarks.peers.streams import SERVICE
from benchmarks.report import load_average, machine, table

_THROUGH, _DIRECT = "gateway and sidecar", "the server itself"
_PATIENCE = 30.0  # seconds, until the sidecar is connected


@dataclass(frozen=True)
class Load:
    """What callers do (benchmarks/go/streamload), with messages of 64 bytes."""

    title: str
    mode: str
    streams: int = 1


LOADS = (
    Load("unary, one at a time", "unary"),
    Load("unary, 16 in flight", "unary", 16),
    Load("pingpong, 1 stream", "pingpong"),
    Load("down, 1 stream", "down"),
    Load("up, 1 stream", "up"),
    Load("echo, 1 stream", "echo"),
    Load("down, 16 streams", "down", 16),
)


@dataclass(frozen=True)
class Measured:
    """One round. CPU is in µs for each call or message."""

    rate: float
    p50: float
    server: float
    gateway: float
    sidecar: float


Rounds = dict[tuple[Load, str], list[Measured]]
Start = Callable[..., "subprocess.Popen[str]"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table; return the exit code."""
    options = _parse(arguments)
    why_no_go = golang.build()
    if why_no_go:
        sys.exit(f"not measured: {why_no_go}")
    facts = machine("Go")
    facts["rounds"] = f"{options.rounds}, interleaved, of {options.seconds:g} s; medians"
    before = load_average()
    loads = [load for load in LOADS if options.only in load.title]
    try:
        measured = measure(loads, options.rounds, options.seconds)
    except (PeerFailed, OSError) as failure:
        sys.exit(f"not measured: {failure}")
    facts["load average before and after"] = f"{before}; {load_average()}"
    told = [f"- {name}: {value}" for name, value in facts.items()]
    text = "\n".join([*told, "", *_figures(measured)]) + "\n"
    print(text, end="")
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    return 0


def measure(loads: Sequence[Load], rounds: int, seconds: float) -> Rounds:
    """Each load on both ways, in turns."""
    measured: Rounds = {}
    with programs() as start:
        server = start(str(golang.STREAM_SERVER))
        direct = line(server)
        between = start(*gateway("--loop=auto"), "--port=0")
        through = line(between)
        key = "REVCONN_API_KEY=key"
        proxy = [sys.executable, "-m", "revconn", "proxy", "--log-level=warning"]
        ends = [f"--gateway={through}", f"--to={direct}", f"--service={SERVICE}"]
        sidecar = start("env", key, *proxy, *ends)
        _await(through)
        pids = [server.pid, between.pid, sidecar.pid]
        for _ in range(rounds):
            for load in loads:
                for way, target in ((_THROUGH, through), (_DIRECT, direct)):
                    figures = _measured(start, load, target, pids, seconds)
                    measured.setdefault((load, way), []).append(figures)
    return measured


def _await(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        say = channel.unary_unary(f"/{SERVICE}/Say")
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                say(b"", timeout=_PATIENCE)
            except grpc.RpcError as error:
                if time.monotonic() > until:
                    raise PeerFailed(f"the sidecar did not connect: {error.code()}") from None
                time.sleep(0.1)
            else:
                return


def _measured(
    start: Start, load: Load, target: str, pids: Sequence[int], seconds: float
) -> Measured:
    caller = start(
        str(golang.STREAM_LOAD),
        f"-target={target}",
        f"-mode={load.mode}",
        f"-streams={load.streams}",
        f"-seconds={seconds:g}",
    )
    event(caller, "begun")
    began = [cpu_seconds(pid) for pid in pids]
    told = json.loads(line(caller))
    took = [cpu_seconds(pid) - then for pid, then in zip(pids, began)]
    caller.wait()
    count = max(1, told["messages"])
    return Measured(count / told["seconds"], told["p50_ms"], *(1e6 * each / count for each in took))


def _figures(measured: Rounds) -> list[str]:
    head = ["64 bytes", "through", "per second", "CPU µs: sidecar", "gateway", "server", "p50 ms"]
    rows = []
    for (load, way), rounds in measured.items():
        rate, p50, server, between, sidecar = (
            statistics.median(getattr(each, name) for each in rounds)
            for name in ("rate", "p50", "server", "gateway", "sidecar")
        )
        rows.append(
            [
                load.title,
                way,
                f"{rate:,.0f}",
                *(f"{each:,.1f}" if way == _THROUGH else "" for each in (sidecar, between)),
                f"{server:,.1f}",
                f"{p50:.3f}" if p50 else "",
            ]
        )
    return table(head, rows, left=2)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sidecar", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each load (5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a round takes (1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="loads with it in their title")
    parser.add_argument("--report", type=pathlib.Path, metavar="FILE", help="the table")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
