"""``revconn`` on the command line: each subcommand is a module of its own."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

if sys.argv[1:2] == ["gateway"]:
    # What grpc writes to stderr by itself says less than our errors do. It looks only once, when
    # it is imported; and a user's handlers, under `serve`, may want to hear it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from revconn.cli import demo, gateway, serve
from revconn.exceptions import ConfigurationError

__all__ = ["main"]

_COMMANDS = (demo, gateway, serve)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; --help says the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``revconn`` with ``argv`` (``sys.argv[1:]`` by default); the exit code.

    0: done. 1: it failed, in one line on stderr. 2: bad arguments, in one line on stderr.
    Raises :class:`SystemExit` where argparse ends the program: at ``--help`` and at arguments
    it does not understand.
    """
    parser = _Parser(prog="revconn", description="Serve gRPC from behind a firewall.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except ConfigurationError as error:
        print(f"revconn {arguments.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"revconn {arguments.command}: {error}", file=sys.stderr)
        return 1
    return code
