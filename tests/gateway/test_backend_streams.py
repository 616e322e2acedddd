"""A streaming call at a backend, on a clock of the test's own."""

from __future__ import annotations

import asyncio

from revconn.gateway.backend_streams import BackendListener, BackendStream
from revconn.gateway.client import Client


class Hears(BackendListener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def take(self, *_arguments: object, **_options: object) -> None:
        self.told.append("messages")

    def break_off(self, *_arguments: object) -> None:
        self.told.append("broken")

    def unreachable(self, *_arguments: object, **_options: object) -> None:
        self.told.append("unreachable")


class OutOfTime:
    """A destination whose time to connect runs out in the turn in which the call is given up."""

    def __init__(self) -> None:
        self.ended = 0
        self.lost: list[str] = []

    async def connect(self, timeout: float) -> Client:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError("no connection within 5 seconds") from None
        raise AssertionError

    def log_lost(self, details: str) -> None:
        self.lost.append(details)

    def stream_ended(self) -> None:
        self.ended += 1


def test_a_call_that_is_given_up_as_its_time_to_connect_runs_out_ends_once() -> None:
    async def run() -> None:
        stream.dial(listener, timeout=30.0)
        await asyncio.sleep(0)
        stream.cancel("the caller gave up")
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    destination, listener = OutOfTime(), Hears()
    stream = BackendStream(destination, "/a.B/C", (), None)
    asyncio.run(run())
    assert (destination.ended, destination.lost, listener.told) == (1, [], [])
