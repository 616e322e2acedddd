"""The fuzz target in the ordinary tests: real conversations, as they were and broken."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.status import StatusCode
from revconn.http2.frames import HEADER_BYTES
from tests.fuzz.record import RECORDINGS
from tests.fuzz.target import converse

CONVERSATIONS = {path.stem: path.read_bytes()[1:] for path in sorted(RECORDINGS.glob("*.bin"))}

ENDS = {"rejected": StatusCode.UNAUTHENTICATED, "stopped": StatusCode.UNAVAILABLE}


def frames(conversation: bytes) -> list[bytes]:
    found = []
    while conversation:
        end = HEADER_BYTES + int.from_bytes(conversation[:3], "big")
        found.append(conversation[:end])
        conversation = conversation[end:]
    return found


@st.composite
def broken_conversations(draw: st.DrawFn) -> bytes:
    """A recording whose frames were dropped, repeated, moved, changed, cut, or made up."""
    said = frames(CONVERSATIONS[draw(st.sampled_from(sorted(CONVERSATIONS)))])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(said) - 1))
        change = draw(st.sampled_from(["drop", "repeat", "move", "bits", "cut", "header", "own"]))
        frame = said[at]
        if change == "drop" and len(said) > 1:
            del said[at]
        elif change == "repeat":
            said[at:at] = [frame] * draw(st.integers(1, 50))
        elif change == "move":
            said.insert(draw(st.integers(0, len(said) - 1)), said.pop(at))
        elif change == "bits" and frame:
            where = draw(st.integers(0, len(frame) - 1))
            flipped = frame[where] ^ draw(st.integers(1, 255))
            said[at] = frame[:where] + bytes([flipped]) + frame[where + 1 :]
        elif change == "cut":
            said[at] = frame[: draw(st.integers(0, len(frame)))]
        elif change == "header":  # another kind, flags or stream: the same payload
            said[at] = frame[:3] + draw(st.binary(min_size=6, max_size=6)) + frame[HEADER_BYTES:]
        else:
            kind, flags = draw(st.integers(0, 10)), draw(st.integers(0, 255))
            stream_id, payload = draw(st.integers(0, 3)), draw(st.binary(max_size=40))
            head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
            said.insert(at, head + stream_id.to_bytes(4, "big") + payload)
    return bytes([draw(st.integers(0, 255))]) + b"".join(said)


@pytest.mark.parametrize("pieces", [0, 1, 20, 255])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_recorded_conversation_is_understood_in_whatever_pieces_it_arrives(name, pieces):
    end = converse(bytes([pieces]) + CONVERSATIONS[name]).end
    assert (end.code if end else StatusCode.OK) is ENDS.get(name, StatusCode.OK), end


@given(broken_conversations())
def test_a_broken_conversation_ends_with_a_reason_or_goes_on(data):
    converse(data)


def test_without_atheris_the_fuzzer_says_what_to_install():
    script = "import sys; sys.modules['atheris'] = None; import runpy; "
    script += "runpy.run_module('tests.fuzz', run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert run.returncode == 1
    assert "pip install 'revconn[fuzz]'" in run.stderr


def test_nothing_is_imported_before_the_fuzzer_can_follow_it():
    script = "import runpy, sys; sys.modules['atheris'] = None\n"
    script += "try: runpy.run_module('tests.fuzz', run_name='__main__')\nexcept SystemExit: pass\n"
    script += "print([name for name in sys.modules if name.partition('.')[0] in ('revconn', 'h2')])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert run.stdout.strip() == "[]", run.stderr
