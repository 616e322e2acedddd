"""Giving a connector its handlers: what is refused, at once, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from revconn import ConfigurationError, Connector


@pytest.fixture
def connector() -> Connector:
    return Connector("127.0.0.1:1", api_key="key")


def handler(request: object) -> None:
    """Answer with nothing."""


@pytest.mark.parametrize(
    "path",
    [
        "",
        "Say",
        "/echo.Echo",
        "/echo.Echo/",
        "//echo.Echo/Say",
        "/a.B/M\n",
        "/a.B/M M",
        3,
        b"/a.B/M",
    ],
)
def test_a_path_that_names_no_method_is_refused(connector: Connector, path: Any) -> None:
    with pytest.raises(ConfigurationError, match="path: not a method path.*write /package"):
        connector.add_method(path, handler)


@pytest.mark.parametrize("name", ["", "echo Echo", "/echo.Echo", "1.Echo", None])
def test_a_service_that_is_no_name_is_refused(connector: Connector, name: Any) -> None:
    with pytest.raises(ConfigurationError, match="service: .*write package.Service"):
        connector.add_service(name, handler)


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("again", ["/echo.Echo/Say", "echo.Echo/Say"])
def test_a_second_handler_of_a_method_is_refused(
    connector: Connector, inline: bool, again: str
) -> None:
    connector.add_method("/echo.Echo/Say", handler, inline=not inline)
    with pytest.raises(ConfigurationError, match="there is one already"):
        connector.add_method(again, handler, inline=inline)


def test_a_second_handler_of_a_service_is_refused(connector: Connector) -> None:
    connector.add_service("echo.Echo", handler)
    with pytest.raises(ConfigurationError, match="there is one already"):
        connector.add_service("echo.Echo", handler)


def test_a_handler_that_cannot_be_called_is_refused(connector: Connector) -> None:
    not_callable: Any = b"an answer"
    with pytest.raises(ConfigurationError, match="handler: not callable"):
        connector.add_method("/echo.Echo/Say", not_callable)


@pytest.mark.parametrize("flag", ["no", 1, None])
def test_a_switch_is_true_or_false(connector: Connector, flag: Any) -> None:
    with pytest.raises(ConfigurationError, match="inline: neither True nor False"):
        connector.add_method("/echo.Echo/Say", handler, inline=flag)


@pytest.mark.parametrize("flag", ["no", 1])
def test_whether_to_block_is_true_or_false(connector: Connector, flag: Any) -> None:
    with pytest.raises(ConfigurationError, match="block: neither True nor False"):
        connector.start(block=flag)
    with pytest.raises(ConfigurationError, match="start_blocks: neither True nor False"):
        Connector("127.0.0.1:1", api_key="key", start_blocks=flag)


def test_a_callback_that_cannot_be_called_is_refused(connector: Connector) -> None:
    with pytest.raises(ConfigurationError, match="callback: not callable"):
        connector.on_state_change(None)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "soon"])
def test_a_wait_for_no_length_of_time_is_refused(connector: Connector, timeout: Any) -> None:
    for wait in (connector.wait, connector.wait_ready):
        with pytest.raises(ConfigurationError, match="timeout: not a duration"):
            wait(timeout)


def test_a_proxy_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="not an HTTP proxy") as caught:
        Connector("gateway.example.com:443", api_key="key", proxy="ftp://user:secret@proxy:21")
    assert "secret" not in str(caught.value)
