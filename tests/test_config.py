from __future__ import annotations

import os
import pathlib
import random
import ssl
import traceback
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from enum import Enum
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from revconn.connector import Connector
from revconn.exceptions import ConfigurationError
from revconn.link.link import waits
from revconn.settings.options import TLS, Backoff, api_key_source, parse_services
from revconn.settings.target import Target
from tests.support.options import make_options

CERT = b"-----BEGIN CERTIFICATE-----\nQ0VSVA==\n-----END CERTIFICATE-----\n"
KEY = b"-----BEGIN PRIVATE KEY-----\nU0VDUkVU\n-----END PRIVATE KEY-----\n"
SECRET = "U0VDUkVU"


def refusal(make: Any, *args: Any, **options: Any) -> ConfigurationError:
    """The error that a call is refused with."""
    with pytest.raises(ConfigurationError) as caught:
        make(*args, **options)
    return caught.value


# Backoff


@given(
    st.floats(min_value=1e-3, max_value=1000),
    st.floats(min_value=1, max_value=1000),
    st.floats(min_value=1, max_value=1000),
    st.integers(min_value=1, max_value=10**9),
)
def test_a_delay_is_drawn_from_nothing_to_the_ceiling(
    initial: float, growth: float, multiplier: float, failures: int
) -> None:
    backoff = Backoff(initial=initial, maximum=initial * growth, multiplier=multiplier)
    assert 0 <= backoff.delay(failures) <= backoff.ceiling(failures) <= backoff.maximum


def test_the_ceiling_grows_by_the_multiplier_up_to_the_maximum() -> None:
    backoff = Backoff(initial=1, maximum=60, multiplier=2)
    assert [backoff.ceiling(failures) for failures in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("multiplier", [2, 2.0, 1000])
def test_the_ceiling_survives_any_number_of_failures(multiplier: float) -> None:
    assert Backoff(multiplier=multiplier).ceiling(10**12) == 60.0


def test_a_multiplier_of_one_keeps_the_ceiling_where_it_begins() -> None:
    assert Backoff(initial=3, multiplier=1).ceiling(10**12) == 3.0


@pytest.mark.parametrize("multiplier", [1, 2, 1000])
@pytest.mark.parametrize("failures", [1, 2, 7, 10**6])
def test_a_link_waits_as_long_as_its_backoff_says(failures: int, multiplier: int) -> None:
    backoff = Backoff(initial=3, maximum=50, multiplier=multiplier)
    attempt = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    attempt.attempt_number = failures
    random.seed(failures)
    expected = backoff.delay(failures)
    random.seed(failures)
    assert waits(backoff)(attempt) == pytest.approx(expected)


def test_the_jitter_is_full() -> None:
    delays = [Backoff(initial=8, maximum=8).delay(1) for _ in range(2000)]
    assert min(delays) < 1
    assert max(delays) > 7
    assert 3.5 < sum(delays) / len(delays) < 4.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("initial", 0),
        ("initial", "1"),
        ("initial", None),
        ("maximum", -1),
        ("maximum", 0.5),
        ("multiplier", 0.5),
        ("multiplier", float("inf")),
        ("stable_after", -1),
        ("max_attempts", 0),
        ("max_attempts", 2.5),
    ],
)
def test_a_backoff_that_makes_no_sense_is_refused(name: str, value: Any) -> None:
    error = refusal(Backoff, **{name: value})
    assert error.name == f"Backoff({name}=)"
    assert error.value == value
    assert error.remedy


# TLS


def test_tls_reads_files_each_time_and_bytes_as_they_are(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(CERT)
    for source in (file, str(file)):
        tls = TLS(ca=source)
        assert tls.read("ca") == CERT
    file.write_bytes(CERT * 2)
    assert tls.read("ca") == CERT * 2
    assert TLS(cert=CERT, key=KEY).read("key") == KEY
    assert TLS().read("ca") is None


def test_the_repr_of_tls_shows_paths_and_names_but_no_pem(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(CERT)
    shown = repr(TLS(ca=str(file), cert=CERT, key=KEY, server_name="gateway.example.com"))
    assert (
        shown == f"TLS(ca={str(file)!r}, cert=<PEM>, key=<PEM>, server_name='gateway.example.com')"
    )
    assert repr(TLS()) == "TLS()"


@pytest.mark.parametrize(("given_half", "missing"), [("cert", "key"), ("key", "cert")])
def test_half_a_key_pair_is_refused(given_half: str, missing: str) -> None:
    error = refusal(TLS, **{given_half: CERT})
    assert error.name == f"TLS({missing}=)"
    assert "is missing; give cert and key together" in str(error)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("/nowhere/ca.pem", "cannot be read: No such file or directory (got '/nowhere/ca.pem')"),
        (pathlib.Path("/nowhere"), "cannot be read: No such file or directory (got '/nowhere')"),
        (".", "cannot be read: Is a directory"),
        ("a\x00b", "cannot be read: embedded null byte"),
        (1, "is int, not a path"),
        (True, "is bool, not a path"),
        (b"", "holds no PEM"),
        (b"\x30\x82\x01\x0a", "holds no PEM"),
    ],
    ids=repr,
)
def test_a_file_that_cannot_be_used_is_refused(source: Any, problem: str) -> None:
    error = refusal(TLS, ca=source)
    assert error.name == "TLS(ca=)"
    assert problem in str(error)
    assert "PEM" in error.remedy or "openssl" in error.remedy


def test_a_file_without_pem_is_refused_by_its_path(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "ca.der"
    file.write_bytes(b"\x30\x82\x01\x0a")
    error = refusal(TLS, ca=file)
    assert error.value == str(file)
    assert "holds no PEM" in str(error)


@pytest.mark.parametrize(
    "settings",
    [
        lambda: TLS(cert=CERT, key=KEY.decode()),
        lambda: TLS(cert=CERT, key=pathlib.Path(KEY.decode())),
        lambda: make_options(tls=KEY),
        lambda: make_options(tls={"key": KEY}),
    ],
)
def test_a_private_key_in_the_wrong_place_is_refused_and_not_shown(settings: Any) -> None:
    error = refusal(settings)
    shown = "".join(traceback.format_exception_only(type(error), error)) + repr(vars(error))
    assert SECRET not in shown


@pytest.mark.parametrize("name", [b"gateway", "", "  ", " gateway", "gateway\n"])
def test_a_server_name_that_is_no_name_is_refused(name: Any) -> None:
    assert refusal(TLS, server_name=name).name == "TLS(server_name=)"


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_a_private_key_that_others_may_read_is_warned_of_once(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, mode in {"open.pem": 0o644, "closed.pem": 0o600}.items():
        file = tmp_path / name
        file.write_bytes(KEY)
        file.chmod(mode)
        tls = TLS(cert=CERT, key=file)
        tls.read("key")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"TLS(key=): other users of this machine may read {tmp_path / 'open.pem'} (mode 0644):"
        " chmod 600 it"
    )


# A context of the user's own


def test_a_context_of_ones_own_is_set_to_http2(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[list[str]] = []
    monkeypatch.setattr(ssl.SSLContext, "set_alpn_protocols", lambda _, names: chosen.append(names))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert TLS(ssl_context=context, server_name="gateway").ssl_context is context
    assert chosen == [["h2"]]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"ssl_context": "default"}, "not an ssl.SSLContext"),
        ({"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}, "is a server's context"),
        ({"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "ca": CERT}, "decides alone"),
        (
            {"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "cert": CERT, "key": KEY},
            "decides alone",
        ),
    ],
)
def test_a_context_that_cannot_be_used_is_refused(settings: Any, problem: str) -> None:
    error = refusal(TLS, **settings)
    assert error.name == "TLS(ssl_context=)"
    assert problem in str(error)


def test_a_context_is_refused_with_a_transport_that_cannot_use_it() -> None:
    tls = TLS(ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    assert make_options(tls=tls, transport="http2").tls is tls
    assert refusal(make_options, tls=tls, transport="grpcio").name == "TLS(ssl_context=)"


@pytest.mark.parametrize(
    ("tls", "target", "expected"),
    [
        (None, "gateway.example.com:443", TLS()),
        (None, "localhost:50051", None),
        (None, "unix:/run/gateway.sock", None),
        (True, "localhost:50051", TLS()),
        (False, "gateway.example.com:443", None),
        (TLS(server_name="g"), "localhost:50051", TLS(server_name="g")),
    ],
)
def test_tls_is_the_default_except_to_loopback(tls: Any, target: str, expected: Any) -> None:
    assert make_options(tls=tls).tls_for(Target.parse(target)) == expected


# Services and keys


def test_services_are_kept_in_their_order() -> None:
    assert parse_services(["b.B", "a.A"]) == ("b.B", "a.A")
    assert parse_services(()) == ()


@pytest.mark.parametrize(
    ("services", "problem"),
    [
        ("echo.Echo", "one text, not a list"),
        (5, "not a list of names"),
        (None, "not a list of names"),
        (["echo.Echo", "/echo.Echo/Say"], "not a service name"),
        ([b"echo.Echo"], "not a service name"),
        ([None], "not a service name"),
        ([""], "not a service name"),
        (b"", "one text, not a list"),
        (["b.B", "a.A", "b.B"], "names a service twice"),
    ],
)
def test_services_that_are_no_list_of_names_are_refused(services: Any, problem: str) -> None:
    error = refusal(parse_services, services)
    assert error.name == "services"
    assert problem in str(error)


def test_a_callable_key_is_asked_later_and_a_key_is_checked_now() -> None:
    def ask() -> str:
        raise AssertionError("not before a handshake")

    assert api_key_source(ask) is ask
    assert api_key_source("key")() == "key"
    assert refusal(api_key_source, "key\n").name == "api_key"


class Key(str, Enum):
    PRODUCTION = "real-key"


class Masked(str):
    def __str__(self) -> str:
        return "***"


@pytest.mark.parametrize("key", [Key.PRODUCTION, Masked("real-key"), "real-key"])
def test_a_key_is_what_it_holds_and_its_source_does_not_show_it(key: str) -> None:
    source = api_key_source(key)
    assert source() == "real-key"
    assert type(source()) is str
    assert "real-key" not in repr(source)


# All of a connector's options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value)
          for name in ("heartbeat_interval", "connect_timeout", "keepalive_timeout",
                       "drain_timeout", "liveness_timeout", "keepalive_interval",
                       "probe_interval", "slow_handler_after")
          for value in (0, -1, "30", float("nan"), float("inf"))),
        *((name, None)
          for name in ("heartbeat_interval", "connect_timeout", "keepalive_timeout",
                       "drain_timeout")),
        *((name, value)
          for name in ("max_workers", "max_in_flight", "max_in_flight_bytes", "max_message_bytes")
          for value in (0, -1, 1.5, "16", None)),
        ("liveness_timeout", 30.0),
        ("backoff", 5),
        ("backoff", None),
        ("is_fatal", None),
        ("tls", "on"),
        ("tls", 1),
        ("transport", "carrier pigeon"),
        ("transport", None),
        ("proxy", 8080),
        ("executor", 5),
        ("services", "echo.Echo"),
        ("services", ["not a name"]),
        ("api_key", ""),
        ("api_key", None),
        ("targets", "gateway"),
        ("targets", []),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_used_is_refused_by_name(name: str, value: Any) -> None:
    error = refusal(make_options, **{name: value})
    assert error.name == name
    assert error.remedy
    hidden = value is None or name in ("api_key", "tls", "proxy")
    assert hidden or repr(value).strip("[]") in str(error)


def test_a_process_pool_is_refused_as_executor() -> None:
    with ProcessPoolExecutor(1) as executor:
        assert refusal(make_options, executor=executor).name == "executor"


def test_an_executor_of_threads_is_taken() -> None:
    with ThreadPoolExecutor(1) as executor:
        assert make_options(executor=executor).executor is executor


def test_what_a_connector_has_not_cannot_be_assigned() -> None:
    connector = Connector("localhost:50051", api_key="key")
    with pytest.raises(AttributeError, match="no attribute 'max_worker'; max_workers is an option"):
        connector.max_worker = 3
    with pytest.raises(AttributeError, match="no attribute 'stpo'; did you mean stop?"):
        connector.stpo = None
    with pytest.raises(AttributeError, match="no attribute 'zzz'$"):
        connector.zzz = 1


def test_what_a_connector_has_can_be_replaced_as_tests_do(monkeypatch: pytest.MonkeyPatch) -> None:
    connector = Connector("localhost:50051", api_key="key")
    monkeypatch.setattr(connector, "stop", lambda: "stopped")
    assert connector.stop() == "stopped"


def test_a_subclass_may_have_attributes_of_its_own() -> None:
    class Named(Connector):
        pass

    connector = Named("localhost:50051", api_key="key")
    connector.label = "one"
    assert connector.label == "one"


@pytest.mark.parametrize("name", ["liveness_timeout", "keepalive_interval"])
def test_what_can_be_disabled_is_disabled_by_none(name: str) -> None:
    assert getattr(make_options(**{name: None}), name) is None


@pytest.mark.parametrize("key", ["SECRET\n", "SECRET\x00", b"SECRET", {"key": "SECRET"}])
def test_a_refused_key_is_nowhere_in_the_error_or_its_traceback(key: Any) -> None:
    error = refusal(Connector, "localhost:50051", api_key=key)
    told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "SECRET" not in told + repr(error) + repr(vars(error))


def test_no_repr_shows_the_key_or_a_proxys_password() -> None:
    connector = Connector("localhost:50051", api_key="SECRET", proxy="http://me:SECRET@proxy:80")
    assert "SECRET" not in repr(connector) + repr(connector._options) + repr(vars(connector))
