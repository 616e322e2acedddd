"""A connection through an HTTP proxy (CONNECT)."""

from __future__ import annotations

import socket
from typing import Callable

from revconn.proxy import Proxy
from revconn.target import Target

__all__ = ["tunnel"]

_LONGEST_ANSWER = 16_384


def tunnel(
    sock: socket.socket, proxy: Proxy, target: Target, cancelled: Callable[[], bool]
) -> None:
    """Have a connection to the proxy continued to the target. Raises :class:`OSError`.

    ``sock`` has a short timeout, after each of which ``cancelled`` is asked.
    """
    lines = [f"CONNECT {target.authority} HTTP/1.1", f"Host: {target.authority}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
    answer = bytearray()
    # Byte by byte: what follows the answer is the gateway's, and may already be there.
    while not answer.endswith(b"\r\n\r\n"):
        try:
            byte = sock.recv(1)
        except socket.timeout:
            if cancelled():
                raise OSError(f"no answer from the proxy {proxy}") from None
            continue
        answer += byte
        if not byte or len(answer) > _LONGEST_ANSWER:
            raise OSError(f"the proxy {proxy} gave no HTTP answer")
    _check(bytes(answer), proxy)


def _check(answer: bytes, proxy: Proxy) -> None:
    status_line = answer.split(b"\r\n", 1)[0].decode("latin-1")
    _, _, status = status_line.partition(" ")
    if status.startswith("2"):
        return
    advice = ""
    if status.startswith("407"):
        advice = ": give user and password in the proxy's URL"
    raise OSError(f"the proxy {proxy} refused: {status[:100]!r}{advice}")
