"""``revconn serve package.module:connector``: run a user's connector."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import threading
import time
from typing import Any

from revconn.cli.loading import CannotLoad, load_connector
from revconn.cli.logs import add_log_format, add_log_level, set_up_logging
from revconn.connector import Connector
from revconn.exceptions import ConnectionLost, RevconnError
from revconn.logger import get_logger
from revconn.runtime.signals import obey_signals, signals_into
from revconn.runtime.state import State
from revconn.runtime.threads import Mailbox, guarded_thread

__all__ = ["add_parser", "run", "serve_connector"]

logger = get_logger(__name__)

_HANDLER_TIMEOUT = 0.5  # seconds for handlers that are just ending


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser(
        "serve",
        help="run a connector of yours",
        description=(
            "Run a connector until it is stopped. SIGINT and SIGTERM finish what was accepted and"
            " leave; a second one, other than the same within a second, leaves at once."
        ),
        epilog=(
            "Exit codes: 0 stopped, 1 the gateway refused it, 2 it could not be started,"
            " or its web application exited, 130 or 143 aborted by a second SIGINT or SIGTERM."
        ),
    )
    parser.add_argument(
        "connector",
        metavar="MODULE:NAME",
        help="package.module:connector, a Connector or a function that returns one; the current"
        " directory is importable",
    )
    parser.add_argument(
        "--processes",
        type=_count,
        default=1,
        metavar="N",
        help="serve in so many processes, one for each core to be used (default: 1); SIGHUP"
        " replaces them in turn, without a failed request",
    )
    parser.add_argument("--parent", type=_descriptors, help=argparse.SUPPRESS)
    add_log_level(parser)
    add_log_format(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    set_up_logging(arguments.log_level, arguments.log_format)
    if arguments.processes > 1:
        return _serve_in_processes(arguments)
    try:
        connector = load_connector(arguments.connector)
        if arguments.parent is not None:
            _obey_parent(connector, *arguments.parent)
        return serve_connector(connector)
    except ConnectionLost:
        return 1  # the log has it
    except (CannotLoad, RevconnError) as error:
        print(f"revconn serve: {error}", file=sys.stderr)
        return 2


def serve_connector(connector: Connector) -> int:
    """Run a connector until a signal ends it; the exit code.

    Raises the fatal error that ended it, and :class:`ConfigurationError` when it cannot start.
    """
    code = 2
    try:
        code = _serve(connector)
    except ConnectionLost:
        code = 1
        raise
    finally:
        _leave_running_handlers(code)
    return code


def _serve_in_processes(arguments: argparse.Namespace) -> int:
    if os.name != "posix":
        print("revconn serve: --processes needs a POSIX system", file=sys.stderr)
        return 2
    from revconn.cli.fleet import Fleet

    command = [sys.executable, "-m", "revconn", "serve", arguments.connector]
    logs = [f"--log-level={arguments.log_level}", f"--log-format={arguments.log_format}"]
    return Fleet([*command, *logs], arguments.processes).run()


def _obey_parent(connector: Connector, reports: int, lifeline: int) -> None:
    """Say when the connector is ready, and drain when the parent is gone."""

    def report(state: State) -> None:
        if state is State.READY:
            # A pipe, no signal and no file: its end, too, tells the parent something.
            os.write(reports, b"ready\n")

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(lifeline, 1)  # ends when the last copy of its other end is closed
        logger.warning("the parent process is gone: leaving")
        connector.stop()

    connector.on_state_change(report)
    guarded_thread("revconn-lifeline", watch).start()


def _serve(connector: Connector) -> int:
    """As ``connector.start()``, which cannot say that it was aborted."""
    wakeups: Mailbox[int | None] = Mailbox()

    def wake_at_the_end(state: State) -> None:
        if state is State.CLOSED:
            wakeups.put(None)

    # It may end by itself: a key that is refused ends it without any signal.
    connector.on_state_change(wake_at_the_end)
    with signals_into(wakeups):
        connector.start(block=False)
        # In a thread, so that a second signal is heard while it drains.
        drain = guarded_thread("revconn-stop", connector.stop)
        aborted_by = obey_signals(wakeups, drain.start, connector.abort)
    connector.wait()
    return 0 if aborted_by is None else 128 + aborted_by


def _leave_running_handlers(code: int) -> None:
    """End the process here if a handler still runs: it may be printing as the interpreter goes."""
    # Threads of handlers are daemons: Python would stop them wherever they are, a lock of stdout in
    # hand, and then crash as it flushes stdout itself.
    handlers = [t for t in threading.enumerate() if t.name.startswith("revconn-handler")]
    deadline = time.monotonic() + _HANDLER_TIMEOUT
    for handler in handlers:
        handler.join(max(0.0, deadline - time.monotonic()))
    running = sum(handler.is_alive() for handler in handlers)
    if running:
        logger.warning("leaving while %d handlers still run", running)
        try:
            logging.shutdown()
            sys.stdout.flush()
        finally:  # whatever a log handler raises
            os._exit(code)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count; give 1 or more")
    return int(text)


def _descriptors(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
