"""Addresses that mean something on one interface only."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.network_namespace import NetworkNamespace
from tests.support.threads import TIMEOUT

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture
def zoned_address() -> str:
    """An address of this machine's, with its zone."""
    table = Path("/proc/net/if_inet6")
    lines = [line.split() for line in table.read_text().splitlines()] if table.exists() else []
    for digits, _, _, _, _, interface in lines:
        # Not one that another test has made, and removes again.
        if digits.startswith("fe80") and not interface.startswith(NetworkNamespace.PREFIX):
            address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
            return f"{address}%{interface}"
    pytest.skip("no interface here has a link-local address")


def test_an_address_with_a_zone_is_dialled(new_connector, zoned_address: str) -> None:
    ((_, _, _, _, place), *_) = socket.getaddrinfo(zoned_address, 0, type=socket.SOCK_STREAM)
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(place)
        listener.listen()
        listener.settimeout(TIMEOUT)
        port = listener.getsockname()[1]
        connector = new_connector(f"[{zoned_address}]:{port}", tls=False, proxy=False)
        connector.start(block=False)
        caller, _ = listener.accept()
        with caller:
            caller.settimeout(TIMEOUT)
            assert caller.recv(len(PREFACE), socket.MSG_WAITALL) == PREFACE
            connector.abort()
