"""Both ends of connections, played against each other: no socket, no thread, no clock.

A connector opens one connection after the other to its gateway, over a network that delays, breaks
one direction or both with messages under way, and garbles. Either end notices a break when it
likes, and the connector may sleep. Neither end ever says what the other does not expect.
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import count, product
from typing import Any, Callable

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
)
from revconn.core.connection import CANCEL, CHUNKS, DRAIN, Connection, Phase, Step, Terms
from revconn.core.connector_side import ConnectorConnection, FromGateway
from revconn.core.gateway_side import FromConnector, GatewayConnection, GatewayLiveness
from revconn.core.liveness import (
    PROBE_METHOD,
    ConnectorLiveness,
    Prober,
    Verdict,
)
from tests.support.connections import ids

HANDSHAKE = 10.0
INTERVAL, SILENCE, GATEWAYS_PATIENCE = 30.0, 90.0, 120.0
LOOK = 5.0
LIMIT = 4096
TOKEN = "0" * 32

Transition = tuple[type[Connection], Phase, Step]
DECLARED: set[Transition] = {
    (side, phase, step)
    for side in (ConnectorConnection, GatewayConnection)
    for phase, step in side.transitions
}
taken: Counter[Transition] = Counter()


class Connector(ConnectorConnection):
    def _take(self, step: Step) -> None:
        before = self.phase
        super()._take(step)
        taken[ConnectorConnection, before, step] += 1


class Gateway(GatewayConnection):
    def _take(self, step: Step) -> None:
        before = self.phase
        super()._take(step)
        taken[GatewayConnection, before, step] += 1


class Direction:
    """What is on its way from one end to the other; once it is cut, nothing arrives any more."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.cut = False
        self.garbled = False

    def send(self, data: bytes) -> None:
        if not self.cut:
            self.messages.append(data)

    def deliver(self, most: int) -> list[bytes]:
        return [self.messages.popleft() for _ in range(min(most, len(self.messages)))]

    def break_off(self) -> None:
        self.cut = True
        self.messages.clear()


class Tunnel:
    """One connection: both its ends, both directions, and what each end said and heard."""

    def __init__(self, number: int, now: float, features: frozenset[str], *, probes: bool) -> None:
        self.number = number
        numbers = count(1)
        self.connector = Connector(
            ConnectorLiveness(HANDSHAKE, INTERVAL, SILENCE, lambda: f"p{number}.{next(numbers)}"),
            token=TOKEN,
        )
        self.gateway = Gateway(
            GatewayLiveness(now, HANDSHAKE, GATEWAYS_PATIENCE),
            features=features,
            max_message_bytes=LIMIT,
        )
        terms = Terms(INTERVAL, SILENCE, LIMIT)
        self.connector.agree(terms.met_with([("revconn-features", ",".join(features))]))
        self.up, self.down = Direction(), Direction()
        self.prober = Prober(["a.B"], 60.0, 20.0, TOKEN.encode()) if probes else None
        self.asked: list[str] = []  # by the gateway, in order
        self.heard: list[str] = []  # of those, by the connector
        self.cancelled: set[str] = set()
        self.answered: list[str] = []  # by the connector, in order
        self.settled: list[str] = []  # of those, at the gateway
        self.called: list[str] = []  # calls of the connector's own
        self.returned: list[str] = []  # of those, responses it has heard
        self.goodbyes_said = self.goodbyes_heard = 0
        self.half_closed = False
        self.last_left = 0.0
        self.accepted_at = 0.0
        self.silent = False  # the gateway has ended it for its silence

    def over(self) -> bool:
        return Phase.ENDED in (self.connector.phase, self.gateway.phase)


PARTS = st.integers(1, 5)
BEGUN = [Phase.OPENED, Phase.REGISTERING, Phase.READY, Phase.LEAVING]
FEATURES = st.frozensets(st.sampled_from([CANCEL, CHUNKS, DRAIN]))


Trouble = Callable[["PairMachine", Tunnel], None]
TROUBLES: list[Trouble] = [
    lambda machine, tunnel: machine.connector_leaves(tunnel, half=False),
    lambda machine, tunnel: machine.connector_leaves(tunnel, half=True),
    lambda machine, tunnel: machine.connector_gives_up(tunnel),
    lambda machine, tunnel: machine.gateway_refuses(tunnel),
    lambda machine, tunnel: machine.gateway_dismisses(tunnel),
    lambda machine, tunnel: machine.gateway_ends(tunnel),
    lambda machine, tunnel: machine.network_breaks(tunnel, up=True, down=False),
    lambda machine, tunnel: machine.network_breaks(tunnel, up=False, down=True),
    lambda machine, tunnel: machine.network_breaks(tunnel, up=True, down=True),
    lambda machine, tunnel: machine.network_garbles(tunnel.up),
    lambda machine, tunnel: machine.network_garbles(tunnel.down),
]


class PairMachine(RuleBasedStateMachine):
    tunnels = Bundle("tunnels")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.numbers = count(1)
        self.all: list[Tunnel] = []

    @initialize(target=tunnels, features=FEATURES)
    def first(self, features: frozenset[str]) -> Any:
        return self._open(features, Phase.READY, probes=True)

    def _open(self, features: frozenset[str], phase: Phase, *, probes: bool) -> Tunnel:
        """A connection whose ends have both come to that phase."""
        tunnel = Tunnel(next(self.numbers), self.now, features, probes=probes)
        self.all.append(tunnel)
        if phase is not Phase.OPENED:
            self.connector_registers(tunnel)
            self.gateway_reads(tunnel, 1)
        if phase in (Phase.READY, Phase.LEAVING):
            self.gateway_accepts(tunnel)
            self.gateway_asks(tunnel)
            self.connector_reads(tunnel, 5)
        if phase is Phase.LEAVING:
            self.connector_leaves(tunnel, half=False)
            self.gateway_reads(tunnel, 5)
        return tunnel

    # The connector

    @rule(target=tunnels, features=FEATURES, phase=st.sampled_from(BEGUN), probes=st.booleans())
    def connector_opens(self, features: frozenset[str], phase: Phase, probes: bool) -> Any:
        """The next one, whether or not either end has noticed the end of the last."""
        if len(self.all) >= 6:
            return multiple()
        return self._open(features, phase, probes=probes)

    @rule(tunnel=tunnels)
    def connector_registers(self, tunnel: Tunnel) -> None:
        if tunnel.connector.phase is Phase.OPENED:
            tunnel.up.send(tunnel.connector.register("key", ["a.B"], self.now, tunnel.prober))

    @rule(tunnel=tunnels, most=PARTS)
    def connector_reads(self, tunnel: Tunnel, most: int) -> None:
        connector, batch = tunnel.connector, tunnel.down.deliver(most)
        before = connector.phase
        inbound = connector.receive(batch, self.now)
        if before is Phase.ENDED:
            assert not any(getattr(inbound, name) for name in FromGateway.__slots__)
            return
        for request, *_ in inbound.requests:
            assert not request.method_path.endswith(PROBE_METHOD)
        tunnel.cancelled |= set(inbound.cancelled)
        tunnel.heard += ids(inbound)
        tunnel.returned += [each.request_id for each in inbound.responses]
        for message in [*inbound.answers, *inbound.probes]:
            tunnel.up.send(message)
        for probed in inbound.probed:
            assert probed.verdict is Verdict.ALIVE
        if inbound.connection_id is not None:
            assert inbound.connection_id == tunnel.gateway.connection_id
            tunnel.accepted_at = self.now
        if inbound.end is not None and not tunnel.down.garbled:
            assert isinstance(inbound.end, str), inbound.end
        if connector.phase is Phase.ENDED:
            self.connector_gives_up(tunnel)

    @rule(tunnel=tunnels)
    def connector_answers(self, tunnel: Tunnel) -> None:
        open_requests = [each for each in tunnel.heard if each not in tunnel.answered]
        if tunnel.connector.established and open_requests:
            response = ForwardResponse(request_id=open_requests[-1], status_code=200)
            tunnel.answered.append(open_requests[-1])
            tunnel.up.send(ConnectionMessage(response=response).SerializeToString())

    @rule(tunnel=tunnels)
    def connector_asks(self, tunnel: Tunnel) -> None:
        if tunnel.connector.phase is Phase.READY:
            request_id = f"c{tunnel.number}.{len(tunnel.called)}"
            tunnel.called.append(request_id)
            request = ForwardRequest(request_id=request_id, method_path="/a.B/C")
            tunnel.up.send(tunnel.connector.request(request))

    def connector_leaves(self, tunnel: Tunnel, *, half: bool) -> None:
        if tunnel.connector.phase is Phase.READY:
            goodbye = tunnel.connector.disconnect()
            tunnel.goodbyes_said += 1
            if half and not tunnel.up.cut:
                tunnel.half_closed = True
            else:
                tunnel.up.send(goodbye)

    def connector_gives_up(self, tunnel: Tunnel) -> None:
        """It ends the stream, or notices that it has ended; what is under way may be lost."""
        tunnel.connector.end()
        assert tunnel.connector.phase is Phase.ENDED
        tunnel.down.break_off()

    # The gateway

    @rule(tunnel=tunnels, most=PARTS)
    def gateway_reads(self, tunnel: Tunnel, most: int) -> None:
        gateway = tunnel.gateway
        batch = tunnel.up.deliver(most)
        before = gateway.phase
        self._gateway_hears(tunnel, gateway.receive(batch, self.now), before)
        if tunnel.half_closed and not tunnel.up.messages and gateway.phase is not Phase.REGISTERING:
            tunnel.half_closed = False
            self._gateway_hears(tunnel, gateway.half_close(self.now), gateway.phase)

    def _gateway_hears(self, tunnel: Tunnel, inbound: FromConnector, before: Phase) -> None:
        gateway = tunnel.gateway
        if before is Phase.ENDED:
            assert not any(getattr(inbound, name) for name in FromConnector.__slots__)
            return
        assert inbound.ignored == []
        assert inbound.too_large is None
        if inbound.registration is not None:
            assert before is Phase.OPENED
            assert inbound.registration.connection_id == ""
        tunnel.settled += [
            each.request_id for each, *_ in inbound.responses if not each.request_id.startswith("p")
        ]
        tunnel.goodbyes_heard += inbound.goodbye is not None
        for response, *_ in inbound.responses:
            if response.request_id.startswith("p") and gateway.established:
                assert response.payload == TOKEN.encode()
                tunnel.down.send(gateway.respond(response))
        for kind, message, _ in inbound.rest:
            assert kind == "request"
            self._route(tunnel, message)
        if gateway.phase is Phase.ENDED:
            assert tunnel.up.garbled or (inbound.end is not None and "within" in inbound.end.reason)
            self.gateway_ends(tunnel)

    def _route(self, tunnel: Tunnel, message: ConnectionMessage) -> None:
        """A call of the connector's own: a probe goes back to it, any other is answered."""
        gateway, request = tunnel.gateway, message.request
        if request.method_path.endswith(PROBE_METHOD):
            if gateway.phase is Phase.READY:
                tunnel.down.send(message.SerializeToString())
        elif gateway.established:
            response = ForwardResponse(request_id=request.request_id, status_code=200)
            tunnel.down.send(gateway.respond(response))

    @rule(tunnel=tunnels)
    def gateway_accepts(self, tunnel: Tunnel) -> None:
        if tunnel.gateway.phase is Phase.REGISTERING:
            tunnel.down.send(tunnel.gateway.accept(f"id-{tunnel.number}", self.now))
            self._gateway_hears(tunnel, tunnel.gateway.receive([], self.now), Phase.READY)

    def gateway_refuses(self, tunnel: Tunnel) -> None:
        """Other gateways than ours say ERROR before they end the stream."""
        if tunnel.gateway.phase is Phase.REGISTERING:
            error = ConnectionStatus(status=ConnectionStatus.ERROR, message="no room")
            tunnel.down.send(ConnectionMessage(status=error).SerializeToString())
            self.gateway_ends(tunnel)

    @rule(tunnel=tunnels)
    def gateway_asks(self, tunnel: Tunnel) -> None:
        if tunnel.gateway.phase is Phase.READY:
            request_id = f"r{tunnel.number}.{len(tunnel.asked)}"
            tunnel.asked.append(request_id)
            request = ForwardRequest(request_id=request_id, method_path="/a.B/C")
            tunnel.down.send(ConnectionMessage(request=request).SerializeToString())

    @rule(tunnel=tunnels)
    def gateway_cancels(self, tunnel: Tunnel) -> None:
        if tunnel.gateway.established and tunnel.asked:
            said = tunnel.gateway.cancel(tunnel.asked[-1], "gave up")
            assert (said is not None) == (CANCEL in tunnel.gateway.features)
            if said is not None:
                tunnel.down.send(said)

    @rule(tunnel=tunnels)
    def gateway_reports_an_error(self, tunnel: Tunnel) -> None:
        if tunnel.gateway.established:
            tunnel.down.send(tunnel.gateway.report_error("too many subscriptions"))

    def gateway_dismisses(self, tunnel: Tunnel) -> None:
        if tunnel.gateway.established:
            tunnel.down.send(tunnel.gateway.dismiss("stopping"))

    def gateway_ends(self, tunnel: Tunnel) -> None:
        """It ends the stream, or notices that it has ended; what it said may still arrive."""
        tunnel.gateway.end()
        assert tunnel.gateway.phase is Phase.ENDED
        tunnel.up.break_off()

    # The network

    def network_breaks(self, tunnel: Tunnel, *, up: bool, down: bool) -> None:
        """In one direction or both, and with what is under way. Neither end notices by itself."""
        if up:
            tunnel.up.break_off()
        if down:
            tunnel.down.break_off()

    def network_garbles(self, direction: Direction) -> None:
        if not direction.cut:
            direction.garbled = True
            direction.send(b"\xff\xff")

    @rule(tunnel=tunnels)
    def drive(self, tunnel: Tunnel) -> None:
        """Deliver until both ends have nothing more to say; then each has heard all."""
        for _ in range(100):
            if not (tunnel.up.messages or tunnel.down.messages):
                break
            self.gateway_reads(tunnel, 5)
            self.gateway_accepts(tunnel)
            self.connector_reads(tunnel, 5)
        if not (tunnel.up.cut or tunnel.down.cut or tunnel.over()):
            assert tunnel.connector.phase in (tunnel.gateway.phase, Phase.LEAVING)
            assert tunnel.connector.connection_id == tunnel.gateway.connection_id
            assert tunnel.returned == tunnel.called

    @rule(tunnel=tunnels, trouble=st.sampled_from(TROUBLES))
    def something_ends(self, tunnel: Tunnel, trouble: Trouble) -> None:
        """One rule for all of it, or no connection would live for long."""
        trouble(self, tunnel)

    # Time

    @rule(quarters=st.integers(1, 600), asleep=st.booleans(), flows=st.booleans())
    def time_passes(self, quarters: int, asleep: bool, flows: bool) -> None:
        """Each end looks when it is due; a connector that sleeps looks when it wakes.

        What is said meanwhile arrives at once, or not before both ends read.
        """
        until = self.now + quarters / 4
        while True:
            looks: list[tuple[float, int, Callable[[], None]]] = []
            for tunnel in self.all:
                due = tunnel.gateway.due()
                if due is not None:
                    looks.append((due, 0, lambda tunnel=tunnel: self._gateway_looks(tunnel)))
                due = tunnel.connector.due()
                if due is not None and not asleep:
                    looks.append((due, 1, lambda tunnel=tunnel: self._connector_looks(tunnel)))
            due, _, look = min(
                looks, default=(until + 1, 0, lambda: None), key=lambda each: each[:2]
            )
            if due > until:
                break
            self.now = max(self.now, due)
            look()
            for tunnel in self.all if flows and not asleep else ():
                self.drive(tunnel)
        self.now = until
        if asleep:
            for tunnel in self.all:
                self._connector_looks(tunnel)

    def _connector_looks(self, tunnel: Tunnel) -> None:
        connector = tunnel.connector
        left_at = max(tunnel.last_left, tunnel.accepted_at)
        due = connector.tick(self.now, self.now)
        then = connector.due()
        assert then is None or self.now < then <= self.now + LOOK
        if due.heartbeat is not None:
            assert not due.end
            tunnel.up.send(due.heartbeat)
            connector.heartbeat_left(self.now)
            tunnel.last_left = self.now
        if due.probe is not None:
            tunnel.up.send(due.probe)
        if connector.established:
            assert due.end or self.now - left_at <= SILENCE
        if due.end:
            assert then is None
            self.connector_gives_up(tunnel)

    def _gateway_looks(self, tunnel: Tunnel) -> None:
        end = tunnel.gateway.tick(self.now)
        then = tunnel.gateway.due()
        assert then is None or then > self.now
        if end is not None:
            assert then is None
            tunnel.silent = True
            self.gateway_ends(tunnel)

    def nobody_looks_in_time(self) -> None:
        """Both ends read before they look: the handshake has taken too long."""
        self.now += HANDSHAKE + 1.0

    # Always

    @invariant()
    def neither_end_is_ahead_of_what_the_other_said(self) -> None:
        order = list(Phase)
        for tunnel in self.all:
            connector, gateway = tunnel.connector, tunnel.gateway
            if gateway.established and connector.phase is not Phase.ENDED:
                assert order.index(connector.phase) >= order.index(Phase.REGISTERING)
            if connector.established:
                assert connector.connection_id == gateway.connection_id == f"id-{tunnel.number}"
            if gateway.phase is Phase.LEAVING:
                assert connector.phase in (Phase.LEAVING, Phase.ENDED)
            if gateway.phase is Phase.REGISTERING:
                assert connector.phase in (Phase.REGISTERING, Phase.ENDED)

    @invariant()
    def what_is_heard_was_said_once_and_in_order(self) -> None:
        for tunnel in self.all:
            heard = [each for each in tunnel.asked if each in tunnel.heard]
            assert tunnel.heard == heard
            missed = set(tunnel.asked[: tunnel.asked.index(heard[-1])] if heard else []) - {*heard}
            assert missed <= tunnel.cancelled
            assert tunnel.settled == tunnel.answered[: len(tunnel.settled)]
            assert tunnel.returned == tunnel.called[: len(tunnel.returned)]
            assert tunnel.goodbyes_heard <= tunnel.goodbyes_said <= 1

    @invariant()
    def every_heartbeat_carried_the_id_that_was_given(self) -> None:
        for tunnel in self.all:
            assert tunnel.gateway.foreign_heartbeat is None

    @invariant()
    def whoever_has_ended_waits_for_nothing(self) -> None:
        for tunnel in self.all:
            for side in (tunnel.connector, tunnel.gateway):
                if side.phase is Phase.ENDED:
                    assert side.due() is None


TestPair = PairMachine.TestCase


# Every transition


EVENTS: list[Trouble] = [
    *TROUBLES,
    PairMachine.connector_registers,
    PairMachine.gateway_accepts,
    lambda machine, tunnel: machine.nobody_looks_in_time(),
]


def test_every_declared_transition_is_taken_and_no_other() -> None:
    taken.clear()
    for phase in BEGUN:
        for events in product(EVENTS, EVENTS):
            play(events, phase)
    assert DECLARED - set(taken) == set(), "declared, and taken by no test"
    assert set(taken) - DECLARED == set()


def play(events: tuple[Trouble, ...], phase: Phase) -> None:
    """One thing after the other happens to a connection in that phase, and both ends read."""
    machine = PairMachine()
    tunnel = machine._open(frozenset({CANCEL}), phase, probes=False)
    for event in events:
        event(machine, tunnel)
    machine.gateway_reads(tunnel, 5)
    machine.gateway_accepts(tunnel)
    machine.connector_reads(tunnel, 5)
