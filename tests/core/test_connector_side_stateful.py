"""Any order of a gateway's messages and of wishes, against a model that fits on a page."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from revconn._proto.registry_pb2 import (
    CancelRequest,
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    EventMessage,
    ForwardRequest,
    ForwardResponse,
    Heartbeat,
)
from revconn.core.connection import CANCEL, CHUNKS, DRAIN, Phase, Terms
from revconn.core.status import ProtocolError
from tests.support.connections import ids, opened, said
from tests.support.texts import texts

LIVENESS_TIMEOUT = 90.0
IDS = ["", "id-1", "id-2", "x" * 256, "x" * 257, "a\nb", "é"]
USABLE_IDS = {"id-1", "id-2", "x" * 256, "é"}
ANSWERABLE_IDS = {*USABLE_IDS, "a\nb"}
STATUSES = [
    ConnectionStatus.CONNECTED,
    ConnectionStatus.CONNECTED,
    ConnectionStatus.DISCONNECTED,
    ConnectionStatus.ERROR,
    77,
]


class Said(NamedTuple):
    """One message of a gateway: its bytes, and what the model needs to know of it."""

    data: bytes
    kind: str
    id: str = ""
    status: int = -1


def said_status(status: int, connection_id: str, message: str) -> Said:
    fields = ConnectionStatus(status=status, connection_id=connection_id, message=message)
    data = ConnectionMessage(status=fields).SerializeToString()
    return Said(data, "status", connection_id, status)


def said_request(request_id: str) -> Said:
    fields = ForwardRequest(request_id=request_id, method_path="/a.B/C", timeout_seconds=-1)
    return Said(ConnectionMessage(request=fields).SerializeToString(), "request", request_id)


def said_cancel(request_id: str) -> Said:
    fields = CancelRequest(request_id=request_id, reason="gave up\n")
    return Said(ConnectionMessage(cancel=fields).SerializeToString(), "cancel", request_id)


def said_response(request_id: str) -> Said:
    fields = ForwardResponse(request_id=request_id)
    return Said(ConnectionMessage(response=fields).SerializeToString(), "response", request_id)


IGNORED = [
    ConnectionMessage(),
    ConnectionMessage(register=ConnectionRegister(api_key="k")),
    ConnectionMessage(heartbeat=Heartbeat(connection_id="id-2")),
    ConnectionMessage(event=EventMessage(event_type="e")),
]
GARBAGE = [b"\xff", b"\x12\x7f", b"\x2a\x02\x0a\x05", b"HTTP/1.1 400 Bad Request\r\n"]

ANYTHING_SAID = st.one_of(
    st.builds(said_status, st.sampled_from(STATUSES), st.sampled_from(IDS), texts(max_size=5)),
    st.builds(said_request, st.sampled_from(IDS)),
    st.builds(said_cancel, st.sampled_from(IDS)),
    st.builds(said_response, st.sampled_from(IDS)),
    st.sampled_from([Said(message.SerializeToString(), "ignored") for message in IGNORED]),
    st.sampled_from([Said(data, "garbage") for data in GARBAGE]),
)
GOOD_HANDSHAKE = st.builds(
    said_status, st.just(ConnectionStatus.CONNECTED), st.just("id-1"), st.just("")
)
TIMES = st.floats(min_value=-1e9, max_value=4e9)


class ConnectorMachine(RuleBasedStateMachine):
    """``phase`` and ``id`` are the model; ``connection`` is what it is held against."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = opened(LIVENESS_TIMEOUT)
        self.phase = Phase.OPENED
        self.id = ""
        self.heard = False
        self.features: frozenset[str] = frozenset()
        self.asked: set[str] = set()

    # Wishes

    @rule()
    def wish_to_register(self) -> None:
        if self.phase is not Phase.OPENED:
            with pytest.raises(ProtocolError):
                self.connection.register("key", ["a.B"], 0.0)
            return
        message = ConnectionMessage.FromString(self.connection.register("key", ["a.B"], 0.0))
        assert message.register.connection_id == ""
        self.phase = Phase.REGISTERING

    @rule(unix_time=TIMES)
    def wish_for_a_heartbeat(self, unix_time: float) -> None:
        if self.phase not in (Phase.READY, Phase.LEAVING):
            with pytest.raises(ProtocolError):
                self.connection.heartbeat(unix_time)
            return
        message = ConnectionMessage.FromString(self.connection.heartbeat(unix_time))
        assert message.heartbeat == Heartbeat(timestamp=int(unix_time), connection_id=self.id)
        assert self.id in USABLE_IDS

    @rule(request_id=st.sampled_from(IDS))
    def wish_to_request(self, request_id: str) -> None:
        request = ForwardRequest(request_id=request_id)
        if self.phase is not Phase.READY:
            with pytest.raises(ProtocolError):
                self.connection.request(request)
            return
        message = ConnectionMessage.FromString(self.connection.request(request))
        assert message.request == request
        self.asked.add(request_id)

    @rule()
    def wish_to_disconnect(self) -> None:
        if self.phase is not Phase.READY:
            with pytest.raises(ProtocolError):
                self.connection.disconnect()
            return
        message = ConnectionMessage.FromString(self.connection.disconnect())
        assert message.status.connection_id == self.id
        self.phase = Phase.LEAVING

    @precondition(lambda self: self.phase is not Phase.OPENED)
    @rule()
    def the_stream_ends(self) -> None:
        self.connection.end()
        self.phase = Phase.ENDED

    # The gateway

    @precondition(lambda self: not self.heard)
    @rule(features=st.frozensets(st.sampled_from([CANCEL, CHUNKS, DRAIN, "other"])))
    def the_gateway_announces(self, features: frozenset[str]) -> None:
        metadata = [("revconn-features", ",".join(features))]
        self.connection.agree(Terms(30.0, LIVENESS_TIMEOUT, 4 << 20).met_with(metadata))
        self.features = features

    @precondition(lambda self: self.phase is Phase.REGISTERING)
    @rule(connected=GOOD_HANDSHAKE)
    def the_gateway_connects(self, connected: Said) -> None:
        self.hear([connected])

    @rule(batch=st.lists(ANYTHING_SAID, max_size=6))
    def hear(self, batch: list[Said]) -> None:
        inbound = self.connection.receive([each.data for each in batch])
        self.heard = self.heard or bool(batch)
        id_before = self.id
        expected = []
        responses = []
        cancelled = set()
        for each in batch:
            if self.phase is Phase.ENDED:
                break
            if self.phase is Phase.OPENED or each.kind == "garbage":
                self.phase = Phase.ENDED
            elif each.kind == "request" and each.id in ANSWERABLE_IDS:
                expected.append(each.id)
            elif each.kind == "cancel" and each.id in ANSWERABLE_IDS and CANCEL in self.features:
                cancelled.add(each.id)
                expected = [other for other in expected if other != each.id]
            elif each.kind == "response" and each.id in self.asked:
                self.asked.remove(each.id)
                responses.append(each.id)
            elif each.kind == "status":
                self.model_status(each)
        assert ids(inbound) == expected
        assert [message.request_id for message in inbound.responses] == responses
        assert set(inbound.cancelled) == cancelled
        assert inbound.connection_id == (self.id if self.id != id_before else None)

    def model_status(self, said: Said) -> None:
        if said.status == ConnectionStatus.CONNECTED:
            if self.phase is Phase.REGISTERING and said.id in USABLE_IDS:
                self.id = said.id
                self.phase = Phase.READY
            elif said.id != self.id or not said.id:
                self.phase = Phase.ENDED
        elif said.status == ConnectionStatus.DISCONNECTED or (
            said.status == ConnectionStatus.ERROR and self.phase is Phase.REGISTERING
        ):
            self.phase = Phase.ENDED

    @precondition(lambda self: self.phase is Phase.ENDED)
    @rule(batch=st.lists(ANYTHING_SAID))
    def hear_after_the_end(self, batch: list[Said]) -> None:
        assert said(self.connection.receive([each.data for each in batch])) == {}

    # Always

    @invariant()
    def it_stands_where_the_model_stands(self) -> None:
        assert self.connection.phase is self.phase
        assert self.connection.connection_id == self.id
        assert self.connection.established == (self.phase in (Phase.READY, Phase.LEAVING))


TestConnector = ConnectorMachine.TestCase
