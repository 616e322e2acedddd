from __future__ import annotations

import sys
import time

import pytest

from revconn.runtime import clock


def test_it_never_runs_behind_the_monotonic_clock() -> None:
    suspended_before = clock.with_suspend() - time.monotonic()
    assert clock.with_suspend() - time.monotonic() >= suspended_before - 1e-3


@pytest.mark.parametrize(
    ("platform", "name"), [("linux", "CLOCK_BOOTTIME"), ("darwin", "CLOCK_MONOTONIC")]
)
def test_it_reads_the_clock_that_counts_suspend_where_there_is_one(
    platform: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(time, name, "that clock", raising=False)
    monkeypatch.setattr(time, "clock_gettime", {"that clock": 123.0}.__getitem__, raising=False)
    assert clock._clock()() == 123.0


def test_elsewhere_the_monotonic_clock_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    assert clock._clock()() == 5.0
