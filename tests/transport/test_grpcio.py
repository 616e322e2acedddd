from __future__ import annotations

import importlib.metadata
import socket
import threading
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any, Callable

import pytest
from hyperframe.frame import DataFrame, Frame, HeadersFrame, RstStreamFrame

from revconn import AuthenticationError, State
from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus, ForwardRequest
from revconn.core.connection import DRAIN, FEATURES_HEADER
from revconn.logger import Mask
from revconn.testing import Fault
from revconn.transport.base import user_agent
from revconn.transport.grpcio import _address_list, _GrpcioStream, explain
from tests.support.scripted_http2 import GRPC_HEADERS, Http2Peer, ScriptedHttp2, message
from tests.support.threads import in_thread
from tests.support.waiting import eventually

TIMEOUT = 60.0
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
        ("SSL routines:OPENSSL_internal:BAD_SIGNATURE", "another key of that authority"),
        ("SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER", "does not speak TLS"),
        ("SSL routines:OPENSSL_internal:TLSV1_ALERT_PROTOCOL_VERSION", "TLS is too old"),
        ("SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA", "who signed the client"),
        ("SSL routines:OPENSSL_internal:SSLV3_ALERT_HANDSHAKE_FAILURE", "demand TLS(cert=...)"),
        ("UNKNOWN: Cannot check peer: missing selected ALPN property.", "not HTTP/2"),
        ("UNKNOWN: Failed to create security handshaker.", "not PEM, or not of one pair"),
        ("UNAVAILABLE: Socket closed", "does it expect a client certificate"),
        ("UNAVAILABLE: Endpoint read failed", "does it expect a client certificate"),
        ("UNAVAILABLE: Secure read failed", "does it expect a client certificate"),
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


# Streams that a proxy resets when the gateway has ended them

CANCEL = 8


@pytest.fixture
def cutting() -> Iterator[ScriptedHttp2]:
    """A gateway with a proxy in front that follows trailers with a reset, as HAProxy does."""
    with ScriptedHttp2() as server:
        yield server


def cut_off(peer: Http2Peer, *headers: tuple[str, str]) -> None:
    """Trailers and a reset, in one segment."""
    peer.say(peer.headers_frame(headers, end=True), RstStreamFrame(1, error_code=CANCEL))


def accept_ready(server: ScriptedHttp2) -> Http2Peer:
    peer = server.accept()
    peer.begin()
    peer.accept_stream((FEATURES_HEADER, DRAIN))
    status = ConnectionStatus(connection_id="id-1", status=ConnectionStatus.CONNECTED)
    peer.hears_message()
    peer.send(ConnectionMessage(status=status).SerializeToString())
    return peer


def test_after_a_goodbye_such_an_end_is_no_break(new_connector, cutting: ScriptedHttp2) -> None:
    connector = new_connector(cutting.address, drain_timeout=60.0)
    connector.add_method("/echo.Echo/Say", lambda request: request.payload)
    connector.start(block=False)
    peer = accept_ready(cutting)
    request = ForwardRequest(request_id="r1", method_path="/echo.Echo/Say")
    peer.send(ConnectionMessage(request=request).SerializeToString())
    answer = ConnectionMessage.FromString(peer.hears_message())
    assert answer.response.request_id == "r1"
    stopping = in_thread(connector.stop)
    assert ConnectionMessage.FromString(peer.hears_message()).HasField("status")
    cut_off(peer, ("grpc-status", "0"))
    stopping.result(TIMEOUT)
    stats = connector.stats()
    assert (stats["connections"], stats["replayed"], stats["undelivered"]) == (1, 0, 0)


def refuse_both_times(peer: Http2Peer, *, second_time: Callable[[int], Iterable[Frame]]) -> None:
    """Cut off the first stream; the second one, whose client has said all, gets these frames."""
    peer.begin()
    peer.hears_message()
    cut_off(peer, *GRPC_HEADERS, *INVALID_TOKEN)
    stream_id = peer.hears(HeadersFrame).stream_id
    peer.hears(DataFrame, "END_STREAM")
    peer.say(*second_time(stream_id))


INVALID_TOKEN = (("grpc-status", "16"), ("grpc-message", "Invalid token"))


def test_a_refusal_that_was_cut_off_is_asked_for_again(new_connector, cutting) -> None:
    connector = new_connector(cutting.address)
    connector.start(block=False)
    peer = cutting.accept()

    def refuse(stream_id: int) -> Iterable[Frame]:
        frame = peer.headers_frame([*GRPC_HEADERS, *INVALID_TOKEN], end=True)
        frame.stream_id = stream_id
        return [frame]

    refuse_both_times(peer, second_time=refuse)
    with pytest.raises(AuthenticationError, match="Invalid token"):
        connector.wait(TIMEOUT)


def test_who_is_stopped_meanwhile_asks_nobody(new_connector, cutting, monkeypatch) -> None:
    connector = new_connector(cutting.address)
    ask_again = _GrpcioStream._ask_again

    def ask_on_a_closed_channel(stream: _GrpcioStream, registration: bytes) -> Any:
        stream._channel.close()
        return ask_again(stream, registration)

    monkeypatch.setattr(_GrpcioStream, "_ask_again", ask_on_a_closed_channel)
    connector.start(block=False)
    peer = cutting.accept()
    peer.begin()
    peer.hears_message()
    cut_off(peer, *GRPC_HEADERS, *INVALID_TOKEN)
    accept_ready(cutting)  # it was not taken for anything fatal
    connector.wait_ready(TIMEOUT)
    connector.abort()


def test_what_is_no_refusal_when_asked_again_is_a_failure_that_passes(
    new_connector, cutting
) -> None:
    connector = new_connector(cutting.address)
    connector.start(block=False)
    peer = cutting.accept()

    def take(stream_id: int) -> Iterable[Frame]:
        frame = peer.headers_frame(GRPC_HEADERS)
        frame.stream_id = stream_id
        return [frame, DataFrame(stream_id, message(b""))]

    refuse_both_times(peer, second_time=take)
    accept_ready(cutting)
    connector.wait_ready(TIMEOUT)
    connector.abort()


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


def test_where_no_thread_starts_there_is_no_channel_that_would_never_close(monkeypatch) -> None:
    def start_none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    channels: list[Any] = []
    transport = SimpleNamespace(find=lambda cancelled: [], channel=channels.append)
    stream = _GrpcioStream(transport, SimpleNamespace(), "gateway:443")
    monkeypatch.setattr(threading.Thread, "start", start_none)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        stream.open(Mask("key"))
    assert channels == []


def test_a_package_without_metadata_still_has_a_name(monkeypatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert user_agent.__wrapped__() == "revconn-python/unknown"


# Addresses

IP4, IP6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("addresses", "target"),
    [
        ([(IP4, ("10.0.0.1", 443))], "ipv4:10.0.0.1:443"),
        ([(IP4, ("10.0.0.1", 1)), (IP4, ("10.0.0.2", 2))], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ([(IP6, ("::1", 443, 0, 0))], "ipv6:[::1]:443"),
        ([(IP6, ("fe80::1", 443, 0, 2))], "ipv6:[fe80::1%252]:443"),
        ([(IP6, ("fe80::1%eth0", 443, 0, 2))], "ipv6:[fe80::1%252]:443"),
        (
            [(IP6, ("::1", 443, 0, 0)), (IP4, ("10.0.0.1", 443))],
            "ipv6:[::1]:443,[::ffff:10.0.0.1]:443",
        ),
    ],
)
def test_addresses_are_written_as_one_target(addresses: list[Any], target: str) -> None:
    assert _address_list(addresses) == target


def test_addresses_of_both_families_are_tried_in_their_order(
    new_connector, gateway, monkeypatch
) -> None:
    found = [(IP6, 1, 6, "", ("::1", 1, 0, 0)), (IP4, 1, 6, "", ("127.0.0.1", gateway.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    connector = new_connector("gateway.example.com:443", tls=False, proxy=False)
    connector.start(block=False)
    gateway.accept_ready()
    connector.wait_ready(TIMEOUT)
