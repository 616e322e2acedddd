"""revconn's fixtures for pytest.

pytest loads this in every session, wherever revconn is installed. It stands outside of the package
so that this costs next to nothing: revconn is imported when a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Callable

import pytest

if TYPE_CHECKING:
    from revconn.testing import Faults, TestGateway


@pytest.fixture
def make_revconn_gateway() -> Iterator[Callable[..., TestGateway]]:
    """Make gateways for this test: ``make_revconn_gateway(request_timeout=1.0, …)``."""
    from revconn.testing import TestGateway

    with ExitStack() as stack:

        def make(**options: Any) -> TestGateway:
            return stack.enter_context(TestGateway(**options))

        yield make


@pytest.fixture
def revconn_gateway(make_revconn_gateway: Callable[..., TestGateway]) -> TestGateway:
    """A gateway for this test, with faults at hand: see revconn.testing.TestGateway."""
    return make_revconn_gateway()


@pytest.fixture
def revconn_faults(revconn_gateway: TestGateway) -> Faults:
    """What can go wrong between connectors and ``revconn_gateway``: see revconn.testing.Faults."""
    return revconn_gateway.faults
