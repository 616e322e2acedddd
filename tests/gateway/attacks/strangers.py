"""Attackers without a key: streams, messages and connections that are begun and go nowhere."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Sequence
from itertools import cycle

from tests.gateway.attacks.attacking import Attack
from tests.gateway.attacks.wire import (
    DATA,
    PREFACE,
    Caller,
    Client,
    frame,
    message,
    prefix,
    protobuf,
    request,
    request_block,
    reset,
    settings,
)

__all__ = [
    "half_messages",
    "idle_streams",
    "new_streams",
    "silent_calls",
    "silent_sockets",
    "silent_streams",
    "slow_bytes",
    "stalled_handshakes",
    "windowless_callers",
]

ESTABLISH = "/registry.RegistryService/EstablishConnection"
_BATCH = 80
_PIECE = 16_000
_OTHER_ADDRESS = "127.0.0.2"


def wrong_key() -> bytes:
    """A connector's first message, with a key that nobody gave it."""
    return message(protobuf((1, protobuf((1, "wrong"), (2, "some.Service")))))


def idle_streams(attack: Attack, path: str, count: int, asks: bool = False) -> None:
    """Streams on one connection that nothing happens on; ``asks``: after one empty message."""
    block = request_block(path)
    data = message(b"") if asks else None
    while attack.going():
        client = attack.connect()
        if client is None:
            continue
        opened = 0
        while opened < count and attack.going():
            requests = [request(client.new_stream(), block, data) for _ in range(_BATCH)]
            if not client.send(b"".join(requests)):
                break
            opened += _BATCH
            attack.count(_BATCH)
            client.read()
        attack.ready()
        while attack.going() and not client.is_over:
            client.wait()
        attack.finish(client)


def new_streams(
    attack: Attack,
    path: str,
    per_second: float | None = None,
    says: str = "",
    resets: bool = False,
) -> None:
    """Streams one after another: ``says`` a message each, or nothing, and perhaps a reset."""
    block = request_block(path)
    said = {"": None, "empty": message(b""), "wrong key": wrong_key()}[says]
    attack.ready()
    while attack.going():
        client = attack.connect()
        if client is None:
            continue
        while attack.going() and not client.is_over:
            out = []
            for _ in range(_BATCH):
                stream = client.new_stream()
                out.append(request(stream, block, said))
                if resets:
                    out.append(reset(stream))
            if client.send(b"".join(out)):
                attack.count(_BATCH)
                client.read()
                if per_second is not None:
                    attack.pace(per_second)
        attack.finish(client)


def silent_calls(attack: Attack, path: str, count: int, connections: int) -> None:
    """Calls, on several connections, whose message never comes; once a second those that ended."""
    callers: list[Caller] = attack.connections(connections, Caller, path=path)
    while attack.going():
        for caller in callers:
            attack.count(caller.fill(count // connections, None))
        attack.hold(seconds=1.0)


def half_messages(attack: Attack, path: str, size: int, count: int, connections: int) -> None:
    """First messages of which ``size`` is announced, and all comes but the last byte.

    All are sent at the same time, each as far as the gateway lets it: no message of one that does
    is held up by another that does not.
    """
    clients = attack.connections(connections)
    block = request_block(path)
    todo = []
    for number in range(count):
        client = clients[number % len(clients)]
        stream = client.new_stream()
        client.send(request(stream, block))
        todo.append((client, stream))
    left = dict.fromkeys(todo, 5 + size - 1)
    body = prefix(size) + bytes(_PIECE)
    while todo and attack.going():
        attack.read_all(0.005)
        for client, stream in todo:
            key = (client, stream)
            rounds = 16
            while rounds and left[key] and client.room(stream) > 0 and not client.is_over:
                begin = 0 if left[key] == size + 4 else 5
                piece = body[begin : begin + min(_PIECE, left[key], client.room(stream))]
                client.send_data(stream, piece)
                attack.count(len(piece))
                left[key] -= len(piece)
                rounds -= 1
        todo = [each for each in todo if left[each] and not each[0].is_over]
    attack.hold()


def windowless_callers(attack: Attack, path: str, count: int) -> None:
    """Callers that ask for answers and let none of their bytes come."""
    block = request_block(path)
    for client in attack.connections(count, window=0):
        if client.send(request(client.new_stream(), block, message(b""))):
            attack.count()
    attack.hold()


def silent_sockets(attack: Attack, count: int) -> None:
    """TCP connections that say nothing, so many at a time, from another address."""
    _renew(attack, count, b"")


def silent_streams(attack: Attack, path: str, count: int) -> None:
    """As many connections at a time, from many addresses, that open a stream each, and no more."""
    opening = PREFACE + settings() + request(1, request_block(path))
    _renew(attack, count, opening, [f"127.0.0.{number}" for number in range(2, 42)])


def stalled_handshakes(attack: Attack, count: int) -> None:
    """TLS connections that say half of their first message, so many at a time."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()
    _renew(attack, count, hello[: len(hello) // 2])


def _renew(
    attack: Attack, count: int, opening: bytes, sources: Sequence[str] = (_OTHER_ADDRESS,)
) -> None:
    """Keep so many connections that have said no more than that."""
    clients: list[Client] = []
    source = cycle(sources)
    while attack.going():
        for client in [client for client in clients if client.is_over]:
            clients.remove(client)
            attack.finish(client)
        while len(clients) < count and attack.going():
            client = attack.connect(greets=False, source=next(source))
            if client is None:
                break
            client.send(opening)
            attack.count()
            clients.append(client)
        attack.ready()
        attack.read_all(0.02)


def slow_bytes(attack: Attack, path: str, count: int, per_second: float) -> None:
    """So many connections that say what a caller says, one byte at a time.

    Their call, if they come so far, is one DATA frame per byte.
    """
    call = [request(1, request_block(path)), *(frame(DATA, 0, 1, b"\0") for _ in range(1000))]
    script = PREFACE + settings(s4=1000) + b"".join(call)
    clients: dict[Client, int] = {}
    attack.ready()
    while attack.going():
        began = time.monotonic()
        for client in [client for client in clients if client.is_over]:
            del clients[client]
            attack.finish(client)
        for _ in range(count - len(clients)):
            client = attack.connect(greets=False)
            if client is None:
                break
            clients[client] = 0
        for client, said in clients.items():
            client.send(script[said : said + 1])
            clients[client] = min(said + 1, len(script) - 1)
            attack.count()
        attack.read_all()
        time.sleep(max(0.0, count and 1 / per_second - (time.monotonic() - began)))
