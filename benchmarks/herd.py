"""A thousand connectors lose their gateway at once: when they come back. Simulated, not measured.

python -m benchmarks.herd                       # the table
python -m benchmarks.herd --plot docs/images    # and the picture (needs matplotlib)
"""

from __future__ import annotations

import argparse
import pathlib
import random
from collections import Counter
from collections.abc import Sequence
from typing import Callable

from benchmarks.plots import require_matplotlib
from revconn import Backoff

__all__ = ["OUTAGES", "arrivals", "busiest_second", "draw", "table"]

OUTAGES = (0.0, 5.0, 30.0, 600.0)
_CONNECTORS = 1000
_SEED = 6
_OURS, _OTHERS = "#1f6feb", "#9aa4b2"


def arrivals(delay: Callable[[int], float], outage: float) -> list[float]:
    """Seconds after the gateway is back at which each connector is connected again.

    ``delay`` is the wait after so many failures in a row. An attempt itself takes no time: what
    listens nowhere refuses at once.
    """
    random.seed(_SEED)  # Backoff draws from it
    return sorted(_arrival(delay, outage) for _ in range(_CONNECTORS))


def _arrival(delay: Callable[[int], float], outage: float) -> float:
    failures = 1  # the loss itself
    now = delay(failures)
    while now < outage:
        failures += 1
        now += delay(failures)
    return now - outage


def busiest_second(times: Sequence[float]) -> int:
    """The most arrivals within any one second."""
    most = first = 0
    for last, time in enumerate(times):
        while time - times[first] > 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def table() -> str:
    """What it comes to, as Markdown."""
    backoff = Backoff()
    lines = [
        "| gateway away for | busiest second | half are back after | all are back after |",
        "|---:|---:|---:|---:|",
    ]
    for outage in OUTAGES:
        times = arrivals(backoff.delay, outage)
        lines.append(
            f"| {outage:.0f} s | {busiest_second(times):,} | {times[len(times) // 2]:.1f} s"
            f" | {times[-1]:.1f} s |"
        )
    return "\n".join(lines)


def draw(folder: pathlib.Path) -> pathlib.Path:
    """Write the picture; return where it is."""
    figure = require_matplotlib()(figsize=(9, 4.2), layout="constrained")
    figure.suptitle(f"{_CONNECTORS:,} connectors whose gateway comes back: connections per second")
    backoff = Backoff()
    outages = [outage for outage in OUTAGES if outage]  # in one second they all come at once
    for axes, outage in zip(figure.subplots(1, len(outages), sharey=True), outages):
        spread = arrivals(backoff.delay, outage)
        herd = arrivals(backoff.ceiling, outage)
        last = int(max(*spread, *herd)) + 1
        for times, colour, name in (
            (herd, _OTHERS, "without jitter"),
            (spread, _OURS, "as it is"),
        ):
            per_second = Counter(int(time) for time in times)
            heights = [per_second[second] for second in range(last)]
            axes.bar(range(last), heights, width=1.0, align="edge", color=colour, label=name)
        axes.set_title(f"away for {outage:.0f} s", fontsize=9)
        axes.set_yscale("symlog", linthresh=10)
        axes.set_ylim(0, 1.5 * _CONNECTORS)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)
    figure.supxlabel("seconds since the gateway is back; simulated", fontsize=8, color="#57606a")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "herd.png"
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.herd", description=__doc__)
    parser.add_argument("--plot", type=pathlib.Path, metavar="DIR", help="draw herd.png there")
    options = parser.parse_args()
    print(table())
    if options.plot:
        print(f"drew {draw(options.plot)}")


if __name__ == "__main__":
    main()
