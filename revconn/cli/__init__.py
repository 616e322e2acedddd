"""``revconn`` on the command line: each subcommand is a module of its own."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

if sys.argv[1:2] == ["gateway"]:
    # What grpc writes to stderr by itself says less than our errors do. It looks only once, when
    # it is imported; and a user's handlers, under `serve`, may want to hear it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import revconn
from revconn.exceptions import ConfigurationError
from revconn.settings.checks import closest

__all__ = ["main"]

# Modules, each imported only where it is needed: the first brings all of grpc along.
_COMMANDS = ("demo", "gateway", "proxy", "serve")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; --help says the rest."""

    def __init__(self, **settings: Any) -> None:
        # An abbreviation that is clear today is another option's tomorrow, in scripts that nobody
        # looks at.
        super().__init__(allow_abbrev=False, **settings)
        self.register("action", None, _StoreOnce)

    def refuse_unknown(self, words: Sequence[str]) -> NoReturn:
        """End with an error that names the unknown option, without its value: that may be a key."""
        # argparse would show all of it, --api-kye=SECRET too, in logs that others read.
        options = [word.partition("=")[0] for word in words if word.startswith("-")]
        nearest = closest(options[0], self._option_string_actions) if options else None
        hint = f" (did you mean {nearest}?)" if nearest else ""
        self.error(f"unrecognized arguments: {' '.join(options or words)}{hint}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


class _StoreOnce(argparse._StoreAction):
    """An option whose last value would silently win over the others is given once."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault("given", set())
        if self.dest in given:
            raise argparse.ArgumentError(self, "given twice")
        given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


class _Version(argparse.Action):
    """Looks for the version only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"revconn {revconn.__version__}")
        parser.exit()


def _look_before_the_command(word: str, parser: _Parser, commands: Iterable[_Parser]) -> None:
    """Name what argparse would pass over: it would miss a command, or take a value for one."""
    name = word.partition("=")[0]
    if name in parser._option_string_actions:
        return
    if any(name in command._option_string_actions for command in commands):
        parser.error(f"{name} goes after the command")
    parser.refuse_unknown([word])


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``revconn`` with ``argv`` (``sys.argv[1:]`` by default); the exit code.

    0: done. 1: it failed, in one line on stderr. 2: bad arguments, in one line on stderr.
    Raises :class:`SystemExit` where argparse ends the program: at ``--help`` and at arguments
    it does not understand.
    """
    parser = _Parser(prog="revconn", description="Serve gRPC from behind a firewall.")
    parser.add_argument("--version", action=_Version, nargs=0, help="say which version this is")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    words = sys.argv[1:] if argv is None else list(argv)
    # The one command that is named, or all of them where --help or an error lists them.
    for name in set(words[:1]).intersection(_COMMANDS) or _COMMANDS:
        importlib.import_module(f"{__name__}.{name}").add_parser(commands)
    if words and words[0].startswith("-"):
        _look_before_the_command(words[0], parser, commands.choices.values())
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        commands.choices[arguments.command].refuse_unknown(unknown)
    try:
        code: int = arguments.run(arguments)
    except ConfigurationError as error:
        print(f"revconn {arguments.command}: {error}", file=sys.stderr)
        return 2
    # A port that is taken, a file that cannot be read: one line, no traceback.
    except OSError as error:
        print(f"revconn {arguments.command}: {error}", file=sys.stderr)
        return 1
    return code
