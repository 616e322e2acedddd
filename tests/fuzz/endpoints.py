"""What is fuzzed of a server: its endpoint and its decoder of headers, without I/O.

A peer says whatever it likes, in whatever pieces; who is told of it answers, refuses, streams,
resets, holds and ends, in every callback. Nothing is raised, windows stay true, what is kept is
bounded, and whatever is said back is HTTP/2.
"""

from __future__ import annotations

import contextlib

from revconn.core.framing import GzipInflater
from revconn.core.rope import Data
from revconn.core.status import ProtocolError, StatusCode
from revconn.http2.endpoint import Endpoint
from revconn.http2.grpc import MessageRefused
from revconn.http2.headers import TABLE_SIZE, Decoder, Field
from revconn.http2.requests import (
    OK_TRAILERS,
    OPENING,
    RequestHeads,
    closing_block,
    not_grpc,
    refusal_block,
)
from revconn.http2.streams import Receiver, Stream
from revconn.http2.writing import CONNECTION_WINDOW, LONGEST_FRAME_OUT, Acceptor, Settings
from tests.fuzz.judge import Judge, require
from tests.fuzz.said import Said, headers_block
from tests.fuzz.tape import Tape

__all__ = ["decode_blocks", "serve"]

MOST_HELD = 40_000  # bytes: the beginning of one frame, and what came with it
MOST_OUT = 6 << 20  # bytes that wait for a peer that does not read
_LIMIT = 100_000  # bytes of a message
_LIST = 16 << 10
_REFUSED = refusal_block(StatusCode.UNAVAILABLE, "nobody is there")
_ENDED = closing_block(StatusCode.INTERNAL, "it broke")
_MESSAGES = (b"", b"x" * 10, b"y" * 9_000, b"z" * 100_000)


def decode_blocks(data: bytes) -> None:
    """Header blocks of one connection, made of ``data``."""
    tape = Tape(data)
    decoder = Decoder(_LIST)
    heads = RequestHeads()
    while not tape.is_over:
        block = tape.bytes(60) if tape.one_in(100) else headers_block(tape, tape.one_in(10))
        try:
            fields = decoder.decode(block)
        except ProtocolError:
            return
        kept = sum(field.size for field in fields)
        require(kept <= min(_LIST, decoder.list_size), "more headers than are taken")
        _check_table(decoder)
        head = heads.parse(fields, decoder.list_size)
        require(isinstance(head.forwarded, bytes), "headers that cannot be sent on")
        _ = head.seconds, head.metadata()


def _check_table(decoder: Decoder) -> None:
    entries = decoder._table or ()
    size = sum(entry.size for entry in entries)
    require(size == decoder._size <= decoder._limit <= TABLE_SIZE, "a table of a wrong size")
    remembered = sum(len(fields) for fields, _ in decoder._remembered.values())
    require(remembered <= 64 * 60, f"{remembered} headers are remembered")


class _Receiver(Receiver):
    """Does on each occasion whatever the tape says."""

    def __init__(self, side: _Side, stream: Stream) -> None:
        self.side = side
        self.stream = stream
        self.is_ended = self.is_closed = False
        stream.receiver = self

    def take(self, messages: list[Data], *, ended: bool) -> None:
        require(not self.is_closed, "messages of a stream that is over")
        require(not self.is_ended, "messages after the end")
        require(all(len(message) <= _LIMIT for message in messages), "too large a message")
        self.is_ended = ended
        self.side.act(self)

    def refuse(self, error: ProtocolError) -> None:
        require(not self.is_closed, "a refusal on a stream that is over")
        require(str(error).isprintable(), "words that cannot be read")
        self.finish(_REFUSED, _ENDED)

    def break_off(self, reason: str) -> None:
        self.side.act_elsewhere(self)

    def resume(self) -> None:
        require(not self.is_closed, "room on a stream that is over")
        self.side.act(self)

    def finish(self, whole: bytes, trailers: bytes) -> None:
        stream = self.stream
        if stream.is_open:
            stream.finish(trailers)
        elif not stream.is_local_closed:
            stream.is_open = True
            stream.finish(whole)


class _Side(Acceptor):
    """The server."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.receivers: dict[Stream, _Receiver] = {}
        self.wishes: dict[Stream, None] = {}
        self.granted = 0
        self.is_woken = False
        self._depth = 0
        self._heads = RequestHeads()
        settings = Settings(
            max_streams=tape.of((1, 3, 100)),
            stream_window=tape.of((1, 1_000, 65_535, 1 << 20)),
            message_limit=_LIMIT,
            header_list=_LIST,
            turn=tape.of((1, 64)),
        )
        self.endpoint = Endpoint(settings, self)
        if tape.one_in(2):
            self.endpoint.allow_frames(tape.of((40_000, 256 << 10)))

    # What the endpoint says

    def accept(self, stream: Stream, fields: list[Field], size: int, *, ended: bool) -> None:
        head = self._heads.parse(fields, size)
        receiver = self.receivers[stream] = _Receiver(self, stream)
        stream.content_left = head.content_length
        if head.encoding in (b"gzip", b"deflate"):
            stream.inflate = GzipInflater(_LIMIT, head.encoding.decode())
        if head.problem and not self.tape.one_in(4):
            stream.reset(1)
        elif self.tape.one_in(24):
            stream.ignore()
            headers, body = not_grpc(head)
            stream.open(headers)
            stream.end_data(body)
        elif self.tape.one_in(4):
            self.act(receiver)
        if ended and not receiver.is_closed:
            stream.receiver.take([], ended=True)

    def wake(self) -> None:
        self.is_woken = True

    def close_stream(self, stream: Stream) -> None:
        receiver = self.receivers.pop(stream)  # once for each
        receiver.is_closed = True
        self.return_credit(stream)
        require(stream.unsent_bytes == 0, "something to send on a stream that is over")
        if self.tape.one_in(8):
            self.act_elsewhere(receiver)

    def want_credit(self, stream: Stream) -> None:
        require(stream in self.receivers, "credit for a stream that is over")
        require(stream.missing > 0, "credit for nothing")
        if not stream.granted:
            if self.tape.one_in(16):
                stream.give_up(MessageRefused("there is no room"))
                return
            self.take_credit(stream, stream.missing - stream.wanted)
        if stream.wanted:
            self.wishes[stream] = None
            if self.tape.one_in(2):
                self.give(stream)

    def return_credit(self, stream: Stream) -> None:
        self.wishes.pop(stream, None)
        self.granted -= stream.granted
        stream.granted = 0

    def take_credit(self, stream: Stream, size: int) -> None:
        stream.granted += size
        self.granted += size

    def give(self, stream: Stream) -> None:
        self.wishes.pop(stream, None)
        self.take_credit(stream, stream.wanted)
        self.endpoint.grant(stream)

    # What it does

    def act_elsewhere(self, receiver: _Receiver) -> None:
        """Do something to another stream, in the midst of what happens to this one."""
        others = [each for each in self.receivers.values() if each is not receiver]
        if others and self._depth < 3:
            self.act(self.tape.of(others))

    def act(self, receiver: _Receiver) -> None:
        """Do something to a stream."""
        if self._depth > 3:
            return
        self._depth += 1
        tape, stream, endpoint = self.tape, receiver.stream, self.endpoint
        choice = tape.number(24)
        if choice < 4:
            stream.respond(OPENING, tape.of(_MESSAGES), OK_TRAILERS)
        elif choice < 8:
            if not (stream.is_open or stream.is_local_closed):
                stream.open(OPENING)
            if stream.is_open:
                stream.send([tape.of(_MESSAGES) for _ in range(tape.number(3))])
        elif choice < 10:
            receiver.finish(_REFUSED, OK_TRAILERS)
        elif choice == 10:
            stream.reset(8)
        elif choice < 13:
            stream.hold()
        elif choice < 15:
            stream.release()
        elif choice == 15:
            stream.widen(1 << 20)
        elif choice == 16 and not stream.is_local_closed:
            stream.await_room()
        elif choice < 19:
            self.act_elsewhere(receiver)
        elif choice == 19:
            stream.drop_unsent()
            receiver.finish(_REFUSED, _ENDED)
        elif choice == 20:
            stream.ignore()
        elif choice == 21 and tape.one_in(8) and not endpoint.is_leaving:
            tape.of((endpoint.end, endpoint.go_away, lambda: endpoint.lose("gone")))()
        elif choice == 22:
            endpoint.charge(5)
            endpoint.ping()
        self._depth -= 1

    def check(self, added: int) -> None:
        """See whether all is in order, between two calls of the endpoint's."""
        endpoint = self.endpoint
        settings, streams = endpoint.settings, endpoint.streams
        require(set(streams.values()) == set(self.receivers), "streams nobody was told of")
        require(len(streams) <= settings.max_streams, "more streams than are allowed")
        unsent = sum(stream.unsent_bytes for stream in streams.values())
        require(endpoint.unsent_bytes == unsent, "unsent bytes of no stream")
        require(0 <= endpoint.receive_window <= CONNECTION_WINDOW, "a window out of bounds")
        require(endpoint.send_window >= 0, "more was sent than the connection's window")
        granted = 0
        for stream in streams.values():
            waits = sum(map(len, stream._unsent or ()))
            require(waits == stream.unsent_bytes, "unsent bytes that are not there")
            most = max(stream.window, 1 << 20) + stream.granted
            require(stream.is_deaf or -1 < stream.receive_window <= most, "a window out of bounds")
            granted += stream.granted
            if stream.is_deaf:
                require(stream._reader is None and not stream.wanted, "a deaf stream keeps things")
        require(granted == self.granted, "credit that was not returned")
        for waiting in (endpoint._waiting or (), endpoint._thirsty or (), self.wishes):
            require(all(each in self.receivers for each in waiting), "a stream that is over waits")
        most_held = max(MOST_HELD, endpoint.longest_inbound) + added
        require(len(endpoint._held or b"") <= most_held, "too much is held")
        require(len(endpoint._block or b"") <= 200_000, "headers without end")
        require(len(endpoint._reset or ()) <= 1_000, "too many ids are kept")
        require(endpoint.out_bytes <= MOST_OUT, f"{endpoint.out_bytes:,} bytes wait")
        _check_table(endpoint._decoder)
        if endpoint.is_ended:
            require(not streams, "streams of a connection that is over")


def serve(data: bytes) -> Endpoint:
    """Let a peer say what ``data`` makes of frames, to a server that does what it makes of them."""
    tape = Tape(data)
    side = _Side(tape)
    said = Said(tape, lambda: tape.of(_MESSAGES))
    judge = Judge()
    endpoint = side.endpoint
    now, rest = 0.0, b""
    said_bytes = said.begin()
    while not (tape.is_over and not said_bytes):
        size = tape.of((1 << 20, 1 << 20, 1, 9, 100, 20_000))
        if len(said_bytes) > 200 * size:
            size = 20_000
        piece, said_bytes = said_bytes[:size], said_bytes[size:]
        rest = endpoint.receive(rest + piece)
        side.check(len(rest) + len(piece))
        now += tape.of((0.0, 0.001, 1.0))
        endpoint.settle(now)
        for stream in tuple(side.wishes):
            if tape.one_in(3):
                side.give(stream)
        if side.receivers and tape.one_in(3):
            side.act(tape.of(list(side.receivers.values())))
        if not tape.one_in(4):
            _write(side, judge)
        side.check(len(rest) + len(piece))
        if endpoint.is_ended:
            break
        if not tape.is_over and len(said_bytes) < 1_000:
            said_bytes += said.next()
    while rest and not endpoint.is_ended:
        rest = endpoint.receive(rest)
    _write(side, judge)
    endpoint.lose("the end")
    side.check(len(rest))
    require(not side.receivers, "streams that outlive their connection")
    return endpoint


def _write(side: _Side, judge: Judge) -> None:
    endpoint = side.endpoint
    # As a wire does: once, and what found no room is for the next time.
    for _ in range(3):
        output = endpoint.take()
        require(endpoint.out_bytes == 0, "what was taken waits")
        with contextlib.suppress(StopIteration):
            judge.hear(b"".join(output), endpoint.last_id, LONGEST_FRAME_OUT)
        if not endpoint.is_waiting:
            break
        endpoint.pump()
    require(judge.is_between_frames or bool(endpoint.out_bytes), "half a frame")
