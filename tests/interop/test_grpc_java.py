"""What runs grpc-java's cases, when the process that should does not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.grpc_java import GrpcJava

# Answers with its process id, ends when told to, and else is silent.
PEER = """
import os, sys
for line in sys.stdin:
    if line == "end\\n":
        sys.exit("out of memory")
    if line == "who\\n":
        print(os.getpid(), flush=True)
"""
COMMAND = (sys.executable, "-c", PEER)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[GrpcJava]:
    peer = GrpcJava(tmp_path, COMMAND)
    yield peer
    peer.kill()


def test_one_process_runs_all(peer: GrpcJava) -> None:
    assert peer.ask("who") == peer.ask("who")


def test_a_process_that_ends_fails_the_case_that_it_ran_with_what_it_said(peer: GrpcJava) -> None:
    with pytest.raises(AssertionError, match="did not answer .*'end'.*\n.*out of memory"):
        peer.ask("end")


def test_a_process_that_hangs_fails_the_case_that_it_ran(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="did not answer .*'hang'"):
        GrpcJava(tmp_path, COMMAND, timeout=0.1).ask("hang")


def test_cases_after_one_that_was_not_answered_run_in_a_process_of_their_own(
    peer: GrpcJava,
) -> None:
    first = peer.ask("who")
    with pytest.raises(AssertionError):
        peer.ask("end")
    assert peer.ask("who") != first
