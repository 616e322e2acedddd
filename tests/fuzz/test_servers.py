"""What is fuzzed of a server, in the ordinary tests: conversations that hypothesis makes up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.endpoints import decode_blocks, serve
from tests.fuzz.gateways import Gateways
from tests.fuzz.judge import Broken, Judge, http1_answers
from tests.fuzz.million import made
from tests.fuzz.webs import WebGateways

INPUTS = st.one_of(st.binary(max_size=400), st.integers(0, 10**9).map(lambda seed: made(seed, 900)))

# Inputs that were too much once: for the end of a stream whose window had been taken back, for
# streams that waited for room, for a connection whose peer read nothing.
FOUND = ((3149, 600), (1_001_419, 2_500), (1_015_080, 2_500), (8, 1_000))


@pytest.fixture(scope="module")
def gateways() -> Iterator[Gateways]:
    made_up = Gateways()
    yield made_up
    made_up.close()


@pytest.fixture(scope="module")
def web_gateways() -> Iterator[WebGateways]:
    made_up = WebGateways()
    yield made_up
    made_up.close()


@given(data=INPUTS)
def test_whatever_header_blocks_come_the_table_is_what_the_peer_thinks_it_is(data: bytes) -> None:
    decode_blocks(data)


@given(data=INPUTS)
def test_whatever_a_peer_says_a_server_stays_true_and_answers_in_http2(data: bytes) -> None:
    serve(data)


@given(data=INPUTS)
def test_whatever_peers_say_a_gateway_logs_no_error_and_keeps_nothing(
    gateways: Gateways, data: bytes
) -> None:
    gateways.converse(data)


@given(data=INPUTS)
def test_whatever_callers_say_in_http1_they_are_answered_or_told_that_it_ends(
    web_gateways: WebGateways, data: bytes
) -> None:
    web_gateways.converse(data)


@pytest.mark.parametrize(("seed", "longest"), FOUND)
def test_what_was_found_is_no_more(gateways: Gateways, seed: int, longest: int) -> None:
    serve(made(seed, longest))
    gateways.converse(made(seed, longest))


def test_the_judge_hears_what_is_no_http2() -> None:
    settings = b"\0\0\0\4\0\0\0\0\0"
    Judge().hear(settings, 1, 16_384)
    for wrong in (
        b"\0\0\x08\6\0\0\0\0\0" + bytes(8),  # no SETTINGS
        settings + b"\0\0\1\0\0\0\0\0\1x",  # DATA before headers
        settings + b"\0\0\1\1\4\0\0\0\3\x88",  # of a stream that nobody opened
        settings + b"\0\0\1\1\5\0\0\0\1\x88" + b"\0\0\0\0\1\0\0\0\1",  # DATA behind the end
    ):
        with pytest.raises(Broken):
            Judge().hear(wrong, 1, 16_384)


def test_the_judge_hears_what_is_no_http1() -> None:
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx"
    assert http1_answers(b"HTTP/1.1 100 \r\n\r\n" + whole + whole[:-1]) == 2
    for wrong in (
        b"x" + whole,
        whole + b"x",
        whole.replace(b" OK", b" O\0K"),
        b"HTTP/1.1 200 OK\r\n\r\nx" + whole,  # nobody could tell where it ends
        b"HTTP/1.1 204 \r\n\r\nx",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nxx" + whole,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n",
    ):
        with pytest.raises(Broken):
            http1_answers(wrong)


def test_many_inputs_can_be_run_by_their_numbers() -> None:
    command = [sys.executable, "-m", "tests.fuzz.million", "endpoint", "--runs", "20"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stderr
    assert "20 inputs from seed 0" in run.stdout
