"""Where a request goes when its connection ends before it was sent."""

from __future__ import annotations

import asyncio

import pytest

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardRequest, ForwardResponse
from revconn.core.routing import Wanted
from revconn.core.status import StatusCode, response_code
from revconn.gateway.backends import Backends
from revconn.gateway.forwarding import Forwarding
from revconn.gateway.keys import ApiKeys
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.refusals import Refused
from revconn.gateway.report import Journal
from revconn.gateway.routes import Connection, Registry
from tests.gateway.test_routes import make

ECHO = Wanted.by_connector("echo.Echo")
LIMITS = Limits(max_pending_per_connection=2)


class Scene:
    """A service with connectors a and b, and requests that wait to be written to a."""

    def __init__(self, grace: float = 0.0, **of_b) -> None:
        self.registry, self.counters = Registry(), Counters()
        keys, journal = ApiKeys(None), Journal()
        backends = Backends(keys, LIMITS, self.counters, journal, dials=True)
        self.forwarding = Forwarding(self.registry, backends, LIMITS, self.counters, grace)
        self.settled: list[ForwardResponse] = []
        self.a = self.add("a")
        for request_id in "12":
            self.submit(request_id)
        self.b = self.add("b", **of_b)

    def add(self, name: str, *, max_message_bytes: int = 1000, key: int = 1) -> Connection:
        connection = make(name, "echo.Echo", limits=LIMITS, key=key)
        connection.max_message_bytes = max_message_bytes
        self.registry.add(connection)
        return connection

    def submit(self, request_id: str) -> None:
        message = ConnectionMessage(request=ForwardRequest(request_id=request_id))
        deadline = asyncio.get_running_loop().time() + 60
        self.forwarding.submit(message, ECHO, deadline, self.settled.append)

    def end_a(self) -> None:
        self.registry.remove(self.a)
        self.a.outbound.discard()
        self.forwarding.connection_ended(self.a, "the stream broke")


def in_a_loop(scenario) -> None:
    async def run() -> None:
        scenario()

    asyncio.run(run())


def test_another_connector_gets_what_was_not_written() -> None:
    def scenario() -> None:
        scene = Scene(key=2)
        scene.end_a()
        assert scene.b.pending == {"1", "2"}
        assert scene.a.pending == set()
        scene.forwarding.answer(ForwardResponse(request_id="1", payload=b"x"), scene.b)
        assert [response.payload for response in scene.settled] == [b"x"]
        assert scene.counters.calls_rerouted == 2

    in_a_loop(scenario)


def test_of_what_was_written_nobody_else_hears() -> None:
    async def scenario() -> None:
        scene = Scene()
        await scene.a.outbound.next()
        scene.end_a()
        assert (scene.a.pending, scene.b.pending) == ({"1"}, {"2"})
        assert scene.settled == []

    asyncio.run(scenario())


@pytest.mark.parametrize("obstacle", ["it is full", "the request is too large for it"])
def test_what_the_other_connector_cannot_take_is_unavailable(obstacle) -> None:
    def scenario() -> None:
        scene = Scene(max_message_bytes=3 if obstacle.startswith("the request") else 1000)
        if obstacle == "it is full":
            scene.b.pending |= {"x", "y"}
        scene.end_a()
        codes = {response_code(each.status_code, each.headers) for each in scene.settled}
        assert codes == {StatusCode.UNAVAILABLE}
        assert [each.request_id for each in scene.settled] in (["1", "2"], ["2", "1"])
        assert scene.counters.calls_lost == 2

    in_a_loop(scenario)


def test_a_stalled_connector_is_better_than_none_when_a_connection_ended() -> None:
    def scenario() -> None:
        scene = Scene()
        scene.b.outbound._writing_since = -1000.0
        scene.forwarding.relieve(scene.a)
        assert scene.b.pending == set()
        scene.end_a()
        assert scene.b.pending == {"1", "2"}

    in_a_loop(scenario)


def test_an_id_that_is_pending_is_not_taken_again_whoever_asks() -> None:
    """Two connectors' calls of one id, the first of which was for a backend out of reach."""

    def scenario() -> None:
        scene = Scene()
        with pytest.raises(Refused, match="the id '1' is pending already") as refused:
            scene.submit("1")
        assert refused.value.code is StatusCode.ALREADY_EXISTS
        assert len(scene.forwarding) == 2

    in_a_loop(scenario)
