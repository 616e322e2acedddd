"""``revconn demo``: everything at once, in three processes on real sockets."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, Callable, NoReturn

from revconn.cli.demo.processes import DemoFailed
from revconn.cli.demo.screen import Screen
from revconn.cli.demo.story import Demo

__all__ = ["add_parser", "run"]

_LARGEST_PAYLOAD = 4_000_000  # gRPC takes messages up to 4 MiB, headers included


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser(
        "demo",
        help="watch calls travel through a gateway to a connector's handler",
        description=(
            "Start a gateway and a connector as processes of their own, call through them with an"
            " ordinary gRPC client, kill the gateway, and watch the connector come back."
        ),
        epilog="Exit codes: 0 everything worked, 1 something did not, in one line on stderr.",
    )
    parser.add_argument(
        "--requests",
        type=_whole_number(at_least=1),
        default=500,
        metavar="N",
        help="how many calls to make, and again after the restart (default: %(default)s)",
    )
    parser.add_argument(
        "--payload",
        # No bytes are a payload too: protobuf then leaves the field out.
        type=_whole_number(at_least=0, at_most=_LARGEST_PAYLOAD),
        default=64,
        metavar="BYTES",
        help="how large a call's payload is, there and back (default: %(default)s)",
    )
    parser.add_argument(
        "--no-restart", action="store_true", help="do not kill and restart the gateway"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    try:
        # Around the making of it too: a process that was started is ended, whenever a signal comes.
        with _signals_interrupt():
            demo = Demo(
                Screen.on_stdout(),
                requests=arguments.requests,
                payload=arguments.payload,
                restart=not arguments.no_restart,
            )
            with demo:
                demo.run()
    except DemoFailed as failure:
        print(f"revconn demo: {failure}", file=sys.stderr)
        return 1
    except _Interrupted as interrupted:
        print(f"revconn demo: interrupted by {interrupted.signal.name}", file=sys.stderr)
        return 128 + interrupted.signal
    except BrokenPipeError:  # nobody reads any more: let Python not stumble over that at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


# No Exception: nothing on the way out to run() may take it for a failure of the demo's.
class _Interrupted(BaseException):
    """A signal asks the demo to end; whatever it is doing, its processes are ended first."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise _Interrupted(number)

    # A terminal that is closed sends SIGHUP: gateway and connector must not go on without a demo.
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is unknown to some systems
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _whole_number(*, at_least: int, at_most: int | None = None) -> Callable[[str], int]:
    bounds = f"{at_least:,} or more" if at_most is None else f"{at_least:,} to {at_most:,}"

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        # In words of our own: argparse would name this function where it names the type.
        if number is None or number < at_least or (at_most is not None and number > at_most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {bounds}")
        return number

    return parse
