"""Every client calls every connector through the gateway, each a program of its own."""

from __future__ import annotations

import pytest

from tests.interop.conftest import Interop
from tests.interop.peers import CASES, CLIENTS, CONNECTORS


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_client_gets_from_a_connector(
    interop: Interop, connector: str, client: str, case: str
) -> None:
    report = interop.report(connector, client)
    assert case in report, f"the {client} client did not report on it: {report}"
    assert report[case] == ""


@pytest.mark.parametrize("connector", CONNECTORS)
def test_callers_that_gave_up_leave_nothing_pending(interop: Interop, connector: str) -> None:
    interop.report(connector, "python")
    (connection,) = interop.gateway(connector).connections()
    assert connection.pending == 0
