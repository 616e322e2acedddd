"""``revconn gateway``: run a gateway until a signal stops it."""

from __future__ import annotations

import argparse
import os
import queue
import signal
from typing import Any

from revconn.cli.logs import add_log_level, set_up_logging
from revconn.exceptions import ConfigurationError
from revconn.gateway import Gateway
from revconn.runtime.signals import obey_signals, signals_into

__all__ = ["add_parser", "run"]

_KEYS_VARIABLE = "REVCONN_API_KEYS"


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser(
        "gateway",
        help="run a gateway",
        description=(
            "Run a gateway: connectors dial in, gRPC clients call what they serve, on one port,"
            " in plaintext. SIGINT or SIGTERM stops it once calls are answered, a second one at"
            " once."
        ),
        epilog=(
            f"The keys that connectors may show come from --api-key, --api-key-file or, without"
            f" either, from {_KEYS_VARIABLE} (separated by commas). Keys given with --api-key are"
            " visible to every user of this machine."
        ),
    )
    parser.add_argument(
        "--address", default="127.0.0.1:50051", metavar="HOST:PORT", help="default: %(default)s"
    )
    parser.add_argument(
        "--api-key", action="append", default=[], metavar="KEY", help="may be given several times"
    )
    parser.add_argument(
        "--api-key-file", action="append", default=[], metavar="FILE", help="one key per line"
    )
    parser.add_argument(
        "--heartbeat-timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="end a connection that has sent no heartbeat for so long (default: 120)",
    )
    parser.add_argument(
        "--request-timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="give up a call that is not answered for so long (default: 30)",
    )
    add_log_level(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    set_up_logging(arguments.log_level)
    gateway = Gateway(
        arguments.address,
        api_keys=_api_keys(arguments),
        heartbeat_timeout=arguments.heartbeat_timeout,
        request_timeout=arguments.request_timeout,
    )
    wakeups: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    with gateway:
        with signals_into(wakeups):
            print(f"gateway listening on {gateway.address}", flush=True)
            obey_signals(wakeups, lambda: wakeups.put(None), lambda: gateway.stop(grace=0.0))
        # Calls are being finished now, and the next signal ends the process at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return 0


def _api_keys(arguments: argparse.Namespace) -> list[str]:
    keys = list(arguments.api_key)
    for path in arguments.api_key_file:
        keys += _keys_in_file(path)
    if not keys:
        keys = [key.strip() for key in os.environ.get(_KEYS_VARIABLE, "").split(",") if key.strip()]
    if not keys:
        remedy = f"give --api-key or --api-key-file, or set {_KEYS_VARIABLE}"
        raise ConfigurationError("--api-key", None, "no key given", remedy)
    return keys


def _keys_in_file(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            keys = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read: {error}"
        raise ConfigurationError("--api-key-file", path, problem, "name a text file") from None
    if not keys:
        raise ConfigurationError("--api-key-file", path, "holds no key", "write one key per line")
    return keys
