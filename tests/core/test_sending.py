from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardResponse
from revconn.core.chunks import ChunkJoiner, LargeAnswer
from revconn.core.responses import encode_response
from revconn.core.sending import Answer, Held, Outbound, Sent, answer

NOW = 1000.0
MESSAGES = st.lists(st.binary(max_size=20), max_size=20)


def patient(message: bytes) -> Answer:
    """An answer that is waited for whenever it comes."""
    return answer(message, None)


def holding(*answers: Answer) -> Outbound:
    outbound = Outbound()
    for each in answers:
        outbound.put(each)
    return outbound


def taken(outbound: Outbound, enough_bytes: int = 1 << 20) -> list[bytes]:
    return [each[0] for each in outbound.take_answers(enough_bytes)]


def test_a_batch_ends_with_the_answer_that_makes_it_large_enough() -> None:
    outbound = holding(patient(b"12345"), patient(b"6789"), patient(b"x"))
    assert taken(outbound, enough_bytes=6) == [b"12345", b"6789"]
    assert taken(outbound, enough_bytes=6) == [b"x"]


def test_an_answer_larger_than_a_batch_travels_alone() -> None:
    outbound = holding(patient(b"x" * 100), patient(b"y"))
    assert taken(outbound, enough_bytes=10) == [b"x" * 100]


@given(MESSAGES, st.integers(min_value=1, max_value=50))
def test_taking_in_batches_loses_and_reorders_nothing(messages: list[bytes], enough: int) -> None:
    outbound = holding(*map(patient, messages))
    assert outbound.answer_bytes == sum(map(len, messages))
    arrived = []
    while outbound:
        arrived += taken(outbound, enough)
    assert arrived == messages
    assert outbound.answer_bytes == 0


@given(MESSAGES, st.integers(min_value=1, max_value=50))
def test_what_is_put_back_comes_out_again_first_and_in_order(
    messages: list[bytes], enough: int
) -> None:
    outbound = holding(*map(patient, messages))
    outbound.put_back(outbound.take_answers(enough))
    assert outbound.answer_bytes == sum(map(len, messages))
    assert taken(outbound, sum(map(len, messages)) + 1) == messages


def test_expired_answers_are_dropped_and_counted_and_the_others_keep_their_order() -> None:
    outbound = holding(
        answer(b"late", NOW - 1),
        answer(b"in time", NOW + 1),
        answer(b"just late", NOW),
        answer(b"patient", None),
    )
    assert outbound.drop_expired(NOW) == 2
    assert outbound.answer_bytes == len(b"in time" + b"patient")
    assert taken(outbound) == [b"in time", b"patient"]


@given(MESSAGES, st.integers(min_value=0, max_value=100))
def test_the_oldest_are_dropped_until_the_others_fit_but_never_the_last(
    messages: list[bytes], most: int
) -> None:
    outbound = holding(*map(patient, messages))
    dropped = outbound.drop_oldest(most)
    assert outbound.answer_bytes <= most or len(outbound) == 1
    kept = messages[dropped:]
    assert [each[0] for each in outbound.take_all()] == kept
    if dropped and messages[dropped - 1]:
        assert sum(map(len, kept)) + len(messages[dropped - 1]) > most, "no more than needed"


# Large answers


def response(request_id: str, payload: bytes, **headers: str) -> bytes:
    return encode_response(request_id, payload, headers=headers)


def carried_over(outbound: Outbound) -> Outbound:
    """What a broken connection leaves to the next one."""
    other = Outbound()
    other.put_back(outbound.take_all())
    return other


def chunks_of(outbound: Outbound) -> list[ForwardResponse]:
    """Every chunk, in the order in which they leave."""
    chunks = []
    while outbound.has_large:
        message, _ = outbound.take_chunk()
        chunks.append(ConnectionMessage.FromString(message).response)
    return chunks


def joined(chunks: list[ForwardResponse]) -> dict[str, ForwardResponse]:
    joiners: dict[str, ChunkJoiner] = {}
    whole = {}
    for chunk in chunks:
        joiner = joiners.setdefault(chunk.request_id, ChunkJoiner(1 << 30))
        response = joiner.add(chunk)
        if response is not None:
            whole[chunk.request_id] = response
    return whole


@given(st.binary(max_size=20_000), st.booleans())
def test_an_answer_that_is_too_large_leaves_in_chunks_that_make_it_up(payload, encoded) -> None:
    outbound = Outbound()
    outbound.agree(1024, chunks=True)
    whole = response("r1", payload, **{"x-a": "b"})
    if encoded:
        outbound.put(patient(whole))
    else:
        outbound.put(LargeAnswer(response("r1", b"gone", **{"x-a": "b"}), None, payload))
    answers = taken(outbound)
    if answers:
        assert len(whole) <= 1024
        (sent,) = answers
        assert ConnectionMessage.FromString(sent) == ConnectionMessage.FromString(whole)
        return
    chunks = chunks_of(outbound)
    assert all(ConnectionMessage(response=chunk).ByteSize() <= 1024 for chunk in chunks)
    assert joined(chunks)["r1"] == ConnectionMessage.FromString(whole).response
    assert outbound.large_bytes == 0
    assert not outbound


def test_large_answers_take_turns_chunk_by_chunk() -> None:
    outbound = Outbound()
    outbound.agree(1024, chunks=True)
    outbound.put(patient(response("r1", b"1" * 5000)))
    outbound.put(patient(response("r2", b"2" * 2000)))
    assert outbound.large_bytes >= 7000
    assert not taken(outbound), "they are no ordinary answers"
    chunks = chunks_of(outbound)
    assert [chunk.request_id for chunk in chunks][:6] == ["r1", "r2"] * 3
    whole = joined(chunks)
    assert {each: whole[each].payload for each in whole} == {"r1": b"1" * 5000, "r2": b"2" * 2000}


def test_a_chunk_is_small_however_much_the_peer_takes() -> None:
    outbound = Outbound()
    outbound.agree(64 << 20, chunks=True)
    outbound.put(LargeAnswer(response("r1", b""), None, bytes(100 << 20)))
    message, last = outbound.take_chunk()
    assert len(message) < 300_000
    assert last is None


def test_without_chunks_a_large_answer_becomes_the_error_of_its_request() -> None:
    refused: list[str] = []
    outbound = Outbound(refused.append)
    outbound.agree(1024, chunks=False)
    outbound.put(answer(response("r1", b"x" * 2000), NOW, method="/echo.Echo/Say"))
    assert not outbound.has_large
    (failed,) = outbound.take_answers(1)
    failure = ConnectionMessage.FromString(failed[0]).response
    assert (failure.request_id, failure.status_code) == ("r1", 500)
    assert failure.error_message.startswith("/echo.Echo/Say: message of 2,")
    assert "is larger than the limit of 1,024 bytes" in failure.error_message
    assert failed[1] == NOW
    (said,) = refused
    assert said.startswith("/echo.Echo/Say request_id='r1': the answer was not sent: message of")


def test_a_framed_answer_fails_in_kind() -> None:
    outbound = Outbound()
    outbound.agree(1024, chunks=False)
    outbound.put(patient(encode_response("r1", b"x" * 2000, framed=True)))
    failure = ConnectionMessage.FromString(taken(outbound)[0]).response
    assert failure.headers["content-type"] == "application/grpc"


@pytest.mark.parametrize("agreed", ["before", "after"])
def test_headers_that_fit_into_no_message_fail_the_request(agreed) -> None:
    outbound = Outbound()
    if agreed == "before":
        outbound.agree(1024, chunks=True)
    outbound.put(patient(response("r1", b"x", **{"x-a": "y" * 2000})))
    if agreed == "after":
        outbound.agree(1024, chunks=True)
    failure = ConnectionMessage.FromString(taken(outbound)[0]).response
    assert failure.status_code == 500
    assert "of headers does not go into chunks of at most 1,024" in failure.error_message
    assert not outbound


def test_large_answers_wait_until_the_connections_terms_are_known() -> None:
    outbound = Outbound()
    outbound.put(LargeAnswer(response("r1", b""), None, b"x" * 2000))
    outbound.put(patient(response("r2", b"x" * 2000)))
    outbound.put(patient(b"small"))
    assert not outbound.has_large
    outbound.agree(1024, chunks=True)
    assert taken(outbound) == [b"small"]
    assert set(joined(chunks_of(outbound))) == {"r1", "r2"}


def test_after_a_break_an_answer_starts_again_with_its_first_chunk() -> None:
    outbound = Outbound()
    outbound.agree(1024, chunks=True)
    outbound.put(patient(response("r1", b"x" * 5000)))
    outbound.take_chunk()
    outbound.take_chunk()
    outbound = carried_over(outbound)
    outbound.agree(2048, chunks=True)
    chunks = chunks_of(outbound)
    assert chunks[0].response_stream_info.chunk_index == 0
    assert len(chunks[0].payload) > 1024
    assert joined(chunks)["r1"].payload == b"x" * 5000


def test_after_a_break_an_answer_fails_where_there_are_no_chunks() -> None:
    outbound = Outbound()
    outbound.agree(1024, chunks=True)
    outbound.put(patient(response("r1", b"x" * 5000)))
    outbound.take_chunk()
    outbound = carried_over(outbound)
    outbound.agree(1024, chunks=False)
    failure = ConnectionMessage.FromString(taken(outbound)[0]).response
    assert (failure.request_id, failure.status_code) == ("r1", 500)
    assert outbound.large_bytes == outbound.answer_bytes == 0


def test_after_a_break_an_answer_that_fits_is_sent_whole() -> None:
    outbound = Outbound()
    outbound.agree(1024, chunks=True)
    whole = response("r1", b"x" * 5000)
    outbound.put(patient(whole))
    outbound.take_chunk()
    outbound = carried_over(outbound)
    outbound.agree(1 << 20, chunks=False)
    assert taken(outbound) == [whole]


def test_a_large_answer_whose_last_chunk_may_not_have_left_is_put_back_whole() -> None:
    outbound = Outbound()
    outbound.agree(1024, chunks=True)
    outbound.put(patient(response("r1", b"x" * 1500)))
    assert outbound.take_chunk()[1] is None
    _, finished = outbound.take_chunk()
    assert finished is not None
    assert outbound.large_bytes == 0
    outbound.put_back([patient(b"small"), finished])
    assert outbound.large_bytes == finished.size
    assert taken(outbound) == [b"small"]
    assert joined(chunks_of(outbound))["r1"].payload == b"x" * 1500


def test_large_answers_that_nobody_waits_for_are_dropped_and_counted_at_a_new_connection() -> None:
    outbound = Outbound()
    outbound.put(LargeAnswer(response("late", b""), NOW - 1, b"x" * 2000))
    outbound.put(LargeAnswer(response("in time", b""), NOW + 1, b"x" * 2000))
    assert outbound.drop_expired(NOW) == 1
    outbound.agree(1024, chunks=True)
    assert set(joined(chunks_of(outbound))) == {"in time"}


def test_a_cancelled_answer_stops_in_mid_air_and_others_go_on() -> None:
    outbound = Outbound()
    outbound.agree(1024, chunks=True)
    outbound.put(patient(response("r1", b"1" * 5000)))
    outbound.put(patient(response("r2", b"2" * 5000)))
    outbound.take_chunk()
    outbound.withdraw({"r1", "never was"})
    assert set(joined(chunks_of(outbound))) == {"r2"}
    assert outbound.large_bytes == 0


def test_more_large_answers_than_memory_is_for_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revconn.core.sending._MOST_LARGE_BYTES", 10_000)
    outbound = Outbound()
    outbound.agree(1024, chunks=True)
    outbound.put(patient(response("alone", b"x" * 20_000)))
    outbound.put(patient(response("too many", b"x" * 2000)))
    failure = ConnectionMessage.FromString(taken(outbound)[0]).response
    assert (failure.request_id, failure.status_code) == ("too many", 429)
    assert set(joined(chunks_of(outbound))) == {"alone"}


def test_of_what_may_be_too_much_large_answers_are_dropped_first() -> None:
    outbound = holding(patient(b"small"))
    outbound.put(LargeAnswer(response("r1", b""), None, b"x" * 2000))
    outbound.put(LargeAnswer(response("r2", b""), None, b"x" * 2000))
    assert outbound.drop_oldest(100) == 2
    assert outbound.large_bytes == 0
    assert taken(outbound) == [b"small"]


# What left and may not have arrived


def test_what_left_shortly_before_is_in_doubt_and_what_left_long_ago_is_not() -> None:
    sent = Sent(doubt=10.0, most_bytes=1000)
    sent.add([patient(b"long ago")], NOW)
    sent.add([patient(b"a1"), patient(b"a2")], NOW + 1)
    sent.add([patient(b"a3")], NOW + 9)
    assert [each[0] for each in sent.take(NOW + 10)] == [b"a1", b"a2", b"a3"]
    assert sent.take(NOW + 10) == []


def test_nobody_waits_for_a_doubtful_answer_past_its_deadline() -> None:
    sent = Sent(doubt=10.0, most_bytes=1000)
    sent.add([answer(b"late", NOW + 2), answer(b"in time", NOW + 3)], NOW)
    assert sent.take(NOW + 2) == [answer(b"in time", NOW + 3, has_left=True)]


def test_a_doubtful_answer_without_a_deadline_gets_one_so_that_it_is_not_carried_for_ever() -> None:
    sent = Sent(doubt=10.0, most_bytes=1000)
    sent.add([patient(b"patient")], NOW)
    again = sent.take(NOW + 5)
    assert again == [answer(b"patient", NOW + 10, has_left=True)]
    sent.add(again, NOW + 6)
    assert sent.take(NOW + 10) == []


def test_a_doubtful_answer_that_is_given_up_is_not_counted_it_may_have_arrived() -> None:
    sent = Sent(doubt=10.0, most_bytes=1000)
    sent.add(
        [answer(b"late", NOW + 5), answer(b"too many", NOW + 9), answer(b"last", NOW + 9)], NOW
    )
    outbound = holding(*sent.take(NOW))
    assert outbound.drop_expired(NOW + 5) == 0
    assert outbound.drop_oldest(5) == 0
    assert taken(outbound) == [b"last"]


@given(st.lists(MESSAGES, max_size=20), st.integers(min_value=0, max_value=4000))
def test_the_youngest_batches_that_fit_are_kept(batches: list[list[bytes]], most: int) -> None:
    sent = Sent(doubt=10.0, most_bytes=most)
    for batch in batches:
        sent.add([patient(message) for message in batch], NOW)
    kept = [each[0] for each in sent.take(NOW)]
    everything = [message for batch in batches for message in batch]
    assert kept == everything[len(everything) - len(kept) :]
    assert sum(map(len, kept)) <= most


def test_a_large_answer_is_in_doubt_as_any_other_and_then_is_no_news() -> None:
    sent = Sent(doubt=10.0, most_bytes=1 << 20)
    sent.add([LargeAnswer(response("r1", b""), None, b"x" * 2000)], NOW)
    (again,) = sent.take(NOW + 5)
    assert isinstance(again, LargeAnswer)
    assert (again.deadline, again.has_left) == (NOW + 10, True)
    outbound = Outbound()
    outbound.put(again)
    assert outbound.drop_expired(NOW + 10) == 0


def test_in_whatever_form_a_doubtful_answer_waits_it_is_known_to_have_left() -> None:
    whole = response("r1", b"x" * 5000)
    small = Outbound()
    small.agree(1024, chunks=True)
    small.put(answer(whole, NOW + 10, has_left=True))
    (in_chunks,) = small.take_all()
    assert isinstance(in_chunks, LargeAnswer)
    assert in_chunks.has_left
    ample = Outbound()
    ample.agree(1 << 20, chunks=True)
    ample.put_back([in_chunks])
    assert ample.take_all() == [answer(whole, NOW + 10, has_left=True)]


# Those that wait for a connection


def test_what_is_held_is_awaited_until_the_last_of_its_deadlines() -> None:
    held = Held(pytest.fail)
    assert held.awaited_for(NOW) == 0
    held.put(answer(b"a", NOW + 5))
    held.put_back([answer(b"b", NOW + 9, has_left=True), answer(b"c", NOW + 7)])
    assert [held.awaited_for(NOW + after) for after in (0, 6, 9, 10)] == [9, 3, 0, 0]
    assert held.drop_expired(NOW + 6) == 1
    assert held.awaited_for(NOW + 6) == 3
    held.put(patient(b"d"))
    assert held.awaited_for(NOW + 1e9) == math.inf
    assert held.abandon() == 2, "one has left once"
    assert held.awaited_for(NOW) == 0


def test_what_was_withdrawn_is_not_awaited() -> None:
    held = Held(pytest.fail)
    held.put(LargeAnswer(response("r1", b""), None, b"x" * 2000))
    held.withdraw({"r1"})
    assert held.awaited_for(NOW) == 0


@pytest.mark.parametrize("latest", [NOW + 60, None])
def test_what_was_dropped_for_want_of_room_is_not_awaited(latest: float | None) -> None:
    held = Held(pytest.fail)
    held.put(answer(b"the oldest", latest))
    held.put(answer(b"b", NOW + 2))
    assert held.drop_oldest(5) == 1
    held.put(answer(b"c", NOW + 3))
    assert held.awaited_for(NOW) == 3
    held.put(answer(b"d", NOW + 4))
    assert held.awaited_for(NOW) == 4


def test_copies_of_one_answer_are_abandoned_once() -> None:
    held = Held(pytest.fail)
    large = LargeAnswer(response("r1", b""), None, b"x" * 2000)
    for has_left in (False, False, True):
        held.put(answer(b"a" if has_left else b"b", None, has_left=has_left))
    held.put(answer(b"a", None))
    held.put(large)
    assert held.abandon() == 2
