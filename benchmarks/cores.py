"""Whether more processes answer more: `python -m benchmarks.cores`.

`revconn serve --processes N` with a handler that computes in Python, for N from one to the number
of cores. One process can use one core, however many threads it has.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence

from benchmarks import golang
from benchmarks.measure import Load, event, running
from benchmarks.peers import Peer, serve
from benchmarks.report import load_average, table

__all__ = ["main", "rates", "render"]

_IN_FLIGHT = 4  # for each process; its handlers' threads take turns with its one core


def rates(
    processes: Sequence[int], loadgen: Sequence[str], rounds: int, seconds: float
) -> dict[int, list[float]]:
    """Requests per second with so many processes, in interleaved rounds.

    Raises :class:`PeerFailed`.
    """
    measured: dict[int, list[float]] = {number: [] for number in processes}
    for _ in range(rounds):
        for number in processes:
            measured[number].append(_rate(number, loadgen, seconds))
    return measured


def _rate(processes: int, loadgen: Sequence[str], seconds: float) -> float:
    peer = Peer("cores", "", serve(f"--processes={processes}"), connections=processes)
    with running(peer, Load(_IN_FLIGHT, seconds=seconds, warmup=1.0), loadgen) as (_, generator):
        event(generator, "window-end")
        result = event(generator, "result")
    if result["errors"]:
        raise SystemExit(f"{result['errors']} errors: {result['first_error']}")
    rate: float = result["requests_per_second"]
    return rate


def render(measured: dict[int, list[float]]) -> list[str]:
    """A table of the medians, and of each round's own ratio to the first row."""
    baseline = next(iter(measured.values()))
    rows = [
        [
            str(number),
            f"{statistics.median(found):.1f}",
            f"{statistics.median(rate / one for rate, one in zip(found, baseline)):.2f}",
        ]
        for number, found in measured.items()
    ]
    return table(["processes", "requests/s", "× one"], rows, left=0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cores", description=__doc__)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="up to so many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    why_no_go = golang.build()
    if why_no_go:
        sys.exit(why_no_go)
    before = load_average()
    measured = rates(
        range(1, options.processes + 1), [str(golang.LOADGEN)], options.rounds, options.seconds
    )
    print("\n".join(render(measured)))
    print(f"\nload average before and after: {before}; {load_average()}")


if __name__ == "__main__":
    main()
