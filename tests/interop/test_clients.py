"""Clients call connectors through the gateway, each a program of its own."""

from __future__ import annotations

import grpc
import pytest

from tests.interop.conftest import Interop
from tests.interop.peers import CONNECTORS, TRIES, needed
from tests.support.waiting import eventually


@pytest.mark.parametrize(("connector", "client", "case"), TRIES)
def test_a_client_gets_from_a_connector(
    interop: Interop, connector: str, client: str, case: str
) -> None:
    interop.workshop.needs(needed(connector))
    report = interop.report(client)
    assert (connector, case) in report, f"the {client} client did not report on it: {report}"
    assert report[connector, case] == ""


@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_caller_that_gave_up_leaves_nothing_pending(interop: Interop, connector: str) -> None:
    gateway = interop.gateway(connector)

    def pending() -> int:
        return sum(connection.pending for connection in gateway.connections())

    given_up = gateway.stats()["calls_given_up"]
    with grpc.insecure_channel(gateway.address) as channel:
        wait = channel.unary_unary("/demo.Greeter/Hello")
        call = wait.future(b"", metadata=[("interop", "wait")])
        eventually(pending)
        call.cancel()
        eventually(lambda: not pending())
    assert gateway.stats()["calls_given_up"] == given_up + 1
