from __future__ import annotations

import pathlib
import traceback
from typing import Any

import pytest

from revconn.config import TLS
from revconn.connector import Connector
from revconn.environment import KeyFile, environment_options
from revconn.exceptions import ConfigurationError

PEM = "-----BEGIN CERTIFICATE-----\n"


def options(**variables: str) -> dict[str, Any]:
    """The options that variables with the prefix ``R_`` stand for."""
    return environment_options("R_", {f"R_{name}": value for name, value in variables.items()})


def options_of(**variables: str) -> dict[str, Any]:
    """As above, with what is required given."""
    return options(**{"TARGET": "gateway:443", "API_KEY": "key", **variables})


def refusal(**variables: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        options(**variables)
    return caught.value


def test_a_target_and_a_key_are_enough() -> None:
    assert options(TARGET="gateway:443", API_KEY="key") == {
        "targets": ("gateway:443",),
        "services": (),
        "api_key": "key",
        "tls": None,
    }


def test_targets_and_services_are_separated_by_commas() -> None:
    made = options_of(TARGET="one:443, two:443 ,", SERVICES=" echo.Echo,chat.Chat")
    assert made["targets"] == ("one:443", "two:443")
    assert made["services"] == ("echo.Echo", "chat.Chat")


@pytest.mark.parametrize("switch", ["on", "ON", "true", "1", " on "])
def test_tls_is_switched_on(switch: str) -> None:
    assert options_of(TLS=switch)["tls"] is True


@pytest.mark.parametrize("switch", ["off", "Off", "false", "0"])
def test_tls_is_switched_off(switch: str) -> None:
    assert options_of(TLS=switch)["tls"] is False


@pytest.mark.parametrize("switch", ["on", ""])
def test_tls_settings_are_gathered(switch: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "all.pem"
    file.write_text(PEM)
    path = str(file)
    made = options_of(
        TLS=switch, TLS_CA=path, TLS_CERT=path, TLS_KEY=path, TLS_SERVER_NAME="gateway"
    )
    assert made["tls"] == TLS(ca=path, cert=path, key=path, server_name="gateway")


def test_an_empty_variable_counts_as_not_set() -> None:
    made = options_of(SERVICES="", TLS="", TLS_CA="", TLS_SERVER_NAME="", API_KEY_FILE="")
    assert made == options_of()


# What is missing or malformed


@pytest.mark.parametrize("empty", [{}, {"TARGET": ""}])
def test_a_missing_target_is_named(empty: dict[str, str]) -> None:
    error = refusal(API_KEY="key", **empty)
    assert str(error) == "R_TARGET: is not set; set it, such as gateway.example.com:443"


def test_a_missing_key_is_named_and_so_is_the_other_way_to_give_it() -> None:
    error = refusal(TARGET="gateway:443")
    assert str(error).startswith("R_API_KEY: is not set; set it, or R_API_KEY_FILE to the path")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TARGET", "gateway"),
        ("TARGET", "https://gateway"),
        ("TARGET", "gateway:443,gateway:443"),
        ("TARGET", " , "),
        ("SERVICES", "echo.Echo,not a name"),
        ("API_KEY", "key\n"),
        ("API_KEY", "key\udcff"),
        ("API_KEY_FILE", "/nowhere/key"),
        ("API_KEY_FILE", "a\x00b"),
        ("API_KEY_FILE", "."),
        ("TLS", "maybe"),
        ("TLS_CA", "/nowhere/ca.pem"),
        ("TLS_CERT", __file__),
        ("TLS_KEY", __file__),
    ],
)
def test_a_malformed_variable_is_named(name: str, value: str) -> None:
    error = refusal(**{"TARGET": "gateway:443", "API_KEY": "key", name: value})
    other_half = {"TLS_CERT": "R_TLS_KEY", "TLS_KEY": "R_TLS_CERT"}
    assert error.name == other_half.get(name, f"R_{name}")
    assert str(error).startswith(error.name)
    assert error.remedy


def test_tls_settings_contradict_tls_off() -> None:
    error = refusal(TARGET="gateway:443", API_KEY="key", TLS="off", TLS_SERVER_NAME="gateway")
    assert str(error).startswith("R_TLS: is off while TLS settings are given (got 'off')")


def test_a_refused_key_is_not_shown() -> None:
    error = refusal(TARGET="gateway:443", API_KEY="SECRET\n")
    told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "SECRET\n" not in told
    assert error.value is None


# Key files


def test_a_key_file_is_read_again_each_time(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "key"
    file.write_text("first\n")
    api_key = options(TARGET="gateway:443", API_KEY_FILE=str(file))["api_key"]
    assert api_key() == "first"
    file.write_text("  second\r\n")
    assert api_key() == "second"


def test_a_key_file_stands_before_a_key(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "key"
    file.write_text("from the file")
    assert options_of(API_KEY_FILE=str(file))["api_key"]() == "from the file"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"SECRET\nSECRET\n", "holds a line break"),
        (b"SECRET\xff\n", "cannot be printed"),
        ("\ufeffSECRET".encode(), "cannot be printed"),
        ("SECRET".encode("utf-16"), "cannot be printed"),
    ],
    ids=repr,
)
def test_a_file_that_holds_no_key_is_refused_and_its_content_not_shown(
    tmp_path: pathlib.Path, content: bytes, problem: str
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        KeyFile("R_API_KEY_FILE", str(file))()
    error = caught.value
    assert error.name == "R_API_KEY_FILE"
    assert error.__context__ is None
    assert "SECRET" not in repr(error) + repr(vars(error))


def test_a_key_file_that_is_gone_is_refused_by_its_path(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "key")
    with pytest.raises(
        ConfigurationError, match="cannot be read: No such file or directory"
    ) as caught:
        KeyFile("R_API_KEY_FILE", path)()
    assert caught.value.value == path


# The connector itself


def test_a_connector_is_made_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TARGET": "a:1,b:2", "API_KEY": "key", "SERVICES": "echo.Echo"}.items():
        monkeypatch.setenv(f"REVCONN_{name}", value)
    connector = Connector.from_env()
    assert [link.target for link in connector.links] == ["a:1", "b:2"]


def test_another_prefix_keeps_two_connectors_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_TARGET", "c:3")
    monkeypatch.setenv("OTHER_API_KEY", "key")
    assert [link.target for link in Connector.from_env("OTHER_").links] == ["c:3"]
