"""What the pages about the gateway show and do not run: commands, a unit, an image, log lines."""

from __future__ import annotations

import argparse
import ast
import configparser
import inspect
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from revconn.cli import gateway as gateway_command
from revconn.cli.api_keys import KeySources
from revconn.gateway import Gateway, report
from revconn.gateway.limits import Limits
from tests.docs.markdown import read_blocks
from tests.docs.test_examples import ROOT
from tests.docs.test_words import rows
from tests.interop import test_h2spec as h2spec

HOWTO = ROOT / "docs" / "howto" / "run-the-gateway.md"
TOPIC = ROOT / "docs" / "topics" / "gateway.md"
REFERENCE = ROOT / "docs" / "reference" / "gateway.md"


def shown(language: str) -> str:
    """The one block in that language."""
    (block,) = [block.text for block in read_blocks(HOWTO) if block.language == language]
    return block


def parse(command: list[str]) -> argparse.Namespace:
    """The options of a ``revconn gateway …``, as the command understands them."""
    assert command[1] == "gateway", command
    parser = argparse.ArgumentParser(exit_on_error=False)
    gateway_command.add_parser(parser.add_subparsers())
    return parser.parse_args(command[1:])


def shown_commands() -> Iterator[list[str]]:
    for block in read_blocks(HOWTO):
        if block.language == "console":
            for line in block.text.replace("\\\n", " ").splitlines():
                if "revconn gateway" in line:
                    yield shlex.split(line.lstrip("$ "), comments=True)


def test_every_command_shown_is_understood() -> None:
    commands = list(shown_commands())
    assert len(commands) == 2
    for command in commands:
        parse(command)


def test_the_keys_shown_can_be_read(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(shown("text"), encoding="utf-8")
    read = KeySources(files=(str(keys),)).read()
    assert list(read.values()) == [("billing.*", "orders.Orders"), None]


class TestTheUnit:
    def read(self) -> configparser.ConfigParser:
        unit = configparser.ConfigParser(interpolation=None, delimiters="=")
        unit.optionxform = str
        unit.read_string(shown("ini").replace("\\\n", " "))
        return unit

    def test_starts_a_gateway_and_leaves_it_time_to_stop(self) -> None:
        service = self.read()["Service"]
        options = parse(shlex.split(service["ExecStart"]))
        assert float(service["TimeoutStopSec"]) > options.grace
        assert options.log_format == "json"

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
    def test_is_one_to_systemd(self, tmp_path: Path) -> None:
        unit = tmp_path / "revconn-gateway.service"
        there = shutil.which("true")
        unit.write_text(shown("ini").replace("/opt/revconn/bin/revconn", there), encoding="utf-8")
        verified = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True
        )
        assert [line for line in verified.stderr.splitlines() if unit.name in line] == []


def test_the_image_starts_a_gateway() -> None:
    instructions = dict(re.findall(r"^(ENTRYPOINT|CMD|RUN) (.+)$", shown("dockerfile"), re.M))
    command = json.loads(instructions["ENTRYPOINT"]) + json.loads(instructions["CMD"])
    assert parse(command).api_key_file == ["/run/secrets/keys"]
    assert "[gateway]" in instructions["RUN"]


def test_the_log_line_has_the_fields_of_one() -> None:
    line = json.loads(shown("json"))
    facts = {"event", "connection_id", "key", "services", "peer", "age", "reason"}
    assert set(line) == {"time", "level", "logger", "message"} | facts
    assert line["event"] in {cells[0].strip("`") for cells in rows(HOWTO, "event")}


def test_the_defaults_told_are_the_gateways() -> None:
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(Gateway).parameters.items()
    }
    found = re.findall(r"`(\w+)`\s+\(([\d,]+)( KiB)?", TOPIC.read_text(encoding="utf-8"))
    told = {
        name: int(number.replace(",", "")) << (10 if unit else 0) for name, number, unit in found
    }
    assert {"max_sockets", "max_streams", "max_metadata_bytes", "idle_timeout"} <= told.keys()
    assert told == {name: defaults[name] for name in told}


def test_as_much_of_h2spec_passes_as_is_told() -> None:
    assert f"It passes all {h2spec.TESTS} tests of [h2spec]" in TOPIC.read_text(encoding="utf-8")
    assert h2spec.EXCEPTIONS == {}


def test_every_event_of_the_log_is_listed() -> None:
    module = ast.parse(inspect.getsource(report))
    told = {
        str(node.args[0].value)
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("self._note", "self._fields")
        and isinstance(node.args[0], ast.Constant)
    }
    listed = {cells[0].strip("`") for cells in rows(HOWTO, "event")}
    assert listed == told | {"shared"}


def test_every_counter_is_listed() -> None:
    listed = {cells[0].strip("`") for cells in rows(REFERENCE, "counter")}
    counted = set(Gateway().stats())
    limits = {f"refused_{name}" for name in vars(Limits())}
    assert listed == counted - limits | {"refused_LIMIT"}
    assert limits <= counted
