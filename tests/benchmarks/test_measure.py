"""One measurement: what is said of a peer that did not last."""

import os
import sys

import pytest

from benchmarks.measure import PeerFailed, memory, programs


def memory_of_one_that_has_ended():
    with programs() as start:
        process = start(sys.executable, "-c", "")
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return memory(process.pid)


def test_a_peer_that_ended_before_its_memory_was_read_has_failed():
    with pytest.raises(PeerFailed, match="has ended"):
        memory_of_one_that_has_ended()
