"""Both transports through what stands in front of gateways: nginx, HAProxy, Caddy."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, Callable, NamedTuple

import grpc
import pytest

from revconn import TLS, AuthenticationError, Connector, Request
from revconn.core.status import StatusCode
from revconn.gateway import Gateway
from tests.support.certificates import Authority
from tests.support.front_proxies import FRONT_PROXIES, FrontProxy
from tests.support.reference_gateway import ReferenceGateway
from tests.support.threads import TIMEOUT, in_thread
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"
SOON = 30.0  # on a busy machine; where leaving went wrong it took the drain_timeout


class Front(NamedTuple):
    """A proxy that runs, and where it expects a gateway."""

    proxy: FrontProxy
    gateway_port: int

    @property
    def gateway(self) -> str:
        return f"127.0.0.1:{self.gateway_port}"


@pytest.fixture(scope="module", params=list(FRONT_PROXIES))
def front(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    authority: Authority,
) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp(request.param)
    with socket.create_server(("127.0.0.1", 0)) as free:
        gateway_port: int = free.getsockname()[1]
    files = authority.issue_files(directory)
    gateway = f"127.0.0.1:{gateway_port}"
    with FrontProxy(request.param, directory, gateway, *files) as proxy:
        yield Front(proxy, gateway_port)


class Serving:
    """A connector whose handler waits until it may answer."""

    def __init__(self, connector: Connector) -> None:
        self.connector = connector
        self._began = threading.Semaphore(0)
        self._may_answer = threading.Event()
        connector.add_method(SAY, self._say)
        connector.start(block=False)
        connector.wait_ready(TIMEOUT)

    def _say(self, request: Request) -> bytes:
        self._began.release()
        assert self._may_answer.wait(TIMEOUT)
        return request.payload

    def leaves_in_peace(self, calls: list[Future[Any]]) -> None:
        """Stop while the calls are being handled: they are answered, once, and soon."""
        for _ in calls:
            assert self._began.acquire(timeout=TIMEOUT)
        stopping = in_thread(self.connector.stop)
        self._may_answer.set()
        began = time.monotonic()
        for number, call in enumerate(calls):
            answer = call.result(TIMEOUT)
            assert getattr(answer, "payload", answer) == b"%d" % number
        stopping.result(TIMEOUT)
        assert time.monotonic() - began < SOON


@pytest.fixture
def serve(new_connector, front: Front, authority: Authority) -> Callable[[], Serving]:
    def serve() -> Serving:
        connector = new_connector(
            front.proxy.address, tls=TLS(ca=authority.pem), drain_timeout=60.0
        )
        return Serving(connector)

    return serve


def test_a_connector_serves_through_it_and_leaves_in_peace(front: Front, serve) -> None:
    gateway = Gateway(front.gateway, api_keys="key")
    with gateway, grpc.insecure_channel(gateway.address) as channel:
        serving = serve()
        say: Any = channel.unary_unary(SAY)
        calls = [say.future(b"%d" % number, timeout=TIMEOUT) for number in range(8)]
        serving.leaves_in_peace(calls)
        # grpcio may report the end before its thread says that the last answer has left.
        assert serving.connector.stats()["connections"] <= 2


def test_it_leaves_a_gateway_that_knows_no_draining_as_soon_and_loses_nothing(
    front: Front, serve
) -> None:
    with ReferenceGateway(port=front.gateway_port) as gateway:
        serving = serve()
        calls = [gateway.call(SAY, b"%d" % number) for number in range(8)]
        serving.leaves_in_peace(calls)
        assert serving.connector.stats()["connections"] <= 3  # with the stand-in


def test_it_comes_back_when_the_gateway_behind_it_does(front: Front, serve) -> None:
    with ReferenceGateway(port=front.gateway_port):
        serving = serve()
    with ReferenceGateway(port=front.gateway_port) as gateway:
        eventually(lambda: gateway.routes("echo.Echo"))
        serving.leaves_in_peace([gateway.call(SAY, b"0")])


def test_a_wrong_key_is_fatal_through_it_too(front: Front, new_connector, authority) -> None:
    with ReferenceGateway(port=front.gateway_port, api_key="another"):
        connector = new_connector(front.proxy.address, tls=TLS(ca=authority.pem))
        connector.start(block=False)
        with pytest.raises(AuthenticationError, match="Invalid token") as raised:
            connector.wait(TIMEOUT)
        assert raised.value.code is StatusCode.UNAUTHENTICATED
