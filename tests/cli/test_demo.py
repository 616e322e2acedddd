"""``revconn demo``: the whole of it in real processes, and what it says when something fails."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from revconn.cli import main
from revconn.cli.demo import processes, story
from revconn.cli.demo.processes import Child
from revconn.runtime.threads import Mailbox
from tests.support.commands import TIMEOUT, Command, run_command

ID = r"[0-9a-f]{8}-[0-9a-f-]{27}"


# What it shows


def test_it_shows_calls_errors_and_a_gateway_that_dies_and_comes_back(tmp_path: Path) -> None:
    result = run_command("demo", "--requests", "20", "--payload", "100000", cwd=tmp_path)
    shown = result.stdout
    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in shown
    assert "\r" not in shown
    first = re.search(f"registered, with the id ({ID})$", shown, re.MULTILINE)
    second = re.search(f"back after .* the new id is ({ID})$", shown, re.MULTILINE)
    assert first is not None
    assert second is not None
    assert first[1] != second[1]
    assert f"gateway   │ connection {first[1]} from" in shown
    assert f"gateway   │ connection {second[1]} from" in shown
    assert f"as {first[1]}\n" in shown
    assert f"again as {second[1]}: back after" in shown
    assert re.search(r"✓ heartbeats reach the gateway, \d\.\d s apart  ♥ ♥ ♥", shown)
    assert shown.count('Hello(name="world")  ──▶  "Hello, world!"') == 2
    assert shown.count("✓ 20 calls, all answered: p50 ") == 2
    assert 'Hello(name="")  ──▶  INVALID_ARGUMENT: the name is empty: greet whom?' in shown
    assert "──▶  UNIMPLEMENTED: unknown method /demo.Greeter/Goodbye" in shown
    assert "connector │ lost the connection" in shown
    assert re.search("calls  …?×+●+$", shown, re.MULTILINE)
    assert "connector │ SIGTERM: finishing what was accepted, then leaving" in shown
    assert "calls        40 made, 40 answered; p50 " in shown
    assert "errors       2 provoked, 2 returned with their exact status" in shown
    assert re.search("outage       answered again .* s after the kill; .* calls failed", shown)
    assert "✓ all of it worked, in " in shown


def test_on_a_terminal_it_is_live_and_coloured_and_without_a_restart_the_gateway_lives(
    tmp_path: Path,
) -> None:
    settings_that_do_not_count = {"REVCONN_MAX_WORKERS": "many", "REVCONN_APIKEYS": "many"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-I", "-m", "revconn", "demo", "--requests", "100", "--no-restart"],
        cwd=tmp_path,
        env={**os.environ, **settings_that_do_not_count, "TERM": "xterm", "NO_COLOR": ""},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = read_terminal(ours)
        assert process.wait(TIMEOUT) == 0
    assert "\r\x1b[K     heartbeats\x1b[31m ♥\x1b[0m" in shown
    assert re.search(r"█.*░.* \d+/100  p50 .* ms, p99 .* ms", shown)
    assert "\x1b[32m✓\x1b[0m all of it worked" in shown
    assert "100 made, 100 answered" in shown
    assert "kill -KILL" not in shown
    assert "outage" not in shown


def read_terminal(descriptor: int) -> str:
    """Everything until the other side is closed, which Linux reports as an error."""
    read = b""
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:
            chunk = b""
        if not chunk:
            os.close(descriptor)
            return read.decode()
        read += chunk


# What it says when something fails


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a demo that ends with exit code 1."""
    assert main(["demo", "--requests", "2", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("revconn demo: ")
    return line


@pytest.fixture
def taken_port() -> Any:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], taken_port: int
) -> None:
    monkeypatch.setattr(story, "free_port", lambda: taken_port)
    reason = fail(capsys)
    assert "the gateway process ended with exit code 1" in reason
    assert f"cannot listen on 127.0.0.1:{taken_port}" in reason


def test_a_connector_that_is_refused_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(name: str, arguments: Sequence[str], env: dict[str, str], *rest: Any) -> Child:
        return Child(name, arguments, {**env, "REVCONN_API_KEY": "wrong"}, *rest)

    monkeypatch.setattr(story, "Child", start)
    reason = fail(capsys)
    assert "the connector process ended with exit code 1" in reason
    assert "UNAUTHENTICATED" in reason


STUBBORN = """\
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("here", flush=True)
time.sleep(600)
"""


def test_a_process_that_does_not_leave_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "_END_TIMEOUT", 0.1)
    said: Mailbox[processes.Said] = Mailbox()
    child = Child("connector", ["serve", "stubborn:connector"], {}, said)
    assert said.get(timeout=TIMEOUT).line == "here"
    assert child.end() == -signal.SIGKILL


# Interrupted: every process ends


def children(shown: str) -> list[int]:
    """The processes that it says it has started."""
    return [int(pid) for pid in re.findall(r"# pid (\d+)$", shown, re.MULTILINE)]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_signal_ends_the_demo_and_its_processes(tmp_path: Path) -> None:
    with Command("demo", "--requests", "1000000", cwd=tmp_path) as demo:
        demo.wait_for_line('Hello(name="world")')
        assert all(map(is_alive, children(demo.output)))
        demo.signal(signal.SIGTERM)
        assert demo.wait() == 143
        assert demo.lines[-1] == "revconn demo: interrupted by SIGTERM"
        assert "Traceback" not in demo.output
        assert len(children(demo.output)) == 2
        assert not any(map(is_alive, children(demo.output)))


def test_a_reader_that_goes_away_ends_the_demo_and_its_processes(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-m", "revconn", "demo", "--requests", "1000000"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        shown = ""
        while "registered, " not in shown:
            shown += process.stdout.readline().decode()
        process.stdout.close()
        assert process.wait(TIMEOUT) == 1
        assert process.stderr.read() == b""
    assert len(children(shown)) == 2
    assert not any(map(is_alive, children(shown)))


# Bad arguments


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--requests", "0"], "'0' is not a whole number, 1 or more"),
        (["--requests", "many"], "'many' is not a whole number, 1 or more"),
        (["--payload", "-1"], "'-1' is not a whole number, 0 to 4,000,000"),
        (["--payload", "5000000"], "'5000000' is not a whole number, 0 to 4,000,000"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", *arguments])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("revconn")
    assert told in line
