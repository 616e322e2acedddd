"""The clock of these tests is for the gateways of one test alone."""

from __future__ import annotations

import pytest


def test_it_is_refused_while_a_gateway_runs_that_would_go_by_it_too(
    gateway, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(AssertionError, match="a gateway runs already"):
        request.getfixturevalue("clock")
