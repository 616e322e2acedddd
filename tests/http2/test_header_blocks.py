"""HPACK, read and written, against the hpack package."""

from __future__ import annotations

from collections.abc import Sequence

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.status import ProtocolError
from revconn.http2.headers import (
    ENTRY_OVERHEAD,
    TABLE_SIZE,
    Decoder,
    Field,
    FieldKind,
    encode_fields,
    field,
)

Header = tuple[bytes, bytes]

PLENTY = 1 << 30
STATIC = [(name, value) for name, value in hpack.hpack.HeaderTable.STATIC_TABLE]

# Few of some, so that they come again; and whatever there is.
names = st.one_of(st.sampled_from([b"a", b"b-bin", b":path", b"grpc-timeout"]), st.binary())
values = st.one_of(st.sampled_from([b"", b"1", b"/a.A/B", b"x" * 300]), st.binary(max_size=2000))
headers = st.lists(st.one_of(st.tuples(names, values), st.sampled_from(STATIC)), max_size=12)


class Block:
    """Headers to be encoded as one block: how, and behind which changes of the table's size."""

    def __init__(self, sizes: list[int], fields: list[Header], secret: bool, huffman: bool) -> None:
        self.sizes = sizes
        self.fields = fields
        self.secret = secret
        self.huffman = huffman

    def __repr__(self) -> str:
        return f"Block({self.sizes}, {self.fields}, {self.secret}, {self.huffman})"

    def encode(self, encoder: hpack.Encoder) -> bytes:
        for size in self.sizes:
            if size != encoder.header_table_size:  # or it forgets to say so
                encoder.header_table_size = size
        kind = hpack.NeverIndexedHeaderTuple if self.secret else hpack.HeaderTuple
        return encoder.encode([kind(*each) for each in self.fields], huffman=self.huffman)


blocks = st.builds(
    Block,
    st.lists(st.sampled_from([0, 40, 100, 1000, TABLE_SIZE]), max_size=2),
    headers,
    st.booleans(),
    st.booleans(),
)


def pairs(fields: Sequence[Field]) -> list[Header]:
    return [(each.name, each.value) for each in fields]


def size(fields: Sequence[Header]) -> int:
    return sum(ENTRY_OVERHEAD + len(name) + len(value) for name, value in fields)


# Reading


@given(st.lists(blocks, max_size=8))
def test_whatever_is_encoded_is_read_as_it_was(sent: list[Block]) -> None:
    encoder, decoder = hpack.Encoder(), Decoder(PLENTY)
    for each in sent:
        assert pairs(decoder.decode(each.encode(encoder))) == each.fields
        assert decoder.list_size == size(each.fields)
        assert decoder._size == size(pairs(decoder._table or ())) <= decoder._limit


@given(st.lists(blocks, max_size=8), st.integers(0, 500))
def test_a_list_over_the_limit_is_cut_and_the_table_goes_on(sent: list[Block], most: int) -> None:
    encoder, decoder = hpack.Encoder(), Decoder(most)
    for each in sent:
        read = pairs(decoder.decode(each.encode(encoder)))
        assert decoder.list_size == size(each.fields)
        assert size(read) <= most
        if size(each.fields) <= most:
            assert read == each.fields


def read_by_hpack(decoder: hpack.Decoder, block: bytes) -> list[Header] | None:
    try:
        return [tuple(each) for each in decoder.decode(block, raw=True)]
    except hpack.HPACKError:
        return None


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """What was a block before somebody wrote into it."""
    block = bytearray(draw(blocks).encode(hpack.Encoder()))
    for _ in range(draw(st.integers(0, 3))):
        if block:
            block[draw(st.integers(0, len(block) - 1))] = draw(st.integers(0, 255))
    return bytes(block[: draw(st.integers(0, len(block)))] if draw(st.booleans()) else block)


@given(st.lists(st.one_of(st.binary(max_size=60), damaged()), max_size=6))
def test_what_is_no_hpack_is_a_protocol_error_and_all_else_is_read_as_hpack_reads_it(
    received: list[bytes],
) -> None:
    reference, decoder = hpack.Decoder(max_header_list_size=PLENTY), Decoder(PLENTY)
    for block in received:
        expected = read_by_hpack(reference, block)
        problem = ""
        try:
            assert pairs(decoder.decode(block)) == expected
        except ProtocolError as error:
            problem = str(error)
        if problem:
            # What counts more than any limit of ours is read no further than that, and a table is
            # resized twice in a block at most.
            ours = ("an endless integer", "a change of the table's size that may not be")
            assert expected is None or problem.endswith(ours)
            return


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (b"\x80", "index that there is not"),
        (b"\xbe", "index that there is not"),  # the first of an empty table
        (b"\xff\x00", "index that there is not"),
        (b"\x40", "cut short"),
        (b"\x40\x01a\x05b", "cut short"),
        (b"\x82\x20", "a change of the table's size that may not be"),
        (b"\x3f\xe2\x1f", "a change of the table's size that may not be"),  # one more than 4,096
        (b"\xff\xff\xff\xff\xff\xff\x00", "an endless integer"),
        (b"\x40\x01a\x81\x00", "HPACK"),  # Huffman, padded with what is no padding
    ],
)
def test_what_ends_a_connection_is_said(block: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        Decoder(PLENTY).decode(block)


def test_the_same_bytes_mean_something_else_once_the_table_has_changed() -> None:
    encoder, decoder = hpack.Encoder(), Decoder(PLENTY)
    first = b"\xbe"  # what is first in the table
    decoder.decode(encoder.encode([(b"a", b"1")]))
    assert pairs(decoder.decode(first)) == pairs(decoder.decode(first)) == [(b"a", b"1")]
    decoder.decode(encoder.encode([(b"a", b"2")]))
    assert pairs(decoder.decode(first)) == [(b"a", b"2")]
    encoder.header_table_size = 0
    decoder.decode(encoder.encode([]))
    with pytest.raises(ProtocolError, match="an index that there is not"):
        decoder.decode(first)


def test_a_peer_that_says_ever_new_things_fills_no_memory() -> None:
    encoder, decoder = hpack.Encoder(), Decoder(PLENTY)
    for number in range(1000):
        decoder.decode(encoder.encode([(b"name-%d" % number, b"x" * 100)]))
        decoder.decode(encode_fields([(b"name-%d" % number, b"x" * 100)]))
    assert decoder._size <= TABLE_SIZE
    assert len(decoder._table or ()) <= TABLE_SIZE // ENTRY_OVERHEAD
    assert len(decoder._remembered) <= 64


def test_headers_that_are_repeated_are_one_object() -> None:
    encoder, decoder = hpack.Encoder(), Decoder(PLENTY)
    said = [(b"a", b"1"), (b":path", b"/a.A/B")]
    first, second = (decoder.decode(encoder.encode(said)) for _ in range(2))
    assert [id(each) for each in first] == [id(each) for each in second]


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ((b"a", b"1"), FieldKind.ORDINARY),
        ((b"te", b"trailers"), FieldKind.ORDINARY),
        ((b":path", b"/"), FieldKind.PSEUDO),
        ((b"grpc-encoding", b"gzip"), FieldKind.SPECIAL),
        ((b"content-length", b"5"), FieldKind.SPECIAL),
        ((b"content-type", b"application/grpc"), FieldKind.CONTENT_TYPE),
        ((b"grpc-timeout", b"1S"), FieldKind.TIMEOUT),
        ((b"", b"1"), FieldKind.MALFORMED),
        ((b":", b"1"), FieldKind.MALFORMED),
        ((b"A", b"1"), FieldKind.MALFORMED),
        ((b"a b", b"1"), FieldKind.MALFORMED),
        ((b"a\xff", b"1"), FieldKind.MALFORMED),
        ((b"a", b"1\n2"), FieldKind.MALFORMED),
        ((b"a", b"\x00"), FieldKind.MALFORMED),
        ((b"a", b" 1"), FieldKind.MALFORMED),
        ((b"a", b"1\t"), FieldKind.MALFORMED),
        ((b"te", b"gzip"), FieldKind.MALFORMED),
        ((b"connection", b"close"), FieldKind.MALFORMED),
        ((b"transfer-encoding", b"chunked"), FieldKind.MALFORMED),
    ],
)
def test_headers_are_told_apart_as_http2_does(header: Header, kind: int) -> None:
    assert field(*header).kind == kind


def test_a_value_is_shown_nowhere() -> None:
    assert repr(field(b"authorization", b"secret")) == "Field(b'authorization')"


# Writing


@given(headers, headers)
def test_what_is_written_is_read_by_hpack_and_leaves_its_table_alone(
    sent: list[Header], before: list[Header]
) -> None:
    block, reference = encode_fields(sent), hpack.Decoder(max_header_list_size=PLENTY)
    reference.decode(hpack.Encoder().encode(before), raw=True)
    table = list(reference.header_table.dynamic_entries)
    for _ in range(2):
        assert read_by_hpack(reference, block) == sent
    assert list(reference.header_table.dynamic_entries) == table
    assert pairs(Decoder(PLENTY).decode(block)) == sent
