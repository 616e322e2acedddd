"""Attackers with a key: connectors that take and do not give, and callers who are with them."""

from __future__ import annotations

import time
from typing import Any

import hpack

from tests.gateway.attacks.attacking import Attack
from tests.gateway.attacks.strangers import ESTABLISH
from tests.gateway.attacks.wire import (
    DATA,
    HEADERS,
    Caller,
    Client,
    field,
    first_field,
    message,
    protobuf,
    request,
    request_block,
)

__all__ = [
    "cancel_requests",
    "cancelled_calls",
    "dead_services",
    "deaf_connectors",
    "register_once",
    "unfinished_chunks",
    "unmatched_answers",
]

_KEY = "stolen"
_SERVICES = ("dead.One", "dead.Two")
_REGISTER, _REQUEST, _RESPONSE, _STATUS, _CANCEL = 1, 2, 3, 5, 100
_PATIENCE = 30.0
_PIECE = 16_000
_BATCH = 1000
_FEATURES = "chunks,cancel,drain"


class Connector(Client):
    """A connector's stream.

    :ivar received: what came, as the number of its type and its content.
    :ivar headers: the gateway's, as they came: how it began, and how it ended.
    """

    def __init__(self, *arguments: Any, service: str, **options: Any) -> None:
        self.received: list[tuple[int, bytes]] = []
        self.headers: list[bytes] = []
        self._unparsed = bytearray()
        super().__init__(*arguments, **options)
        features = field(b"revconn-features", _FEATURES.encode())
        self.stream = self.new_stream()
        self.send(request(self.stream, request_block(ESTABLISH, features)))
        self.say(_REGISTER, (1, _KEY), (2, service))

    def say(self, number: int, *fields: tuple[int, bytes | str | int]) -> None:
        self.send_data(self.stream, message(protobuf((number, protobuf(*fields)))))

    def heard(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        super().heard(kind, flags, stream, payload)
        if kind == HEADERS:
            self.headers.append(payload)
        if kind != DATA:
            return
        self._unparsed += payload
        while len(self._unparsed) >= 5:
            end = 5 + int.from_bytes(self._unparsed[1:5], "big")
            if len(self._unparsed) < end:
                break
            self.received.append(first_field(bytes(self._unparsed[5:end])))
            del self._unparsed[:end]

    def requests(self) -> list[bytes]:
        """The ids of the requests that came since this was last called."""
        ids = [first_field(content)[1] for number, content in self.received if number == _REQUEST]
        self.received = [each for each in self.received if each[0] == _STATUS]
        return ids

    def wait_until_registered(self, attack: Attack) -> None:
        end = time.monotonic() + _PATIENCE
        while not self.received and attack.going() and time.monotonic() < end:
            self.wait()
        assert self.received, f"not registered: {self.resets}, {self.frames}"


def _connectors(attack: Attack, *services: str) -> list[Connector]:
    made = []
    for service in services:
        connector = attack.connect(Connector, service=service)
        assert isinstance(connector, Connector)
        connector.wait_until_registered(attack)
        made.append(connector)
    return made


def _callers(attack: Attack, service: str, connections: int) -> list[Caller]:
    return attack.connections(connections, Caller, path=f"/{service}/Say")


def dead_services(attack: Attack, calls: int, by_connectors: bool = False) -> None:
    """Two connectors that answer nothing; so many calls for each are kept waiting.

    They are outside callers', or the connectors' own for each other.
    """
    one, two = _connectors(attack, *_SERVICES)
    callers = [] if by_connectors else [_callers(attack, name, 3) for name in _SERVICES]
    number = 0
    while attack.going():
        for caller in [each for some in callers for each in some]:
            attack.count(caller.fill(calls // 3))
        for connector, service in ((one, _SERVICES[1]), (two, _SERVICES[0])):
            connector.requests()
            # What was refused or has expired was answered; whatever that says, more is asked.
            for _ in range(calls // 10 if by_connectors else 0):
                number += 1
                connector.say(_REQUEST, (1, f"dead-{number}"), (2, f"/{service}/Say"))
                attack.count()
        attack.read_all(0.02)
        attack.ready()


def unfinished_chunks(attack: Attack, size: int, calls: int) -> None:
    """Answers in chunks of which the last never comes: so many bytes for each of so many calls."""
    connectors = _connectors(attack, *_SERVICES)
    callers = [caller for name in _SERVICES for caller in _callers(attack, name, 1)]
    payload = bytes(_PIECE)
    while attack.going():
        for caller in callers:
            caller.fill(calls)
        attack.read_all(0.02)
        for connector in connectors:
            for request_id in connector.requests():
                for index in range(size // _PIECE):
                    info = protobuf((1, 1), (2, index), (4, _PIECE))
                    connector.say(_RESPONSE, (1, request_id), (2, 200), (4, payload), (7, info))
                    attack.count(_PIECE)
        attack.ready()


def deaf_connectors(attack: Attack, count: int, calls: int, size: int) -> None:
    """Connectors that take none of the bytes they are sent, though they are called, nor beat."""
    attack.connections(count, Connector, service=_SERVICES[0], window=0)
    for caller in _callers(attack, _SERVICES[0], 1):
        attack.count(caller.fill(calls, bytes(size)))
    attack.hold()


def cancelled_calls(attack: Attack, count: int, connections: int) -> None:
    """So many calls to a connector that answers nothing, which all give up at the same moment."""
    (connector,) = _connectors(attack, _SERVICES[0])
    callers = _callers(attack, _SERVICES[0], connections)
    arrived = 0
    end = time.monotonic() + _PATIENCE
    for caller in callers:
        caller.fill(count // connections)
        attack.read_all()
        arrived += len(connector.requests())
    while arrived < count and attack.going() and time.monotonic() < end:
        attack.read_all(0.02)
        arrived += len(connector.requests())
    attack.report["arrived"] = arrived
    attack.ready()
    attack.hold(seconds=0.1)
    for caller in callers:
        attack.count(caller.reset_all())
    attack.hold()


def cancel_requests(attack: Attack, count: int, asks: bool) -> None:
    """So many CancelRequests at once from one connector, of calls that it just made or of none."""
    connector, _ = _connectors(attack, *_SERVICES)
    path = f"/{_SERVICES[1]}/Say"
    batches: list[list[bytes]] = []
    for number in range(count):
        if number % _BATCH == 0:
            batches.append([])
        name = f"cancelled-{number}"
        if asks:
            batches[-1].append(message(protobuf((_REQUEST, protobuf((1, name), (2, path))))))
        batches[-1].append(message(protobuf((_CANCEL, protobuf((1, name))))))
    attack.ready()
    while attack.going() and not connector.is_over:
        for batch in batches:
            if connector.send_data(connector.stream, b"".join(batch)):
                attack.count(len(batch))
        connector.requests()


def unmatched_answers(attack: Attack, connectors: int, answers: int) -> None:
    """So many answers at once from each of so many connectors, to what nobody asked."""
    made = _connectors(attack, *(_SERVICES[0],) * connectors)
    name, payload = (1, "nobody asked"), (4, b"x" * 100)
    batch = message(protobuf((_RESPONSE, protobuf(name, payload)))) * answers
    attack.ready()
    while attack.going():
        for connector in made:
            if connector.send_data(connector.stream, batch):
                attack.count(answers)
        attack.read_all(0.5)


def register_once(address: str) -> None:
    """Register with the attackers' key, as one more of its connectors, and leave."""
    end = time.monotonic() + _PATIENCE
    with Connector(address, lambda: time.monotonic() < end, service=_SERVICES[0]) as connector:
        while not connector.received and not connector.is_over and time.monotonic() < end:
            connector.wait()
        decoder = hpack.Decoder()
        assert connector.received, [decoder.decode(block) for block in connector.headers]
