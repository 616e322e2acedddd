"""What every test gets."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import settings

JOIN_TIMEOUT = 10.0

# A slow machine is no bug: hypothesis' own per-example deadline is off, pytest-timeout is on.
settings.register_profile("revconn", deadline=None)
settings.load_profile("revconn")


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """Fail the test that leaves a revconn thread running."""
    before = set(threading.enumerate())
    yield
    started = [thread for thread in threading.enumerate() if thread not in before]
    left = [thread for thread in started if thread.name.startswith("revconn-")]
    for thread in left:
        thread.join(JOIN_TIMEOUT)
    running = [thread.name for thread in left if thread.is_alive()]
    assert not running, f"the test left threads running: {running}"
