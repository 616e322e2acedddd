"""What ends a dialling in the turn of the loop in which its time runs out."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest

from revconn.gateway import dialling
from revconn.gateway.addresses import Address
from revconn.gateway.backends import BackendRequest, Outcome, _Backend
from revconn.gateway.dialling import Dialled, Dialler
from revconn.gateway.limits import Limits, Watch
from revconn.settings.target import IPAddress
from tests.gateway import test_calls


class Rung(Watch):
    """A watch whose time runs out when the test says so."""

    def _begin(self, timeout: float) -> None:
        self._ticks = 1
        self._timer = self._loop.call_later(3600.0, self._count)

    ring = Watch._count


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> list[Rung]:
    """Those that were made, in their order."""
    made: list[Rung] = []

    def make(timeout: float) -> Rung:
        made.append(Rung(timeout))
        return made[-1]

    monkeypatch.setattr(dialling, "Watch", make)
    return made


@pytest.fixture
def address() -> Iterator[Address]:
    """Of what takes connections and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        found = Address.parse(f"127.0.0.1:{listening.getsockname()[1]}")
        assert found is not None
        yield found


@pytest.fixture
def dialler() -> Iterator[Dialler]:
    with closing(Dialler(Limits(), dials_private=True)) as dialler:
        yield dialler


class Unheard:
    """A journal that nobody reads."""

    def unreachable(self, address: str, details: str) -> None:
        pass


async def others() -> list[Any]:
    """What came of all other tasks."""
    return await asyncio.gather(
        *(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True
    )


async def made(watches: list[Rung], count: int) -> None:
    while len(watches) < count:
        await asyncio.sleep(0)


def test_a_call_that_is_given_up_as_its_time_to_connect_runs_out_ends_once(
    watches, address, dialler
) -> None:
    async def run() -> None:
        backend: Any = _Backend(1, address, dialler, Unheard())

        async def call(_wanted: object, path: str, request: BackendRequest) -> Outcome:
            return await backend.call(path, request)

        gateway = test_calls.Gateway()
        gateway.loop = asyncio.get_running_loop()
        gateway.backends.call = call
        gateway.backends.come(is_there=True)
        asked = gateway.submit("1")
        await made(watches, 1)
        watches[0].ring()
        gateway.calls.give_up(asked, "the caller gave up")
        backend.close()
        outcomes = await others()
        assert [each for each in outcomes if isinstance(each, Exception)] == []
        assert asked.outcomes == []

    asyncio.run(run())


def test_what_is_closed_as_its_time_to_answer_runs_out_is_not_dialled_again(
    watches, address, dialler
) -> None:
    async def run() -> None:
        dialled = Dialled(address, dialler)
        calling = asyncio.ensure_future(dialled.connect(60.0))
        await made(watches, 3)  # of the call, of the connection, and of the answer on it
        watches[2].ring()
        dialled.close()
        with suppress(OSError, asyncio.CancelledError):
            await calling
        assert dialled._retry is None

    asyncio.run(run())


async def greet(listening: socket.socket) -> None:
    """Take one connection, begin to speak HTTP/2, and wait for its end."""
    loop = asyncio.get_running_loop()
    connection, _ = await loop.sock_accept(listening)
    with connection:
        await loop.sock_sendall(connection, b"\0\0\0\4\0\0\0\0\0")
        while await loop.sock_recv(connection, 1000):
            pass


def test_what_is_closed_as_the_time_for_one_address_runs_out_keeps_no_connection_to_another(
    watches, dialler, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(listening: socket.socket) -> None:
        listening.setblocking(False)
        greeting = asyncio.ensure_future(greet(listening))
        address = Address.parse(f"backend.example:{listening.getsockname()[1]}")
        assert address is not None
        loop: Any = asyncio.get_running_loop()
        connect = loop.sock_connect

        async def connect_to_one(sock: socket.socket, at: tuple[str, int]) -> None:
            if at[0] == "192.0.2.1":
                await asyncio.Event().wait()
            await connect(sock, at)

        async def look_up(_: Address) -> tuple[IPAddress, ...]:
            return ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("127.0.0.1")

        monkeypatch.setattr(loop, "sock_connect", connect_to_one)
        monkeypatch.setattr(dialler, "look_up", look_up)
        dialled = Dialled(address, dialler)
        calling = asyncio.ensure_future(dialled.connect(60.0))
        await made(watches, 2)  # of the call, and of the first address
        watches[1].ring()
        dialled.close()
        with suppress(OSError, asyncio.CancelledError):
            await calling
        assert not any(each.is_usable for each in dialler._clients)
        await greeting
        while dialler._clients:
            await asyncio.sleep(0)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        asyncio.run(run(listening))
