"""``revconn serve package.module:connector``: run a user's connector."""

from __future__ import annotations

import argparse
import queue
import sys
import threading
from typing import Any

from revconn.cli.loading import CannotLoad, load_connector
from revconn.cli.logs import add_log_level, set_up_logging
from revconn.connector import Connector
from revconn.exceptions import ConnectionLost, RevconnError
from revconn.runtime.signals import obey_signals, signals_into
from revconn.runtime.state import State

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser(
        "serve",
        help="run a connector of yours",
        description=(
            "Run a connector until it is stopped. SIGINT and SIGTERM finish what was accepted and"
            " leave; a second one leaves at once."
        ),
        epilog=(
            "Exit codes: 0 stopped, 1 the gateway refused it, 2 it could not be started,"
            " 130 or 143 aborted by a second SIGINT or SIGTERM."
        ),
    )
    parser.add_argument(
        "connector",
        metavar="MODULE:NAME",
        help="package.module:connector, a Connector or a function that returns one; the current"
        " directory is importable",
    )
    add_log_level(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    set_up_logging(arguments.log_level)
    try:
        return _serve(load_connector(arguments.connector))
    except ConnectionLost:
        return 1  # the log has it
    except (CannotLoad, RevconnError) as error:
        print(f"revconn serve: {error}", file=sys.stderr)
        return 2


def _serve(connector: Connector) -> int:
    """As ``connector.start()``, which cannot say that it was aborted."""
    wakeups: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def wake_at_the_end(state: State) -> None:
        if state is State.CLOSED:
            wakeups.put(None)

    connector.on_state_change(wake_at_the_end)
    with signals_into(wakeups):
        connector.start(block=False)
        drain = threading.Thread(target=connector.stop, name="revconn-stop", daemon=True)
        aborted_by = obey_signals(wakeups, drain.start, connector.abort)
    connector.wait()
    return 0 if aborted_by is None else 128 + aborted_by
