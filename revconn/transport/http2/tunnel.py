"""A connection through an HTTP proxy (CONNECT)."""

from __future__ import annotations

import re
import socket
from typing import Callable

from revconn.proxy import Proxy
from revconn.target import Target

__all__ = ["tunnel"]

_LONGEST_ANSWER = 16_384
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (?P<status>[1-5][0-9]{2}[^\r\n]*)\r?\n")


def tunnel(
    sock: socket.socket, proxy: Proxy, target: Target, cancelled: Callable[[], bool]
) -> None:
    """Have a connection to the proxy continued to the target. Raises :class:`OSError`.

    ``sock`` has a short timeout, after each of which ``cancelled`` is asked.
    """
    lines = [f"CONNECT {target.destination} HTTP/1.1", f"Host: {target.destination}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = bytearray()
    # Byte by byte: what follows the answer is the gateway's, and may already be there.
    while not answer.endswith(b"\r\n\r\n"):
        if cancelled():
            raise OSError(f"no answer from the proxy {proxy}")
        try:
            byte = sock.recv(1)
        except socket.timeout:
            continue
        answer += byte
        if not byte or len(answer) > _LONGEST_ANSWER:
            break
    _check(bytes(answer), proxy)


def _check(answer: bytes, proxy: Proxy) -> None:
    status_line = _STATUS_LINE.match(answer)
    if status_line is None:
        said = f": it said {answer[:40]!r}" if answer else ", it hung up"
        raise OSError(f"the proxy {proxy} gave no HTTP answer{said}")
    status = status_line["status"].decode("latin-1")
    if status.startswith("407"):
        advice = "give user and password in the proxy's URL"
        if proxy.authorization is not None:
            advice = "check user and password in the proxy's URL"
        raise OSError(f"the proxy {proxy} refused: {status[:100]!r}; {advice}")
    if not status.startswith("2"):
        raise OSError(f"the proxy {proxy} refused: {status[:100]!r}")
    if not answer.endswith(b"\r\n\r\n"):
        raise OSError(f"the proxy {proxy} broke off its answer")
