"""Records what the embedded gateway says in real conversations: `python -m tests.fuzz.record`."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import threading
from typing import Callable

import grpc

from revconn import Connector, HandshakeError, Request, RequestError, StatusCode
from revconn.gateway import Gateway

__all__ = ["RECORDINGS"]

RECORDINGS = pathlib.Path(__file__).parent / "recordings"
METHOD = "/echo.Echo/Say"


class Tap:
    """Relays one connection after another, and keeps what comes back from the gateway."""

    def __init__(self, gateway: str) -> None:
        host, port = gateway.rsplit(":", 1)
        self._gateway = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard = b""
        threading.Thread(target=self._relay, daemon=True).start()

    def _relay(self) -> None:
        downstream, _ = self._listener.accept()
        with downstream, socket.create_connection(self._gateway) as upstream:
            forward = threading.Thread(target=_pump, args=(downstream, upstream), daemon=True)
            forward.start()
            while data := upstream.recv(1 << 16):
                self.heard += data
                downstream.sendall(data)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other side was faster


def say(request: Request) -> bytes:
    if request.payload == b"fail":
        raise RequestError(StatusCode.NOT_FOUND, "no such thing")
    return request.payload


def calls(gateway: Gateway) -> None:
    """Small, failing, expiring soon, with metadata, and larger than a frame."""
    with grpc.insecure_channel(gateway.address) as channel:
        call = channel.unary_unary(METHOD)
        call(b"hello", metadata=[("tenant", "blue")])
        call(b"\x0a" + b"x" * 20_000, timeout=10)
        with contextlib.suppress(grpc.RpcError):
            call(b"fail", timeout=5)


def record(name: str, talk: Callable[[Gateway], None], *, key: str = "key") -> None:
    with Gateway(api_keys=["key"]) as gateway:
        tap = Tap(gateway.address)
        connector = Connector(tap.address, api_key=key, tls=False, transport="http2")
        connector.method(METHOD)(say)
        try:
            connector.start(block=False)
            connector.wait_ready(5)
        except HandshakeError:
            assert key != "key"
        else:
            talk(gateway)
        connector.stop()
    RECORDINGS.mkdir(exist_ok=True)
    # The first byte is the target's: everything arrives at once, or in pieces.
    (RECORDINGS / f"{name}.bin").write_bytes(b"\xff" + tap.heard)
    print(f"{name}: {len(tap.heard):,} bytes")


if __name__ == "__main__":
    record("calls", calls)
    record("idle", lambda gateway: None)
    record("rejected", lambda gateway: None, key="wrong")
    record("stopped", lambda gateway: gateway.stop())
