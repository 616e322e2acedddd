"""Header blocks (HPACK, RFC 7541): what a peer sends, and what is sent to it.

The static table and the Huffman code are hpack's. The dynamic table is ours: its entries are
:class:`Field` objects, which keep what was found out about them, so that a header that a caller
repeats with every call is checked, and encoded for a connector, once.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from functools import lru_cache

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from revconn.core.metadata import encode_header
from revconn.core.status import ProtocolError

__all__ = ["ENTRY_OVERHEAD", "Decoder", "Field", "FieldKind", "encode_fields", "field"]

ENTRY_OVERHEAD = 32
"""Bytes that each header counts besides its name and value (RFC 7541, section 4.1)."""

TABLE_SIZE = 4096  # bytes, of the dynamic table: the default, which we never change

_LONGEST_INTERNED = 256  # bytes: of what is longer few come twice
_MOST_INTERNED = 4096
_MOST_REMEMBERED = 64  # whole blocks, of one connection
_LONGEST_REMEMBERED = 512  # bytes, of such a block
_LARGEST_REMEMBERED = 2 << 10  # bytes, of the header list in it: a byte may stand for any header
_LONGEST_INTEGER = 4  # bytes after the prefix; a longer one counts more than any limit of ours

# RFC 9113, section 8.2.1; what gRPC allows in a name is less, and checked where it matters.
_LEGAL_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_ILLEGAL_VALUE = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]$")
_INDEXED = re.compile(rb"[\x81-\xfe]*")
_MOST_RESIZES = 2  # of the table, at the beginning of a block (RFC 7541, section 4.2)
_OF_A_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)


class FieldKind:
    """What a header is to whoever takes a request or a response in."""

    ORDINARY = 0
    PSEUDO = 1  # its name begins with a colon
    SPECIAL = 2  # it says something about the message itself
    MALFORMED = 3  # a peer that sends it breaks HTTP/2
    CONTENT_TYPE = 4
    TIMEOUT = 5  # gRPC's


_KINDS = {
    b"content-type": FieldKind.CONTENT_TYPE,
    b"grpc-timeout": FieldKind.TIMEOUT,
    b"content-length": FieldKind.SPECIAL,
    b"grpc-encoding": FieldKind.SPECIAL,
}


class Field:
    """One header. Immutable, and shared between connections.

    :ivar kind: of :class:`FieldKind`.
    :ivar size: as HTTP/2 counts it, in bytes.
    """

    __slots__ = ("_forwarded", "kind", "name", "size", "value")

    def __init__(self, name: bytes, value: bytes) -> None:
        self.name = name
        self.value = value
        self.size = ENTRY_OVERHEAD + len(name) + len(value)
        self.kind = _kind(name, value)
        self._forwarded: bytes | None = None

    @property
    def forwarded(self) -> bytes:
        """The header as an entry of ``ForwardRequest.headers``; nothing if it cannot be one."""
        if self._forwarded is None:
            self._forwarded = encode_header(self.name, self.value)
        return self._forwarded

    def __repr__(self) -> str:
        return f"Field({self.name!r})"  # the value may be a secret


def _kind(name: bytes, value: bytes) -> int:
    if name.startswith(b":"):
        return FieldKind.PSEUDO if _LEGAL_NAME.fullmatch(name, 1) else FieldKind.MALFORMED
    if not _LEGAL_NAME.fullmatch(name) or _ILLEGAL_VALUE.search(value):
        return FieldKind.MALFORMED
    if name in _OF_A_CONNECTION or (name == b"te" and value != b"trailers"):
        return FieldKind.MALFORMED
    return _KINDS.get(name, FieldKind.ORDINARY)


@lru_cache(maxsize=_MOST_INTERNED)
def _interned(name: bytes, value: bytes) -> Field:
    return Field(name, value)


def field(name: bytes, value: bytes) -> Field:
    """The header of that name and value; the same object for short ones that come often."""
    if len(name) + len(value) > _LONGEST_INTERNED:
        return Field(name, value)
    return _interned(name, value)


_STATIC = (None, *(Field(name, value) for name, value in HeaderTable.STATIC_TABLE))
_DYNAMIC_FROM = len(_STATIC)


@lru_cache(maxsize=_MOST_INTERNED)
def _decode_short(data: bytes) -> bytes:
    return decode_huffman(data)


def _plain(data: bytes) -> bytes:
    """What a string of the Huffman code says."""
    try:
        return _decode_short(data) if len(data) <= _LONGEST_INTERNED else decode_huffman(data)
    except HPACKDecodingError as error:
        raise ProtocolError(f"HPACK: {error}") from None


class Decoder:
    """One connection's header blocks, in the order in which they came. Not thread-safe.

    :param most: bytes of a header list, as HTTP/2 counts them, beyond which no more of it is kept.
        The rest is followed all the same: the table has to be what the peer thinks it is.
    """

    __slots__ = ("_limit", "_most", "_remembered", "_size", "_table", "list_size")

    def __init__(self, most: int) -> None:
        self._most = most
        self._table: deque[Field] | None = None  # an empty deque takes 600 bytes
        self._size = 0
        self._limit = TABLE_SIZE
        self._remembered: dict[bytes, tuple[list[Field], int]] = {}
        self.list_size = 0

    def decode(self, block: bytes) -> list[Field]:
        """The headers of a block, not to be changed; ``list_size`` is what they count.

        More than the limit: not all of them are there. Raises :class:`ProtocolError` for what is
        no HPACK; the connection cannot go on.
        """
        # While the table stays as it is, the same bytes mean the same headers.
        remembered = self._remembered.get(block)
        if remembered is not None:
            fields, self.list_size = remembered
            return fields
        try:
            fields, changed = self._decode(block)
        except IndexError:  # of the block, or of the table
            raise ProtocolError("HPACK: cut short, or an index that there is not") from None
        if changed:
            if self._remembered:
                self._remembered = {}
        elif (
            len(block) <= _LONGEST_REMEMBERED
            and self.list_size <= _LARGEST_REMEMBERED
            and len(self._remembered) < _MOST_REMEMBERED
        ):
            self._remembered[block] = fields, self.list_size
        return fields

    def _decode(self, block: bytes) -> tuple[list[Field], bool]:
        fields: list[Field] = []
        changed = False
        size = offset = resizes = 0
        end = len(block)
        most = self._most
        while offset < end:
            first = block[offset]
            offset += 1
            if first & 0x80:  # indexed (section 6.1)
                index = first & 0x7F
                if index == 0x7F:
                    index, offset = _integer(block, offset, index)
                entry = self._entry(index)
                if size > most:  # a row of them is cheap to send: what is not kept is not looked at
                    offset, skipped = self._skip_indexed(block, offset)
                    size += skipped
            elif first & 0xE0 == 0x20:  # a new size of the table (section 6.3)
                limit = first & 0x1F
                if limit == 0x1F:
                    limit, offset = _integer(block, offset, limit)
                resizes += 1
                if size or limit > TABLE_SIZE or resizes > _MOST_RESIZES:
                    raise ProtocolError("HPACK: a change of the table's size that may not be")
                self._limit = limit
                self._evict()
                changed = True
                continue
            else:  # literal (section 6.2), with or without a place in the table
                mask = 0x3F if first & 0x40 else 0x0F
                index = first & mask
                if index == mask:
                    index, offset = _integer(block, offset, index)
                if index:
                    name = self._entry(index).name
                else:
                    name, offset = _string(block, offset)
                value, offset = _string(block, offset)
                entry = field(name, value)
                if first & 0x40:
                    self._add(entry)
                    changed = True
            size += entry.size
            if size <= most:
                fields.append(entry)
        self.list_size = size
        return fields, changed

    def _skip_indexed(self, block: bytes, offset: int) -> tuple[int, int]:
        """Where a row of indexed headers ends, and what they count."""
        matched = _INDEXED.match(block, offset)
        assert matched is not None
        row = matched.group()
        size = sum(self._entry(octet & 0x7F).size * row.count(octet) for octet in set(row))
        return matched.end(), size

    def _entry(self, index: int) -> Field:
        if index >= _DYNAMIC_FROM:
            if self._table is None:
                raise IndexError
            return self._table[index - _DYNAMIC_FROM]
        entry = _STATIC[index]
        if entry is None:
            raise IndexError
        return entry

    def _add(self, entry: Field) -> None:
        if self._table is None:
            self._table = deque()
        self._table.appendleft(entry)
        self._size += entry.size
        if self._size > self._limit:
            self._evict()

    def _evict(self) -> None:
        while self._table and self._size > self._limit:
            self._size -= self._table.pop().size


def _integer(block: bytes, offset: int, number: int) -> tuple[int, int]:
    """An integer that did not fit into its prefix (section 5.1), and where the next thing is."""
    for shift in range(0, 7 * _LONGEST_INTEGER, 7):
        octet = block[offset]
        offset += 1
        number += (octet & 0x7F) << shift
        if octet < 0x80:
            return number, offset
    raise ProtocolError("HPACK: an endless integer")


def _string(block: bytes, offset: int) -> tuple[bytes, int]:
    first = block[offset]
    offset += 1
    length = first & 0x7F
    if length == 0x7F:
        length, offset = _integer(block, offset, length)
    end = offset + length
    if end > len(block):
        raise IndexError
    data = block[offset:end]
    return (_plain(data) if first & 0x80 else data), end


# What is sent

_INDEX_OF_NAME: dict[bytes, int] = {}
_INDEX: dict[tuple[bytes, bytes], int] = {}
for _index, (_name, _value) in enumerate(HeaderTable.STATIC_TABLE, 1):
    _INDEX_OF_NAME.setdefault(_name, _index)
    _INDEX.setdefault((_name, _value), _index)


def encode_fields(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as a block that leaves the peer's table alone: the same bytes on any connection."""
    block = bytearray()
    for name, value in fields:
        index = _INDEX.get((name, value)) if value else None
        if index is not None:
            block.append(0x80 | index)  # all of the static table's are below 127
            continue
        index = _INDEX_OF_NAME.get(name, 0)
        _put_integer(block, index, 0x0F)
        if not index:
            _put_integer(block, len(name), 0x7F)
            block += name
        _put_integer(block, len(value), 0x7F)
        block += value
    return bytes(block)


def _put_integer(block: bytearray, number: int, prefix: int) -> None:
    if number < prefix:
        block.append(number)
        return
    block.append(prefix)
    number -= prefix
    while number > 0x7F:
        block.append(number & 0x7F | 0x80)
        number >>= 7
    block.append(number)
