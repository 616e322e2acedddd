"""Each request runs in a fresh context: what it sets in context variables ends with it."""

from __future__ import annotations

import contextvars
import threading

import pytest

from revconn import Request

TIMEOUT = 30.0
USER = contextvars.ContextVar("USER", default="nobody")


@pytest.mark.parametrize("inline", [False, True], ids=["pool", "inline"])
def test_what_a_request_sets_is_seen_by_no_other(new_connector, gateway, inline) -> None:
    threads: set[threading.Thread] = set()

    def who(request: Request) -> bytes:
        threads.add(threading.current_thread())
        before = USER.get()
        USER.set(request.request_id)
        return f"{before} {USER.get()}".encode()

    connector = new_connector(gateway.address, max_workers=1)
    connector.add_method("/echo.Echo/Say", who, inline=inline)
    connector.start(block=False)
    peer = gateway.accept_ready()
    for request_id in ("alice", "bob"):
        peer.request(request_id)
        assert peer.answer(request_id).payload == f"nobody {request_id}".encode()
    assert len(threads) == 1, "one thread served both"


def test_nor_does_a_request_see_what_the_program_had_set(new_connector, gateway) -> None:
    token = USER.set("the program")
    try:
        connector = new_connector(gateway.address)
        connector.add_method("/echo.Echo/Say", lambda request: USER.get().encode())
        connector.start(block=False)
        peer = gateway.accept_ready()
        peer.request()
        assert peer.answer().payload == b"nobody"
    finally:
        USER.reset(token)
