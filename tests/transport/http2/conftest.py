from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable

import pytest

from tests.support.http2_client import Client
from tests.support.scripted_http2 import ScriptedHttp2


@pytest.fixture
def server() -> Iterator[ScriptedHttp2]:
    """A server that says what the test tells it to."""
    with ScriptedHttp2() as server:
        yield server


@pytest.fixture
def new_client() -> Iterator[Callable[..., Client]]:
    """``new_client(address, **options)``: a stream with its source, closed after the test."""
    made: list[Client] = []

    def make(address: str, **options: Any) -> Client:
        made.append(Client(address, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(new_client: Callable[..., Client], server: ScriptedHttp2) -> Client:
    """A stream to the server, opened; the server has still to accept it."""
    client = new_client(server.address)
    client.open()
    return client
