"""A gateway under TLS that can be reached by any name: it is its own proxy (CONNECT)."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import ssl
import warnings
from collections.abc import Sequence

from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus
from tests.support.certificates import Certificate
from tests.support.scripted_http2 import Http2Peer, HungUp
from tests.support.threads import TIMEOUT, in_thread

__all__ = ["SecuredGateway"]


class SecuredGateway:
    """Says CONNECTED to every connector whose TLS handshake goes well, and nothing else.

    :ivar asked_for: where its callers wanted to go.
    :ivar server_names: what they said in TLS (SNI) of whom they meant; ``None``: nothing.
    """

    def __init__(
        self,
        chain: Sequence[Certificate],
        directory: pathlib.Path,
        *,
        clients: Certificate | None = None,
        version: str | None = None,
        protocols: Sequence[str] = ("h2",),
    ) -> None:
        self.asked_for: list[str] = []
        self.server_names: list[str | None] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.set_ciphers("ALL:@SECLEVEL=0")
        chain[0].show(self._context, directory, *chain[1:])
        self._context.sni_callback = lambda sock, name, context: self.server_names.append(name)
        if protocols:
            self._context.set_alpn_protocols(list(protocols))
        if clients is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(cadata=clients.pem.decode())
        if version is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                self._context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
                self._context.maximum_version = getattr(ssl.TLSVersion, version)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = in_thread(self._accept)

    def _accept(self) -> None:
        serving = []
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # closed
                break
            sock.settimeout(TIMEOUT)
            serving.append(in_thread(self._serve, sock))
        for each in serving:
            each.result(TIMEOUT)

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, HungUp), sock:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                byte = sock.recv(1)
                if not byte:
                    return
                head += byte
            self.asked_for.append(head.split()[1].decode())
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            with self._context.wrap_socket(sock, server_side=True) as secured:
                peer = Http2Peer(secured)
                peer.begin()
                peer.accept_stream()
                peer.hears_message()
                status = ConnectionStatus(connection_id="id-1", status=ConnectionStatus.CONNECTED)
                peer.send(ConnectionMessage(status=status).SerializeToString())
                peer.hears_hang_up()

    def __enter__(self) -> SecuredGateway:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.result(TIMEOUT)
