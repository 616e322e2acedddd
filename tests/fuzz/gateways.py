"""What is fuzzed of a server: the whole gateway, on sockets that are made up.

Several peers call and register, one of them with a key that is accepted. Nothing is raised, nothing
is logged at ERROR, and when they have gone nothing of them is left.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from revconn._proto.registry_pb2 import (
    CancelRequest,
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    EventMessage,
    ForwardRequest,
    ForwardResponse,
    Heartbeat,
    MetadataEntry,
    RegisterRequest,
    ResponseStreamInfo,
    StreamCancel,
    StreamFrame,
    StreamingInfo,
    StreamMetadata,
    StreamPiece,
    StreamStatus,
    SubscriptionRequest,
)
from revconn.core.framing import frame as prefix
from revconn.gateway.keys import ApiKeys
from revconn.gateway.limits import Limits
from revconn.gateway.serving import Serving
from revconn.gateway.shared import Settings
from revconn.http2.frames import DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, frame
from revconn.http2.grpc import request_headers
from revconn.http2.headers import encode_fields
from tests.fuzz.judge import Judge, require
from tests.fuzz.said import Said
from tests.fuzz.tape import Tape
from tests.support.quick_loop import QuickLoop, QuickSocket

__all__ = ["KEY", "LIMITS", "Gateways"]

KEY = "key"
_SERVICE = "echo.Echo"
LIMITS = Limits(
    max_pending=30,
    max_pending_per_connection=20,
    max_connections=20,
    max_streams=20,
    max_queued_bytes=300_000,
    max_message_bytes=100_000,
    max_response_bytes=200_000,
    max_joining_bytes=300_000,
    max_receiving_bytes=300_000,
    max_unread_bytes=300_000,
)
_AGAIN = 200  # inputs that one gateway hears
_LONG = 100.0  # seconds, after which nobody waits for anything
_TEXTS = (
    "",
    "a",
    _SERVICE,
    "/echo.Echo/Say",
    "/nobody.Serves/It",
    "*",
    "registry.x",
    "ü\n",
    "x" * 300,
)
_NUMBERS = (0, 1, 2, 3, 5, 16, 200, 404, 500, -1, 2**31 - 1, -(2**31))


class _Peer:
    """One connection of a conversation."""

    def __init__(self, sock: QuickSocket, said: Said) -> None:
        self.sock = sock
        self.said = said
        self.judge = Judge()
        self.heard = 0

    def listen(self) -> None:
        """Judge what it was told since the last time."""
        new = bytes(self.sock.heard[self.heard :])
        self.heard = len(self.sock.heard)
        self.judge.hear(new, 0x7FFFFFFF, 64 << 10)


class Gateways:
    """Gives inputs to a gateway, and to a new one after every so many."""

    def __init__(self) -> None:
        self._left = 0
        self._loop: QuickLoop | None = None
        self._serving: Serving
        self._logged = _Logged()
        self._number = 100
        logging.getLogger().addHandler(self._logged)

    def converse(self, data: bytes) -> None:
        """Let peers say what ``data`` makes of frames."""
        if self._left == 0:
            self._renew()
        self._left -= 1
        assert self._loop is not None
        self._logged.errors.clear()
        try:
            self._loop.run_until_complete(self._run(Tape(data)))
        except BaseException:
            self._left = 0
            raise
        if self._logged.errors:
            self._left = 0
            require(False, f"logged: {self._logged.errors[0][:300]}")

    def close(self) -> None:
        """Hear nothing more of what is logged."""
        logging.getLogger().removeHandler(self._logged)
        if self._loop is not None:
            self._loop.close()

    def _renew(self) -> None:
        if self._loop is not None:
            self._loop.close()
        self._loop = loop = QuickLoop()
        loop.set_exception_handler(self._logged.take_from_loop)
        self._left = _AGAIN

        async def begin() -> None:
            self._serving = Serving(self.settings())

        loop.run_until_complete(begin())

    def settings(self) -> Settings:
        """What each of them is made with."""
        keys = ApiKeys({KEY: ["echo.*", "publish:*", "subscribe:*"]})
        return Settings(keys, LIMITS, dial_backends=False, reconnect_grace=0.5)

    async def _run(self, tape: Tape) -> None:
        peers = [self._connect(tape, number) for number in range(1 + tape.number(2))]
        while not tape.is_over:
            peer = tape.of(peers)
            peer.sock.sent += peer.said.next()
            if tape.one_in(16):
                peer.sock.reads = len(peer.sock.heard) + tape.of((0, 10, 1 << 30))
            if tape.one_in(64):
                await asyncio.sleep(tape.of((0.3, 3.0, 31.0)))
                self._look()
            await self._turn(peers)
            for each in peers:
                each.listen()
        await self._part(peers)

    def _connect(self, tape: Tape, number: int) -> _Peer:
        sock = self._accept()
        said = Said(tape, lambda: self._message(tape))
        if number == 0:
            sock.sent = self._registered(tape)
            said.opened = 1
        else:
            sock.sent = said.begin()
        return _Peer(sock, said)

    def _accept(self) -> QuickSocket:
        self._number += 1
        assert self._loop is not None
        sock = QuickSocket(self._number, self._loop)
        self._serving.listener._take_in(sock)  # type: ignore[arg-type]
        return sock

    @staticmethod
    def _registered(tape: Tape) -> bytes:
        path = "/registry.RegistryService/EstablishConnection"
        features = {"revconn-features": "cancel,chunks,drain,metadata,streams"}
        head = encode_fields(request_headers("http", "gateway", path, features))
        streaming = ["/echo.Echo/Say"] if tape.one_in(2) else []
        register = ConnectionRegister(api_key=KEY, services=[_SERVICE], streaming_methods=streaming)
        said = prefix(ConnectionMessage(register=register).SerializeToString())
        return b"".join(
            (
                PREFACE,
                frame(SETTINGS, 0, 0),
                frame(HEADERS, END_HEADERS, 1, head),
                frame(DATA, 0, 1, said),
            )
        )

    async def _turn(self, peers: list[Any]) -> None:
        """What a loop would do with the sockets, until there is nothing to do."""
        for _ in range(100):
            did = [peer.sock.serve() for peer in peers]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if not any(did):
                return

    def _look(self) -> None:
        serving = self._serving
        serving.listener.look(asyncio.get_running_loop().time())
        serving._callers.expire()
        serving.listener.receiving.relieve_line()
        serving.shared.rerouting.relieve_stalled()

    async def _part(self, peers: list[Any]) -> None:
        """All go; some without a word, some read all that there is before."""
        serving, shared = self._serving, self._serving.shared
        for number, peer in enumerate(peers):
            peer.sock.has_ended = True
            if number % 2:
                peer.sock.reads = 1 << 30
        for _ in range(4):
            while any(peer.sock.serve() for peer in peers):
                for _ in range(20):  # what waits for its turn is heard, and more is read then
                    await asyncio.sleep(0)
            await asyncio.sleep(_LONG / 4)
            self._look()
        for peer in peers:
            peer.listen()
            require(peer.sock.is_closed, "a connection that is never closed")
        require(not serving.listener._peers, "peers that are gone")
        require(not serving.listener.receiving._wanting, "streams that are gone want credit")
        require(not serving.listener._networks, "places of peers that are gone")
        introspection = serving._introspection
        assert introspection is not None
        budgets = {
            **{
                f"{name} of {whose}": getattr(getattr(serving.listener.receiving, name), whose)
                for name in ("_credit", "_windows")
                for whose in ("_callers", "_connectors")
            },
            "held places": shared.calls.held_requests._places,
            "held bytes": shared.calls.held_requests._bytes,
            "receiving": serving._callers._budget,
            "handshakes": shared.handshakes,
            "questions": introspection._waiting,
            "watching": introspection._watching,
            "asking": introspection._reflections._budget,
            "streaming calls": serving._callers.streaming._budget,
            "answers": shared.answers._budget,
            "joining": shared.calls.joining._budget,
        }
        for name, budget in budgets.items():
            require(budget.used == 0 and not budget._held, f"{name} by peers that are gone")
            require(not budget._all.under, f"{name} on account of peers that are gone")
        require(not serving._callers._incoming, "calls that are gone")
        require(not serving._connectors._open, "connectors that are gone")
        require(not shared.registry.connections, "connections that are gone")
        require(not shared.answers._deadlines, "answers to streams that are gone")
        require(len(shared.calls) == 0, "calls that nobody waits for")
        require(shared.calls.joining.held_bytes == 0, "chunks for nobody")

    # Messages

    def _message(self, tape: Tape) -> bytes:
        choice = tape.number(11)
        if choice == 0:
            return tape.bytes(60)
        if choice == 1:
            asked = ServerReflectionRequest(file_containing_symbol="registry.RegistryService")
            return bytes(asked.SerializeToString())
        if choice == 2:
            register = RegisterRequest(
                api_key=tape.of((KEY, "wrong")),
                address=tape.of(("127.0.0.1:1", "[::1]:2", "nowhere", "")),
                services=[tape.of(_TEXTS)],
            )
            return register.SerializeToString()
        message = self._connection_message(tape).SerializeToString()
        if tape.one_in(16):
            at = tape.number(max(0, len(message) - 1))
            message = message[:at] + tape.bytes(3) + message[at + 1 :]
        return message

    def _connection_message(self, tape: Tape) -> ConnectionMessage:
        choice = tape.number(12)
        if choice > 10:
            return ConnectionMessage(stream=self._stream_frame(tape))
        if choice < 4:
            return ConnectionMessage(response=self._response(tape))
        if choice == 4:
            return ConnectionMessage(request=self._request(tape))
        if choice == 5:
            event = EventMessage(
                event_id="e", event_type=tape.of(_TEXTS), payload=bytes(tape.of((0, 9, 50_000)))
            )
            return ConnectionMessage(event=event)
        if choice == 6:
            action = tape.of((0, 1, 7))
            wish = SubscriptionRequest(action=action, event_types=[tape.of(_TEXTS)])  # type: ignore[arg-type]
            return ConnectionMessage(subscription=wish)
        if choice == 7:
            return ConnectionMessage(cancel=CancelRequest(request_id=self._id(tape), reason="why"))
        if choice == 8:
            status = ConnectionStatus(status=tape.of((0, 1, 2, 9)), message=tape.of(_TEXTS))  # type: ignore[arg-type]
            return ConnectionMessage(status=status)
        if choice == 9:
            names = [tape.of(_TEXTS) for _ in range(tape.number(3))]
            key = tape.of((KEY, "wrong", ""))
            return ConnectionMessage(register=ConnectionRegister(api_key=key, services=names))
        return ConnectionMessage(
            heartbeat=Heartbeat(timestamp=tape.of(_NUMBERS), connection_id=tape.of(_TEXTS))
        )

    @staticmethod
    def _stream_frame(tape: Tape) -> StreamFrame:
        """Of one of the first streams, which is there or not."""
        said = StreamFrame(stream_id=tape.of((1, 1, 2, 3, 0, 2**32 - 1)))
        entries = [MetadataEntry(key=tape.of(_TEXTS), value=tape.bytes(3))]
        if tape.one_in(4):
            said.initial_metadata.CopyFrom(StreamMetadata(entries=entries))
        if tape.one_in(2):
            sizes = [tape.of((0, 1, 64, 40_000)) for _ in range(tape.number(3))]
            said.messages.extend(bytes(size) for size in sizes)
        if tape.one_in(4):
            data, missing = bytes(tape.of((0, 1, 20_000))), tape.of((0, 1, 20_000, 2**32 - 1))
            said.piece.CopyFrom(StreamPiece(data=data, missing=missing))
        if tape.one_in(4):
            said.credit = tape.of((1, 40_000, 2**32 - 1))
        if tape.one_in(8):
            said.half_close = True
        if tape.one_in(4):
            status = StreamStatus(
                code=tape.of((0, 5, 99, -1)), message=tape.of(_TEXTS), trailing_metadata=entries
            )
            said.status.CopyFrom(status)
        if tape.one_in(8):
            said.cancel.CopyFrom(StreamCancel(reason=tape.of(_TEXTS)))
        return said

    def _id(self, tape: Tape) -> str:
        """Of a call that waits, as a rule."""
        waiting = list(self._serving.shared.calls._calls)
        return tape.of(waiting) if waiting and not tape.one_in(8) else tape.of(_TEXTS)

    def _response(self, tape: Tape) -> ForwardResponse:
        response = ForwardResponse(
            request_id=self._id(tape),
            status_code=200 if tape.one_in(2) else tape.of(_NUMBERS),
            payload=tape.of((b"", b"\x0aok", b"\1\0\0\0\2xx", bytes(20_000), bytes(90_000))),
            error_message=tape.of(_TEXTS),
        )
        for _ in range(tape.number(3)):
            response.headers[tape.of(_HEADERS)] = tape.of((*_TEXTS, "5", "gzip", "AAA=", "%GG"))
        if tape.one_in(3):
            response.response_stream_info.CopyFrom(
                ResponseStreamInfo(
                    is_streamed=not tape.one_in(4),
                    chunk_index=tape.of((0, 1, 2, -1)),
                    is_final_chunk=tape.one_in(2),
                    total_size=tape.of(_NUMBERS),
                )
            )
        return response

    def _request(self, tape: Tape) -> ForwardRequest:
        return ForwardRequest(
            request_id=tape.of(("1", "2", *_TEXTS)),
            method_path=tape.of(_TEXTS),
            headers={tape.of(_HEADERS): tape.of(_TEXTS)},
            payload=bytes(tape.of((0, 7, 60_000))),
            timeout_seconds=tape.of(_NUMBERS),
            streaming_info=StreamingInfo(sequence_number=tape.of(_NUMBERS)),
        )


_HEADERS = (
    "grpc-status",
    "grpc-message",
    "grpc-encoding",
    "grpc-timeout",
    "x",
    "x-bin",
    "BAD ü",
    "",
)


class _Logged(logging.Handler):
    """What was logged that must not be."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(self.format(record)[-600:])

    def take_from_loop(self, loop: Any, context: dict[str, Any]) -> None:
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")
