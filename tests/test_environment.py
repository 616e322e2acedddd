from __future__ import annotations

import inspect
import os
import pathlib
import traceback
from dataclasses import fields
from typing import Any

import pytest

from revconn.connector import Connector
from revconn.exceptions import ConfigurationError
from revconn.settings.environment import VARIABLES, KeyFile, environment_options
from revconn.settings.options import TLS, Backoff

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
        "api_key": "key",
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


@pytest.mark.parametrize("switch", [{"TLS": "on"}, {}])
def test_tls_settings_are_gathered(switch: dict[str, str], tmp_path: pathlib.Path) -> None:
    file = tmp_path / "all.pem"
    file.write_text(PEM)
    path = str(file)
    made = options_of(**switch, TLS_CA=path, TLS_CERT=path, TLS_KEY=path, TLS_SERVER_NAME="gateway")
    assert made["tls"] == TLS(ca=path, cert=path, key=path, server_name="gateway")


def test_every_option_that_can_be_written_down_has_a_variable() -> None:
    arguments = set(inspect.signature(Connector).parameters)
    parts = {argument.partition("(")[0].lower() for argument in VARIABLES}
    assert arguments - parts == {"executor", "interceptors", "is_fatal", "start_blocks"}
    assert {f"Backoff({field.name}=)" for field in fields(Backoff)} <= set(VARIABLES)
    assert {f"TLS({field.name}=)" for field in fields(TLS)} - set(VARIABLES) == {
        "TLS(ssl_context=)"
    }


def test_numbers_are_read_as_what_they_are() -> None:
    made = options_of(
        MAX_WORKERS=" 4 ",
        DRAIN_TIMEOUT="2.5",
        CONNECT_TIMEOUT="7",
        LIVENESS_TIMEOUT="none",
        PROBE_INTERVAL="None",
        BACKOFF_INITIAL="0.5",
        BACKOFF_MAX_ATTEMPTS="3",
        TRANSPORT="grpcio",
        PROXY="http://proxy:3128",
    )
    made["backoff"] = (made["backoff"].initial, made["backoff"].max_attempts)
    assert made == {
        **options_of(),
        "max_workers": 4,
        "drain_timeout": 2.5,
        "connect_timeout": 7.0,
        "liveness_timeout": None,
        "probe_interval": None,
        "backoff": (0.5, 3),
        "transport": "grpcio",
        "proxy": "http://proxy:3128",
    }
    assert isinstance(made["max_workers"], int)
    assert isinstance(made["connect_timeout"], float)


@pytest.mark.parametrize(("switch", "chosen"), [("on", True), ("off", False)])
def test_a_link_to_every_address_is_switched_on_or_off(switch: str, chosen: bool) -> None:
    assert options_of(EVERY_ADDRESS=switch)["every_address"] is chosen
    assert "every_address" not in options_of()


def test_a_proxy_can_be_switched_off() -> None:
    assert options_of(PROXY="off")["proxy"] is False


def test_what_kubernetes_sets_for_a_service_of_that_name_is_left_alone() -> None:
    of_a_service = dict.fromkeys(
        (
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_GRPC",
            "PORT",
            "PORT_443_TCP",
            "PORT_443_TCP_ADDR",
            "GATEWAY_SERVICE_HOST",
            "GATEWAY_PORT_50051_TCP_PROTO",
        ),
        "tcp://10.0.0.1:443",
    )
    environ = {f"REVCONN_{name}": value for name, value in of_a_service.items()}
    environ |= {"REVCONN_TARGET": "gateway:443", "REVCONN_API_KEY": "key"}
    environ |= {"REVCONN_API_KEYS": "a gateway's", "PATH": "/bin"}
    assert environment_options("REVCONN_", environ) == options_of()


@pytest.mark.parametrize("name", ["PORT", "TARGET_PORT", "GATEWAY_PORT"])
def test_a_port_that_kubernetes_would_not_write_so_is_not_taken_for_its(name: str) -> None:
    environ = {"REVCONN_TARGET": "a:1", "REVCONN_API_KEY": "key", f"REVCONN_{name}": "50051"}
    with pytest.raises(ConfigurationError, match=f"^REVCONN_{name}: is no option"):
        environment_options("REVCONN_", environ)


# What is missing, blank, malformed or unknown


@pytest.mark.parametrize(
    ("name", "blank"),
    [
        *((name, "") for name in ("API_KEY_FILE", *VARIABLES.values())),
        *(("API_KEY", blank) for blank in (" ", "\t", "\n", ",", " , ")),
        # Python's str.strip() takes more for white space than a keyboard has.
        *((name, "\N{NO-BREAK SPACE}\f") for name in ("SERVICES", "TLS_CA", "TLS_SERVER_NAME")),
    ],
)
def test_a_variable_that_is_set_but_blank_is_refused(name: str, blank: str) -> None:
    error = refusal(**{"TARGET": "gateway:443", "API_KEY": "key", name: blank})
    assert str(error).startswith(f"R_{name}: is set but blank (got {blank!r}); unset it")


@pytest.mark.parametrize("prefix", ["", " ", None])
def test_a_blank_prefix_is_refused(prefix: Any) -> None:
    with pytest.raises(ConfigurationError, match="^prefix: is blank"):
        environment_options(prefix, {"TARGET": "gateway:443", "API_KEY": "key"})


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("TARGETS", "did you mean REVCONN_TARGET?"),
        ("MAX_WORKER", "did you mean REVCONN_MAX_WORKERS?"),
        ("max_workers", "did you mean REVCONN_MAX_WORKERS?"),
        ("TLS_CERTIFICATE", "did you mean REVCONN_TLS_CERT?"),
        ("SHOE_SIZE", "unset it"),
    ],
)
def test_a_name_that_is_no_options_is_refused_and_the_nearest_named(name: str, remedy: str) -> None:
    environ = {"REVCONN_TARGET": "a:1", "REVCONN_API_KEY": "key", f"REVCONN_{name}": "SECRET"}
    with pytest.raises(ConfigurationError) as caught:
        environment_options("REVCONN_", environ)
    assert str(caught.value) == f"REVCONN_{name}: is no option of a connector; {remedy}"


def test_under_a_prefix_of_ones_own_other_names_are_ones_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert options_of(DATABASE="x", API_URL="y", MAX_WORKER="z") == options_of()
    (record,) = caplog.records
    assert record.getMessage() == "R_MAX_WORKER is not used: did you mean R_MAX_WORKERS?"


def test_the_keys_of_a_gateway_are_told_from_the_key_of_a_connector() -> None:
    environ = {"REVCONN_TARGET": "gateway:443", "REVCONN_API_KEYS": "SECRET"}
    with pytest.raises(ConfigurationError) as caught:
        environment_options("REVCONN_", environ)
    said = "REVCONN_API_KEY: is not set (REVCONN_API_KEYS is for a gateway); set it"
    assert str(caught.value).startswith(said)
    assert "SECRET" not in str(caught.value)


def test_a_key_said_twice_is_refused() -> None:
    error = refusal(TARGET="gateway:443", API_KEY="SECRET", API_KEY_FILE=__file__)
    assert str(error) == "R_API_KEY: is set, and so is R_API_KEY_FILE; unset one of them"


def test_a_missing_target_is_named() -> None:
    error = refusal(API_KEY="key")
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
        ("TARGET", "gateway:443,Gateway.:443"),
        ("SERVICES", "echo.Echo,echo.Echo"),
        ("MAX_WORKERS", "many"),
        ("MAX_WORKERS", "4.0"),
        ("MAX_WORKERS", "1_000"),
        ("MAX_WORKERS", "none"),
        ("MAX_WORKERS", "9" * 5000),
        ("MAX_IN_FLIGHT", "٤"),
        ("DRAIN_TIMEOUT", "30s"),
        ("DRAIN_TIMEOUT", "nan"),
        ("DRAIN_TIMEOUT", "none"),
        ("DRAIN_TIMEOUT", "-1"),
        ("LIVENESS_TIMEOUT", "off"),
        ("BACKOFF_INITIAL", "0"),
        ("BACKOFF_MAXIMUM", "soon"),
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
    key = {} if name == "API_KEY_FILE" else {"API_KEY": "key"}
    error = refusal(**{"TARGET": "gateway:443", **key, name: value})
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


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_file_that_others_may_read_is_warned_of_once(
    mode: int, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "key"
    file.write_text("SECRET")
    file.chmod(mode)
    ask = options(TARGET="gateway:443", API_KEY_FILE=str(file))["api_key"]
    assert ask() == ask() == "SECRET"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"R_API_KEY_FILE: other users of this machine may read {file} (mode {mode:04o}):"
        " chmod 600 it"
    )


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
@pytest.mark.parametrize(("mode", "owner"), [(0o600, os.geteuid()), (0o640, os.geteuid() + 1)])
def test_a_key_file_that_only_its_reader_can_read_is_not_warned_of(
    mode: int,
    owner: int,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "key"
    file.write_text("SECRET")
    file.chmod(mode)
    monkeypatch.setattr(os, "geteuid", lambda: owner)  # then it reads as one of the file's group
    assert KeyFile("R_API_KEY_FILE", str(file))() == "SECRET"
    assert not caplog.records


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


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("REVCONN_TARGET", "gateway:443")
    monkeypatch.setenv("REVCONN_API_KEY", "key")
    return monkeypatch


def test_overrides_count_instead_of_their_variables(environ: pytest.MonkeyPatch) -> None:
    environ.setenv("REVCONN_MAX_WORKERS", "many")
    environ.setenv("REVCONN_BACKOFF_INITIAL", "soon")
    environ.setenv("REVCONN_TLS_CA", "/nowhere")
    environ.setenv("REVCONN_CONNECT_TIMEOUT", "5")
    connector = Connector.from_env(max_workers=4, backoff=Backoff(), tls=False, targets="other:1")
    options = connector._options
    assert (options.max_workers, options.tls, options.connect_timeout) == (4, False, 5.0)
    assert [link.target for link in connector.links] == ["other:1"]


def test_what_is_overridden_need_not_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TARGET", "API_KEY"):
        monkeypatch.delenv(f"REVCONN_{name}", raising=False)
    Connector.from_env(targets="other:1", api_key=lambda: "key")


def test_an_error_names_the_variable_or_the_override_that_it_comes_from(
    environ: pytest.MonkeyPatch,
) -> None:
    environ.setenv("REVCONN_MAX_WORKERS", "0")
    environ.setenv("REVCONN_HEARTBEAT_INTERVAL", "100")
    for overrides, name in (
        ({}, "REVCONN_MAX_WORKERS"),
        ({"max_workers": 1}, "REVCONN_LIVENESS_TIMEOUT"),
        ({"max_workers": -1}, "max_workers"),
        ({"max_workers": 1, "liveness_timeout": 5}, "liveness_timeout"),
        ({"services": [""]}, "services"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            Connector.from_env(**overrides)
        assert caught.value.name == name


def test_an_override_that_is_no_option_is_refused(environ: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="max_worker"):
        Connector.from_env(max_worker=3)
    environ.delenv("REVCONN_TARGET")
    with pytest.raises(TypeError, match="'target'"):  # and not: REVCONN_TARGET is not set
        Connector.from_env(target="other:1")


@pytest.mark.parametrize(
    ("name", "value"),
    [("TRANSPORT", "pigeon"), ("PROXY", "ftp://proxy"), ("BACKOFF_MAXIMUM", "0.5")],
)
def test_a_value_that_the_connector_refuses_is_named_by_its_variable(
    name: str, value: str, environ: pytest.MonkeyPatch
) -> None:
    environ.setenv(f"REVCONN_{name}", value)
    with pytest.raises(ConfigurationError, match=f"^REVCONN_{name}: "):
        Connector.from_env()
