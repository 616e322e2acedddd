from __future__ import annotations

import importlib.metadata
import threading

import pytest

from revconn import State
from revconn.testing import Fault
from revconn.transport.base import user_agent
from revconn.transport.grpcio import explain
from tests.support.waiting import eventually

TIMEOUT = 10.0
UNREACHED = "failed to connect to all addresses; last error: "


@pytest.fixture
def transport_options() -> dict[str, str]:
    """Not every transport: this one."""
    return {"transport": "grpcio"}


# What grpcio says, and what it means; the details are its own words, old and new


@pytest.mark.parametrize(
    ("details", "meaning"),
    [
        ("UNKNOWN: Peer name 127.0.0.1 is not in peer certificate", "for another name"),
        ("UNAUTHENTICATED: Hostname Verification Check failed.", "for another name"),
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired: OK", "certificate has expired"),
        ("CERTIFICATE_VERIFY_FAILED: certificate is not yet valid: OK", "is not yet valid"),
        ("CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", "unknown authority"),
        ("CERTIFICATE_VERIFY_FAILED: self signed certificate", "unknown authority"),
        ("SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED", "has expired or is not yet"),
        ("SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER", "does not speak TLS"),
        ("SSL routines:OPENSSL_internal:TLSV1_ALERT_PROTOCOL_VERSION", "TLS is too old"),
        ("SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA", "who signed the client"),
        ("SSL routines:OPENSSL_internal:SSLV3_ALERT_HANDSHAKE_FAILURE", "demand TLS(cert=...)"),
        ("UNKNOWN: Cannot check peer: missing selected ALPN property.", "not HTTP/2"),
        ("UNKNOWN: Failed to create security handshaker.", "not PEM, or not of one pair"),
        ("UNAVAILABLE: Socket closed", "does it expect a client certificate"),
        ("UNAVAILABLE: Endpoint read failed", "does it expect a client certificate"),
        ("UNAVAILABLE: Unwrap failed (TSI_DATA_CORRUPTED)", "does it expect a client certificate"),
    ],
)
def test_what_a_failed_tls_handshake_means_comes_before_grpcios_words(details, meaning) -> None:
    said = explain(UNREACHED + details, tls=True)
    assert meaning in said
    assert said.endswith(f"({UNREACHED}{details})")


@pytest.mark.parametrize(
    ("details", "meaning"),
    [
        ("UNAVAILABLE: Socket closed", "does it expect TLS?"),
        ("UNAVAILABLE: recvmsg:Connection reset by peer (104)", "does it expect TLS?"),
        ("UNAVAILABLE: Failed parsing HTTP/2", "does not speak HTTP/2"),
        ("INTERNAL: Trying to connect an http1.x server", "speaks HTTP/1.1"),
    ],
)
def test_what_a_failed_plaintext_connection_means(details, meaning) -> None:
    assert meaning in explain(UNREACHED + details, tls=False)


def test_an_old_grpcio_says_nothing_and_is_said_to() -> None:
    assert "grpcio 1.49 or newer says which" in explain(UNREACHED.partition(";")[0], tls=True)


@pytest.mark.parametrize("details", ["", "Socket closed", "anything else"])
def test_what_is_not_known_is_passed_on_as_it_is(details) -> None:
    assert explain(details, tls=True) == details


# Keepalive


@pytest.mark.parametrize("keepalive_interval", [None, 330.0])
def test_sent_data_that_nobody_takes_is_not_waited_for_for_ever(
    new_connector, gateway, proxy, keepalive_interval
) -> None:
    connector = new_connector(
        proxy.address, keepalive_interval=keepalive_interval, keepalive_timeout=0.5
    )
    let_go = threading.Event()
    connector.add_method("/echo.Echo/Say", lambda request: let_go.wait(TIMEOUT) and bytes(3 << 20))
    connector.start(block=False)
    peer = gateway.accept_ready()
    peer.requests(*"abcdef", timeout_seconds=0)
    eventually(lambda: connector.stats()["accepted"] == 6)
    proxy.fault = Fault.STALL
    let_go.set()
    eventually(lambda: connector.state is not State.READY)
    proxy.reset_all()


# Threads


def test_the_senders_thread_is_named_and_ends_with_its_stream(new_connector, gateway) -> None:
    connector = new_connector(gateway.address)
    connector.start(block=False)
    peer = gateway.accept_ready()
    connector.wait_ready(TIMEOUT)
    (sender,) = [each for each in threading.enumerate() if "revconn-sender" in each.name]
    assert gateway.address in sender.name
    peer.end()
    gateway.accept_ready()
    eventually(lambda: not sender.is_alive())


# The name it goes by


def test_a_package_without_metadata_still_has_a_name(monkeypatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert user_agent.__wrapped__() == "revconn-python/unknown"
