"""A gateway that listens on a Unix socket, for those on the same machine."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import grpc
import pytest

from revconn import Connector
from revconn.gateway import Gateway
from tests.support.http2_caller import Http2Caller

SAY = "/echo.Echo/Say"
TIMEOUT = 60.0


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the socket is to be; short enough for one, wherever the tests' files are."""
    monkeypatch.chdir(tmp_path)
    return Path("gateway.sock")


@pytest.mark.parametrize("write", ["unix:{}", "unix://{}"], ids=["path", "absolute"])
def test_connectors_and_callers_meet_there(run_gateway, tmp_path, path, write) -> None:
    address = write.format(tmp_path / path if "//" in write else path)
    gateway = run_gateway(address=address)
    assert gateway.address.startswith("unix:")
    connector = Connector(gateway.address, api_key="key")
    connector.add_method(SAY, lambda request: request.payload)
    with connector, grpc.insecure_channel(gateway.address) as channel:
        connector.wait_ready(TIMEOUT)
        assert channel.unary_unary(SAY)(b"\x0ahi", timeout=TIMEOUT) == b"\x0ahi"


def test_the_socket_is_there_as_long_as_the_gateway_is(run_gateway, path) -> None:
    gateway = run_gateway(address=f"unix:{path}")
    assert stat.S_ISSOCK(path.stat().st_mode)
    gateway.stop()
    assert not path.exists()
    gateway.start()
    assert stat.S_ISSOCK(path.stat().st_mode)


def test_a_socket_that_nobody_listens_on_any_more_is_replaced(run_gateway, path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    gateway = run_gateway(address=f"unix:{path}")
    with Http2Caller(gateway.address) as caller:
        caller.call("/no.Body/Home")
        assert caller.hears_answer().status == "14"


def test_a_socket_that_another_listens_on_is_not_taken_away(run_gateway, path) -> None:
    gateway = run_gateway(address=f"unix:{path}")
    with pytest.raises(OSError, match="cannot listen on .*sock"):
        Gateway(f"unix:{path}", api_keys="key").start()
    with Http2Caller(gateway.address) as caller:
        caller.call("/no.Body/Home")
        assert caller.hears_answer().status == "14"


def test_a_file_that_is_no_socket_is_left_alone(path) -> None:
    path.write_text("mine")
    with pytest.raises(OSError, match="cannot listen on .*sock"):
        Gateway(f"unix:{path}", api_keys="key").start()
    assert path.read_text() == "mine"


def test_a_directory_that_is_not_there_is_an_error_that_says_so() -> None:
    with pytest.raises(OSError, match="cannot listen on .*sock"):
        Gateway("unix:/nowhere/at/all.sock", api_keys="key").start()


def test_no_key_is_needed_where_only_this_machine_can_come(run_gateway, path) -> None:
    gateway = run_gateway(address=f"unix:{path}", api_keys=None)
    connector = Connector(gateway.address, api_key="whatever", services=["a.A"])
    with connector:
        connector.wait_ready(TIMEOUT)
        (connection,) = gateway.connections()
    assert connection.services == ("a.A",)


def test_another_gateway_may_take_the_path_of_one_that_has_stopped(run_gateway, path) -> None:
    first = run_gateway(address=f"unix:{path}")
    first.stop()
    second = run_gateway(address=f"unix:{path}")
    first.stop()  # again: what is there now is not its own
    assert os.path.exists(path)
    assert second.address == f"unix:{path}"
