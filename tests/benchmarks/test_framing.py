"""What HTTP/2 costs by itself: both libraries answer every call, and that takes time."""

from __future__ import annotations

import pytest

from benchmarks.framing import Ours, Theirs, measure


@pytest.mark.parametrize("server", [Theirs, Ours])
def test_every_call_is_answered_and_takes_time(server: type[Theirs] | type[Ours]) -> None:
    assert measure(server(), reads=2) > 0
