"""`python -m tests.soak`: many calls over a network that breaks about every second."""

from __future__ import annotations

import argparse
import random
import signal
import sys

from tests.soak.run import Report, soak

_MOST_SHOWN = 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000, metavar="N")
    parser.add_argument(
        "--rate",
        type=float,
        default=300,
        help="calls a second: what a machine has no time for expires (default: 300)",
    )
    parser.add_argument("--seed", type=int, default=None, help="of the faults; default: any")
    parser.add_argument("--transport", choices=["http2", "grpcio"], default="http2")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and leave no process behind
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(
        f"{arguments.requests:,} requests, transport {arguments.transport}, seed {seed}", flush=True
    )
    report = soak(arguments.requests, rate=arguments.rate, seed=seed, transport=arguments.transport)
    show(report)
    sys.exit(bool(report.problems))


def show(report: Report) -> None:
    outcomes = report.outcomes
    faults = ", ".join(f"{count} {name}" for name, count in sorted(report.faults.items()))
    print(f"faults in {report.seconds:.0f} s: {faults}")
    for name, count in sorted(outcomes.counts.items()):
        print(f"{count:9,} {name}")
    print(f"slowest answer: {outcomes.slowest_answer:.2f} s")
    print(
        "most time that was left when an answer was computed that did not arrive:"
        f" {outcomes.most_time_left:.2f} s"
    )
    print("the connector's counters:", report.stats)
    for name, footprint in report.after.items():
        print(f"{name}: {footprint}; before: {report.before[name]}")
    for problem in report.problems[:_MOST_SHOWN]:
        print("PROBLEM:", problem)
    print("no promise was broken" if not report.problems else f"{len(report.problems)} problems")


if __name__ == "__main__":
    main()
