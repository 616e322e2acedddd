"""What is fuzzed of a gateway that takes HTTP: whole, on sockets that are made up.

Callers say in HTTP/1.1 what is a request, or nearly one, in whatever pieces; a connector answers
with responses, or with what is none. Nothing is raised or logged at ERROR, what is kept is bounded,
every request is answered or its connection ends, and so is one that is made beside all that.
"""

from __future__ import annotations

import asyncio
from typing import Any

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    Heartbeat,
    StreamFrame,
    StreamStatus,
)
from revconn.core.framing import frame as prefix
from revconn.core.web import body_parts, response_part
from revconn.gateway.http1 import Http1Endpoint
from revconn.gateway.keys import ApiKeys
from revconn.gateway.shared import Settings
from revconn.http2.frames import (
    ACK,
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from revconn.http2.grpc import request_headers
from revconn.http2.headers import encode_fields
from tests.fuzz.gateways import KEY, LIMITS, Gateways
from tests.fuzz.judge import http1_answers, require
from tests.fuzz.said_http1 import SaidHttp1
from tests.fuzz.tape import Tape
from tests.support.quick_loop import QuickSocket

__all__ = ["WebGateways"]

_SERVICE = "web.App"
_BESIDE = b"GET /beside HTTP/1.1\r\nHost: a\r\n\r\n"
_MOST_KEPT = (64 << 10) + (1 << 20)  # bytes: what waits, and what was read at once
_MOST_OUT = 2 << 20
_SETTINGS = b"\0\0"  # and what else such a frame begins with
_TURN = 64 << 10  # bytes that h11 is given at once
_PATH = "/registry.RegistryService/EstablishConnection"
_HEADERS = (
    (b"content-type", b"text/plain"),
    (b"content-length", b"5"),
    (b"content-length", b"0"),
    (b"content-length", b"x"),
    (b"transfer-encoding", b"chunked"),
    (b"connection", b"close"),
    (b"x-split", b"a\r\nb"),
    (b"na me", b"x"),
    (b"set-cookie", b"\xff"),
)  # fmt: skip


class _Connector:
    """Answers HTTP as the tape says; what is asked for beside it answers as one should."""

    def __init__(self, sock: QuickSocket, tape: Tape) -> None:
        self.sock = sock
        self._tape = tape
        self._read = 0  # bytes of what it heard that were read
        self._messages = b""
        self._unanswered: set[int] = set()
        self._is_over = False
        register = ConnectionRegister(
            api_key=KEY, services=[_SERVICE], streaming_methods=[f"/{_SERVICE}/Serve"]
        )
        features = {"revconn-features": "cancel,chunks,drain,metadata,streams"}
        head = encode_fields(request_headers("http", "gateway", _PATH, features))
        sock.sent = PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, head)
        self._say(ConnectionMessage(register=register))

    def beat(self) -> None:
        """Say that it is there."""
        self._say(ConnectionMessage(heartbeat=Heartbeat(timestamp=1)))

    def listen(self) -> None:
        """Answer what has come since the last time."""
        heard = self.sock.heard
        while len(heard) - self._read >= 9:
            at = self._read
            size = int.from_bytes(heard[at : at + 3], "big")
            if len(heard) - at < 9 + size:
                return
            self._read += 9 + size
            self._take(heard[at + 3], heard[at + 4], bytes(heard[at + 9 : self._read]))

    def answer_all(self) -> bool:
        """End all that is open, as a service does; whether there was anything."""
        open_ones = sorted(self._unanswered)
        for stream_id in open_ones:
            self._finish(stream_id)
        return bool(open_ones)

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == PING and not flags & ACK:
            self.sock.sent += frame(PING, ACK, 0, payload)
        if kind != DATA:
            return
        for stream_id in (0, 1) if payload else ():
            self.sock.sent += frame(WINDOW_UPDATE, 0, stream_id, len(payload).to_bytes(4, "big"))
        self._messages += payload
        while len(self._messages) >= 5:
            end = 5 + int.from_bytes(self._messages[1:5], "big")
            if len(self._messages) < end:
                return
            message = ConnectionMessage.FromString(self._messages[5:end])
            self._messages = self._messages[end:]
            if message.HasField("stream"):
                self._hear(message.stream)

    def _hear(self, said: StreamFrame) -> None:
        stream_id = said.stream_id
        if said.HasField("opening"):
            self._unanswered.add(stream_id)
        if said.HasField("cancel"):
            self._unanswered.discard(stream_id)
        size = sum(len(each) + 32 for each in said.messages) + len(said.piece.data)
        if size and not self._tape.one_in(16):
            self._say_of(stream_id, credit=size)
        if stream_id not in self._unanswered:
            return
        if any(b"/beside" in each for each in said.messages):
            head = response_part(200, [(b"content-length", b"6")])
            self._end_with(stream_id, [head, *body_parts(b"beside")])
        elif said.half_close or self._tape.one_in(4):
            self._answer(stream_id)

    def _answer(self, stream_id: int) -> None:
        tape = self._tape
        choice = tape.number(15)
        if choice < 10:
            self._finish(stream_id)
        elif choice == 10:
            code = tape.of((0, 1, 4, 5, 8, 13, 14, 99))
            self._say_of(stream_id, status=StreamStatus(code=code, message="why\n"))
            self._unanswered.discard(stream_id)
        elif choice == 11:
            self._say_of(stream_id, messages=[tape.bytes(40)])
        elif choice < 15:
            headers = [tape.of(_HEADERS) for _ in range(tape.number(3))]
            head = response_part(tape.of((200, 204, 304, 100, 101, 500, 0, 999, 1000)), headers)
            self._say_of(stream_id, messages=[head, *body_parts(bytes(tape.of((0, 5, 20_000))))])

    def _finish(self, stream_id: int) -> None:
        body = bytes(self._tape.of((0, 2, 9_000, 60_000)))
        headers = [(b"content-length", b"%d" % len(body))] if self._tape.one_in(2) else []
        self._end_with(stream_id, [response_part(200, headers), *body_parts(body)])

    def _end_with(self, stream_id: int, messages: list[bytes]) -> None:
        self._say_of(stream_id, messages=messages, status=StreamStatus(code=0))
        self._unanswered.discard(stream_id)

    def _say_of(self, stream_id: int, **said: Any) -> None:
        self._say(ConnectionMessage(stream=StreamFrame(stream_id=stream_id, **said)))

    def _say(self, message: ConnectionMessage) -> None:
        data = prefix(message.SerializeToString())
        for start in range(0, len(data), 16_384):
            self.sock.sent += frame(DATA, 0, 1, data[start : start + 16_384])


class _Caller:
    """One connection of a conversation in HTTP/1.1."""

    def __init__(self, sock: QuickSocket, said: SaidHttp1) -> None:
        self.sock = sock
        self.said = said
        self.answers = 0
        self._waiting = b""

    def speak(self, tape: Tape) -> None:
        """Say some more."""
        if not self._waiting:
            self._waiting = self.said.next()
        size = tape.of((1 << 20, 1 << 20, 1, 2, 7, 100))
        size = max(size, len(self._waiting) // 200)
        self.sock.sent += self._waiting[:size]
        self._waiting = self._waiting[size:]

    def say_rest(self) -> None:
        """Say what it has begun to say."""
        self.sock.sent += self._waiting
        self._waiting = b""

    def listen(self) -> None:
        """Judge what it was told."""
        heard = bytes(self.sock.heard)
        if not heard.startswith(_SETTINGS):  # to who began as in HTTP/2
            self.answers = http1_answers(heard)


class WebGateways(Gateways):
    """Gives inputs to a gateway that takes HTTP, and to a new one after every so many."""

    def settings(self) -> Settings:
        return Settings(
            ApiKeys({KEY: ["web.*"]}),
            LIMITS,
            dial_backends=False,
            reconnect_grace=0.5,
            http={"*": _SERVICE},
        )

    async def _run(self, tape: Tape) -> None:
        connector = _Connector(self._accept(), tape)
        callers: list[Any] = []
        for _ in range(1 + tape.number(2)):
            callers.append(_Caller(self._accept(), SaidHttp1(tape)))
        peers = [connector, *callers]
        await self._turn(peers)  # else nobody is there who serves what is asked for
        while not tape.is_over:
            caller = tape.of(callers)
            caller.speak(tape)
            if tape.one_in(16):
                caller.sock.reads = len(caller.sock.heard) + tape.of((0, 10, 1 << 30))
            if tape.one_in(64):
                connector.beat()
                await asyncio.sleep(tape.of((0.3, 3.0, 31.0)))
                self._look()
            await self._talk(peers)
        await self._settle(connector, callers)
        await self._part(peers)

    async def _settle(self, connector: _Connector, callers: list[_Caller]) -> None:
        """See that whoever asked was answered, and that whoever asks beside them is."""
        beside = _Caller(self._accept(), SaidHttp1(Tape(b"")))
        beside.sock.sent = _BESIDE
        peers = [connector, *callers, beside]
        for _ in range(10):
            await self._talk(peers)
        heard = bytes(beside.sock.heard)
        require(heard.startswith(b"HTTP/1.1 200 "), f"beside: {heard[:100]!r}")
        require(heard.endswith(b"\r\nbeside"), "beside: not all of the body")
        beside.sock.has_ended = True
        for caller in callers:
            caller.say_rest()
            caller.sock.reads = 1 << 30
        quiet = 0
        while quiet < 3:  # what waits for its turn is heard in one to come
            before = [len(each.sock.heard) for each in peers]
            await self._talk(peers)
            is_quiet = before == [len(each.sock.heard) for each in peers]
            quiet = quiet + 1 if is_quiet and not connector.answer_all() else 0
        for caller in callers:
            caller.listen()
            is_answered = caller.answers >= caller.said.good
            require(is_answered or caller.sock.is_shut, "a request that nobody answers")

    async def _talk(self, peers: list[Any]) -> None:
        await self._turn(peers)
        connector, *_ = peers
        connector.listen()
        self._check_bounds()

    def _check_bounds(self) -> None:
        for peer in self._serving.listener._peers:
            endpoint: Any = peer.endpoint
            if isinstance(endpoint, Http1Endpoint):
                require(len(endpoint._kept) <= _MOST_KEPT, f"{len(endpoint._kept):,} bytes wait")
                unread = len(endpoint._http1._receive_buffer)
                most = _TURN + endpoint.settings.header_list
                require(unread <= most, f"{unread:,} bytes wait in h11")
                require(endpoint._out_bytes <= _MOST_OUT, "too many bytes of answers wait")
                require(len(endpoint.streams) <= 1, "two requests at once")
