"""``revconn gateway``: a gateway until a signal comes."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from revconn._proto.registry_pb2 import RegisterRequest, RegisterResponse
from revconn.cli import gateway as gateway_command
from revconn.cli import main
from revconn.gateway import Gateway
from tests.support.certificates import Authority
from tests.support.commands import Command, run_command
from tests.support.scripted_connector import ScriptedConnector
from tests.support.waiting import eventually

LISTENING = "gateway listening on "


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def run(resources: ExitStack, tmp_path: Path) -> Callable[..., Command]:
    """Run the command on a free port; other options and variables as given."""

    def run(*options: str, **variables: str) -> Command:
        arguments = ("gateway", "--address", "127.0.0.1:0", *options)
        return resources.enter_context(Command(*arguments, cwd=tmp_path, env=variables))

    return run


@pytest.fixture
def connect(resources: ExitStack) -> Callable[..., ScriptedConnector]:
    def connect(command: Command, key: str, *services: str) -> ScriptedConnector:
        connector = resources.enter_context(ScriptedConnector(address(command)))
        connector.register(*services, api_key=key)
        return connector

    return connect


def address(command: Command) -> str:
    return re.search(r"127[\d.]+:\d+", command.wait_for_line(LISTENING))[0]


def test_it_serves_until_a_signal_and_ends_in_peace(run, connect, resources) -> None:
    command = run("--api-key", "secret")
    connector = connect(command, "secret", "echo.Echo")
    channel = resources.enter_context(grpc.insecure_channel(address(command)))
    pending = channel.unary_unary("/echo.Echo/Say").future(b"\x0a", timeout=60)
    request = connector.receive_request()
    command.signal(signal.SIGINT)
    command.wait_for_line("SIGINT: finishing what was accepted")
    connector.respond(request.request_id, b"\x0b")
    assert pending.result() == b"\x0b"
    assert connector.ended() == (grpc.StatusCode.UNAVAILABLE, "the gateway is stopping")
    assert command.wait() == 0
    assert "Traceback" not in command.output
    assert "secret" not in command.output


def test_a_second_signal_ends_it_at_once(run, connect, resources) -> None:
    command = run("--api-key", "secret")
    connector = connect(command, "secret", "echo.Echo")
    channel = resources.enter_context(grpc.insecure_channel(address(command)))
    call = channel.unary_unary("/echo.Echo/Say")
    held = call.future(b"", timeout=60)
    connector.receive_request()
    command.signal(signal.SIGTERM)
    command.wait_for_line("SIGTERM: finishing what was accepted")

    def takes_nothing_new() -> bool:
        """The first signal is being obeyed."""
        return call.future(b"", timeout=5).code() is grpc.StatusCode.UNAVAILABLE

    eventually(takes_nothing_new)
    command.signal(signal.SIGTERM)  # as a process group does it: the same again
    command.signal(signal.SIGINT)
    assert command.wait() == 128 + signal.SIGINT
    assert held.code() is grpc.StatusCode.UNAVAILABLE


def test_its_limits_are_those_given(run, connect, resources) -> None:
    command = run("--api-key", "key", "--heartbeat-timeout", "0.5", "--request-timeout", "0.1")
    connector = connect(command, "key", "echo.Echo")
    channel = resources.enter_context(grpc.insecure_channel(address(command)))
    with pytest.raises(grpc.RpcError, match="did not answer in time"):
        channel.unary_unary("/echo.Echo/Say")(b"", timeout=60)
    assert connector.ended() == (grpc.StatusCode.UNAVAILABLE, "no heartbeat for 0.5 seconds")


@pytest.mark.parametrize(("options", "is_dialled"), [((), False), (("--dial-private",), True)])
def test_loopback_addresses_are_dialled_when_told_so(run, resources, options, is_dialled) -> None:
    command = run("--api-key", "key", *options)
    channel = resources.enter_context(grpc.insecure_channel(address(command)))
    register = channel.unary_unary(
        "/registry.RegistryService/Register",
        RegisterRequest.SerializeToString,
        RegisterResponse.FromString,
    )
    request = RegisterRequest(api_key="key", address="localhost:1", services=["echo.Echo"])
    registered = register(request, timeout=60)
    assert registered.success
    assert ("not dialled" in registered.message) is not is_dialled


def test_the_log_says_no_more_than_asked_for(run, connect) -> None:
    command = run("--api-key", "key", "--log-level", "error")
    connect(command, "key", "echo.Echo")
    command.signal(signal.SIGTERM)
    assert command.wait() == 0
    assert len(command.lines) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--address", "0.0.0.0:0"), "--api-key: none given, and 0.0.0.0:0 can be reached"),
        (("--api-key", ""), "--api-key: is empty"),
        (("--api-key-file", "missing"), "--api-key-file: cannot be read"),
        (("--api-key-file", "empty"), "--api-key-file: holds no key"),
        (("--api-key-file", "binary"), "--api-key-file: cannot be read"),
        (("--api-key", "k", "--address", "nowhere"), "--address: not an address to listen on"),
        (("--api-key", "k", "--request-timeout", "-1"), "--request-timeout: not a duration"),
        (("--api-key", "k", "--max-pending", "0"), "--max-pending: not a count"),
        (("--api-key", "k", "--grace", "-1"), "--grace: not a duration"),
        (("--tls-cert", "missing"), "--tls-key: is missing; TLS needs certificate and key"),
        (("--tls-client-ca", "missing"), "--tls-cert: is missing; TLS needs certificate and key"),
        (("--tls-cert", "missing", "--tls-key", "missing"), "--tls-cert: cannot be read: No such"),
        (("--api-key", "k", "--heartbeat-timeout", "soon"), "invalid float value: 'soon'"),
        (("--api-key", "k", "--log-level", "loud"), "invalid choice: 'loud'"),
        (("--unknown",), "unrecognized arguments: --unknown; see"),
        (("--adress", "a:1"), "unrecognized arguments: --adress (did you mean --address?); see"),
        (("--max-conn", "5"), "unrecognized arguments: --max-conn"),
        (("--address", ""), "--address: not an address to listen on"),
        (("--address", "a:1", "--address", "b:2"), "argument --address: given twice"),
        (("--api-key", "k", "--api-key", "k"), "--api-key: gives a key again"),
        (("--api-key", " "), "--api-key: is empty"),
        (("--api-key", "k", "--http", "=web.Shop"), "--http: has no host (got '=web.Shop')"),
        (("--tls-cert", "", "--tls-key", ""), "--tls-cert: cannot be read: No such"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(
    arguments, said, capsys, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REVCONN_API_KEYS", raising=False)
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert exit_code("gateway", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("revconn")
    assert said in captured.err


@pytest.mark.parametrize("blank", ["", " ", ","])
def test_blank_keys_in_the_environment_do_not_open_the_gateway(blank, capsys, monkeypatch) -> None:
    monkeypatch.setenv("REVCONN_API_KEYS", blank)
    assert exit_code("gateway", "--address", "127.0.0.1:0") == 2
    assert "REVCONN_API_KEYS: is set but blank" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["REVCONN_API_KEYZ", "REVCONN_APIKEYS", "REVCONN_KEYS"])
def test_keys_under_a_misspelt_name_do_not_open_the_gateway(name, capsys, monkeypatch) -> None:
    monkeypatch.setenv("REVCONN_API_KEY", "a connector's")
    monkeypatch.setenv("REVCONN_API_KEY_FILE", "a connector's")
    monkeypatch.setenv(name, "SECRET")
    assert exit_code("gateway", "--address", "127.0.0.1:0") == 2
    problem = f"{name}: is not a variable of the gateway; did you mean REVCONN_API_KEYS?"
    assert capsys.readouterr().err == f"revconn gateway: {problem}\n"


def test_a_connectors_key_is_not_taken_for_a_gateways(run, connect) -> None:
    command = run(REVCONN_TARGET="gateway:443", REVCONN_API_KEY="SECRET")
    command.wait_for_line(
        "WARNING revconn.cli.gateway: no API keys (REVCONN_API_KEY is for a connector): whoever"
    )
    connect(command, "any", "echo.Echo")
    assert "SECRET" not in command.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--versoin"], "unrecognized arguments: --versoin (did you mean --version?)"),
        (["--shoe-size=5", "gateway"], "unrecognized arguments: --shoe-size"),
        (["--log-level", "debug", "gateway"], "--log-level goes after the command"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_what_is_wrong_before_the_command_is_named(words, said, capsys) -> None:
    assert exit_code(*words) == 2
    assert capsys.readouterr().err == f"revconn: {said}; see revconn --help\n"


def test_an_option_that_there_is_not_does_not_show_its_value(capsys) -> None:
    assert exit_code("gateway", "--api-kye=SECRET", "--apikey", "SECRET") == 2
    said = capsys.readouterr().err
    assert "unrecognized arguments: --api-kye --apikey (did you mean --api-key?)" in said
    assert "SECRET" not in said


def test_a_port_that_is_taken_is_one_line_and_exit_code_1(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run_command("gateway", "--address", address, "--api-key", "k", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()  # grpc would have had something to say too
    assert line.startswith(f"revconn gateway: cannot listen on {address}")


# Keys


def test_keys_may_stand_in_files(run, connect, tmp_path) -> None:
    text = "# all of ours\n\none\n  two  echo.* a.A # of the second team\n"
    (tmp_path / "keys").write_text(text, encoding="utf-8")
    (tmp_path / "more").write_text("three", encoding="utf-8")
    command = run("--api-key-file", "keys", "--api-key-file", "more")
    connect(command, "one", "any.Service")
    connect(command, "two", "echo.Echo", "a.A")
    connect(command, "three")
    with pytest.raises(EOFError, match=r"PERMISSION_DENIED: .* may not register 'a\.B'"):
        connect(command, "two", "a.B")
    command.signal(signal.SIGTERM)
    assert command.wait() == 0


def test_keys_may_come_from_the_environment(run, connect) -> None:
    command = run(REVCONN_API_KEYS="one, two echo.*,")
    connect(command, "one", "any.Service")
    with pytest.raises(EOFError, match="PERMISSION_DENIED"):
        connect(command, "two", "any.Service")


def test_several_keys_that_are_given_replace_those_of_the_environment(run, connect) -> None:
    command = run("--api-key", "one", "--api-key", "two", REVCONN_API_KEYS="three")
    command.wait_for_line("WARNING revconn.cli.gateway: REVCONN_API_KEYS is not used")
    connect(command, "one")
    connect(command, "two")
    with pytest.raises(EOFError, match="Invalid token"):
        connect(command, "three")


def test_sighup_reads_the_files_again_and_drops_nobody_whose_key_stays(
    run, connect, tmp_path
) -> None:
    (tmp_path / "keys").write_text("old\nstays", encoding="utf-8")
    command = run("--api-key-file", "keys")
    dropped, kept = connect(command, "old", "a.A"), connect(command, "stays", "b.B")
    (tmp_path / "keys").write_text("new\nstays echo.*", encoding="utf-8")
    command.signal(signal.SIGHUP)
    assert dropped.ended() == (grpc.StatusCode.UNAUTHENTICATED, "the API key was withdrawn")
    command.wait_for_line("SIGHUP: read the API keys again: 2 of them")
    connect(command, "new", "a.A")
    with pytest.raises(EOFError, match="Invalid token"):
        connect(command, "old")
    command.signal(signal.SIGTERM)
    assert kept.ended() == (grpc.StatusCode.UNAVAILABLE, "the gateway is stopping")
    assert command.wait() == 0


def test_a_broken_file_at_sighup_leaves_the_old_keys_in_force(run, connect, tmp_path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("old", encoding="utf-8")
    command = run("--api-key-file", "keys")
    kept = connect(command, "old", "a.A")
    told = "ERROR revconn.cli.gateway: SIGHUP: the API keys stay as they were: --api"
    for count, broken in enumerate(("", "new\n\0", "old a..b", None), 1):
        keys.unlink() if broken is None else keys.write_text(broken, encoding="utf-8")
        command.signal(signal.SIGHUP)
        eventually(lambda: command.output.count(told) == count)  # noqa: B023 - it ends here
        connect(command, "old")
        kept.heartbeat()
    command.signal(signal.SIGTERM)
    assert kept.ended() == (grpc.StatusCode.UNAVAILABLE, "the gateway is stopping")


# TLS and logs


def test_it_speaks_tls(run, resources, tmp_path) -> None:
    authority = Authority()
    cert, key = authority.issue_files(tmp_path)
    clients = authority.write(tmp_path / "clients.pem")
    command = run("--tls-cert", cert.name, "--tls-key", key.name, "--tls-client-ca", clients.name)
    command.wait_for_line("WARNING revconn.cli.gateway: no API keys: whoever can connect to")
    credentials = grpc.ssl_channel_credentials(authority.pem, *authority.issue("client"))
    channel = resources.enter_context(grpc.secure_channel(address(command), credentials))
    with pytest.raises(grpc.RpcError, match=r"no connector serves a\.A"):
        channel.unary_unary("/a.A/B")(b"", timeout=60)


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_files_with_keys_that_others_may_read_are_warned_of(run, tmp_path) -> None:
    cert, key = Authority().issue_files(tmp_path)
    keys = tmp_path / "keys"
    keys.write_text("secret", encoding="utf-8")
    for path in (key, keys):
        path.chmod(0o644)
    command = run("--api-key-file", str(keys), "--tls-cert", str(cert), "--tls-key", str(key))
    address(command)
    for path in (key, keys):
        said = f"other users of this machine may read {path} (mode 0644): chmod 600 it"
        assert command.output.count(said) == 1


def test_the_log_may_be_json(run, connect) -> None:
    command = run("--log-format", "json", "--log-level", "debug", "--api-key", "key")
    connect(command, "key", "echo.Echo")
    command.signal(signal.SIGTERM)
    assert command.wait() == 0
    lines = [json.loads(line) for line in command.lines]
    (listening,) = [line for line in lines if line.get("event") == "listening"]
    assert listening["message"] == f"{LISTENING}{address(command)}"
    assert listening["address"] == address(command)
    assert {"time", "level", "logger"} < set(listening)
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    events = [line for line in lines if "connection_id" in line]
    assert [event["event"] for event in events] == ["connected", "ended"]
    assert {(event["key"], *event["services"]) for event in events} == {(1, "echo.Echo")}
    assert events[1]["reason"] == "the gateway is stopping"


def exit_code(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


def test_every_limit_of_the_gateway_has_an_option_with_its_default() -> None:
    parser = argparse.ArgumentParser()
    gateway_command.add_parser(parser.add_subparsers())
    arguments = vars(parser.parse_args(["gateway"]))
    for name, parameter in inspect.signature(Gateway).parameters.items():
        if name not in ("address", "api_keys", "tls"):
            assert arguments[name] == parameter.default, name
