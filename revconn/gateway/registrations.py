"""Register: backends' registrations; each has to be repeated within the heartbeat timeout.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio

from revconn._proto.registry_pb2 import RegisterRequest, RegisterResponse
from revconn.core.connection import decode
from revconn.core.rope import Data
from revconn.core.status import ProtocolError, StatusCode
from revconn.gateway.addresses import Address
from revconn.gateway.deadlines import Timeouts
from revconn.gateway.refusals import STOPPING, Refused
from revconn.gateway.rpcs import Method, UnaryRpc
from revconn.gateway.shared import Shared
from revconn.http2.requests import RequestHead
from revconn.http2.streams import Stream

__all__ = ["Registrations"]

_METHOD = b"/registry.RegistryService/Register"


class Registrations:
    """Takes every ``Register``."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.is_leaving = False
        loop, timeout = asyncio.get_running_loop(), shared.limits.handshake_timeout
        self.timeouts = Timeouts(loop, timeout, _Register.expire)

    def methods(self) -> tuple[Method, ...]:
        """What they call."""
        return (Method(_METHOD, self._serve),)

    def leave(self) -> None:
        """Take none from now on."""
        self.is_leaving = True

    def _serve(self, stream: Stream, head: RequestHead, peer: str) -> _Register:
        return _Register(stream, head, peer, self)


class _Register(UnaryRpc):
    """One registration."""

    __slots__ = ("_is_awaited", "_registrations")

    def __init__(
        self, stream: Stream, head: RequestHead, peer: str, registrations: Registrations
    ) -> None:
        super().__init__(stream, head, peer)
        self._registrations = registrations
        self._is_awaited = False

    def start(self) -> None:
        """See whether there is room for it. Raises :class:`Refused`."""
        super().start()
        registrations = self._registrations
        shared = registrations.shared
        if registrations.is_leaving:
            raise Refused(StatusCode.UNAVAILABLE, STOPPING)
        if not shared.handshakes.make_room(self.stream.owner.owners):
            raise shared.too_many_handshakes()
        shared.handshakes.take(self.stream.owner.owners, self)
        # The stream was opened and nothing said: it would hold a place for ever.
        self._is_awaited = True
        registrations.timeouts.add(self)

    def expire(self) -> None:
        """Nothing has come in time."""
        shared = self._registrations.shared
        shared.counters.refused["handshake_timeout"] += 1
        problem = f"no request came within {shared.limits.handshake_timeout:g} seconds"
        self.turn_away(Refused(StatusCode.DEADLINE_EXCEEDED, problem))

    def turn_away(self, refused: Refused) -> None:
        """It may not register, or not now."""
        self.abandon()
        self._registrations.shared.journal.refused_backend(self.peer, refused.code, refused.message)
        self.finish(refused.code, refused.message)

    @staticmethod
    def not_unary() -> Refused:
        """Why a stream is no registration."""
        problem = "the stream ended without a RegisterRequest"
        return Refused(StatusCode.INVALID_ARGUMENT, problem)

    def receive(self, message: Data) -> None:
        """The request has come."""
        self.abandon()
        backends = self._registrations.shared.backends
        try:
            request = decode(RegisterRequest, message)
            address = backends.register(request, self.peer)
        except ProtocolError as error:
            self.turn_away(Refused(StatusCode.INVALID_ARGUMENT, str(error)))
        except Refused as refused:
            self.stream.owner.endpoint.charge(5)
            self.turn_away(refused)
        else:
            answer = RegisterResponse(success=True, message=self._words(address))
            self.reply(answer.SerializeToString())

    def _words(self, address: Address | None) -> str:
        if address is None:
            return "registered, and not dialled: open EstablishConnection to be called"
        timeout = self._registrations.shared.heartbeat_timeout
        return f"{address} is registered; repeat this within {timeout:g} seconds"

    def abandon(self) -> None:
        """It was answered, or its caller is gone."""
        if self._is_awaited:
            self._is_awaited = False
            self._registrations.timeouts.discard(self)
            self._registrations.shared.handshakes.give_back(self)
