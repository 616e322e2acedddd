from __future__ import annotations

import base64
import logging
import socket

import pytest
from hyperframe.frame import HeadersFrame, SettingsFrame

from revconn import TLS
from revconn.core.status import StatusCode
from revconn.settings.proxy import Proxy
from revconn.transport.base import StreamEnded
from tests.support.certificates import Authority
from tests.support.descriptors import open_descriptors
from tests.support.http2_client import Client
from tests.support.scripted_http2 import Http2Peer, ScriptedHttp2
from tests.support.threads import TIMEOUT, in_thread

SECRET = "s3cret-w0rd"
CREDENTIALS = base64.b64encode(f"user:{SECRET}".encode()).decode()
TARGET = "gateway.example.com:443"  # which only the proxy can resolve


def proxy_at(address: str, userinfo: str = f"user:{SECRET}@") -> Proxy:
    return Proxy.parse(f"http://{userinfo}{address}")


def hears_connect(peer: Http2Peer) -> list[str]:
    """The request for a tunnel, line by line."""
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        request += peer.socket.recv(1)
    return request.decode().split("\r\n")[:-2]


def test_the_proxy_is_asked_for_the_target_with_the_credentials(new_client, server) -> None:
    new_client(TARGET, proxy=proxy_at(server.address)).opening()
    assert hears_connect(server.accept()) == [
        f"CONNECT {TARGET} HTTP/1.1",
        f"Host: {TARGET}",
        f"Proxy-Authorization: Basic {CREDENTIALS}",
    ]


def test_without_credentials_none_are_sent(new_client, server) -> None:
    new_client("[2001:db8::1]:443", proxy=proxy_at(server.address, "")).opening()
    assert hears_connect(server.accept()) == [
        "CONNECT [2001:db8::1]:443 HTTP/1.1",
        "Host: [2001:db8::1]:443",
    ]


def test_what_the_gateway_says_right_behind_the_proxys_answer_is_not_lost(
    new_client, server
) -> None:
    client = new_client(TARGET, proxy=proxy_at(server.address))
    opening = in_thread(client.open)
    peer = server.accept()
    hears_connect(peer)
    peer.say(b"HTTP/1.0 200 OK\r\nVia: proxy\r\n\r\n", SettingsFrame(0))
    opening.result(TIMEOUT)
    peer.hears_preface()
    peer.hears(HeadersFrame)
    peer.hears(SettingsFrame, "ACK")
    peer.accept_stream()
    peer.send(b"hello")
    assert client.receive() == [b"hello"]
    assert dict(peer.headers)[":authority"] == TARGET


def why_not(client: Client, server: ScriptedHttp2, *answer: bytes) -> str:
    """Why there is no tunnel when the proxy answers so. No descriptor is left behind."""
    before = open_descriptors()
    opening = client.opening()
    peer = server.accept()
    hears_connect(peer)
    peer.say(*answer)
    peer.hang_up()
    with pytest.raises(StreamEnded) as raised:
        opening.result(TIMEOUT)
    peer.close()
    assert open_descriptors() <= before
    assert raised.value.code is StatusCode.UNAVAILABLE
    return raised.value.details


FAULTS = {
    "no permission": (
        b"HTTP/1.1 403 Forbidden by policy\r\n\r\n",
        "refused: '403 Forbidden by policy'",
    ),
    "no upstream": (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "refused: '502 Bad Gateway'"),
    "wrong credentials": (
        b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        "refused: '407 Proxy Authentication Required'; check user and password in the proxy's URL",
    ),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", "gave no HTTP answer: it said b'SSH-2.0-OpenSSH_9.2"),
    "no end": (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000, "broke off its answer"),
    "no more": (b"HTTP/1.1 200 OK\r\nX-Half", "broke off its answer"),
    "nothing": (b"", "gave no HTTP answer, it hung up"),
}


@pytest.mark.parametrize(("answer", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_a_proxy_that_gives_no_tunnel_is_named_with_what_it_said_and_no_secret(
    new_client, server, caplog, answer: bytes, words: str
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy = proxy_at(server.address)
    details = why_not(new_client(TARGET, proxy=proxy), server, answer)
    assert details.startswith(f"the proxy {server.address} {words}")
    for shown in (details, caplog.text, repr(proxy), str(proxy)):
        assert SECRET not in shown
        assert CREDENTIALS not in shown


def test_a_proxy_that_wants_credentials_says_where_to_give_them(new_client, server) -> None:
    client = new_client(TARGET, proxy=proxy_at(server.address, ""))
    details = why_not(client, server, b"HTTP/1.1 407 Who are you\r\n\r\n")
    assert details.endswith("'407 Who are you'; give user and password in the proxy's URL")


def test_a_proxy_that_is_not_there_is_told_from_a_gateway_that_is_not(new_client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = new_client(TARGET, proxy=proxy_at(f"127.0.0.1:{port}"))
    with pytest.raises(StreamEnded) as raised:
        client.open()
    assert raised.value.details == (
        f"cannot connect to the proxy 127.0.0.1:{port}: Connection refused (127.0.0.1)"
    )


def test_tls_goes_through_the_tunnel_and_is_the_gateways(
    new_client, server, authority: Authority
) -> None:
    client = new_client(TARGET, tls=TLS(ca=authority.pem), proxy=proxy_at(server.address))
    opening = in_thread(client.open)
    peer = server.accept()
    hears_connect(peer)
    peer.say(b"HTTP/1.1 200 OK\r\n\r\n")
    secured = authority.server_context("gateway.example.com").wrap_socket(
        peer.socket, server_side=True
    )
    opening.result(TIMEOUT)
    gateway = Http2Peer(secured)
    gateway.begin()
    assert dict(gateway.headers)[":scheme"] == "https"
    gateway.accept_stream()
    gateway.send(b"hello")
    assert client.receive() == [b"hello"]
    gateway.close()
