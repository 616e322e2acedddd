"""The embedded gateway with faults inside: requests on their way out, handshakes, a lost memory."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from typing import Any

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardRequest
from revconn.core.rope import Data
from revconn.core.status import StatusCode
from revconn.gateway import Gateway
from revconn.gateway.limits import Limits
from revconn.gateway.outbound import Outbound
from revconn.gateway.refusals import Refused
from revconn.gateway.serving import Serving
from revconn.gateway.shared import Hooks

__all__ = ["FaultyGateway", "RequestFaults"]

_TIMEOUT = 10.0  # seconds for the gateway's thread to come to it


class RequestFaults(Hooks):
    """Which faults there are to be. Tests ask for them; the gateway's thread meets them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything
        self._refusal: tuple[StatusCode, str] | None = None
        self._duplicates = 0
        self._oversize = 0
        self._reordered = 0
        self._held: list[tuple[_FaultyOutbound, bytes]] = []

    # What a test asks for

    def refuse(self, code: StatusCode, message: str) -> None:
        """Refuse whoever registers."""
        with self._lock:
            self._refusal = code, message

    def admit_again(self) -> None:
        """Refuse nobody any more."""
        with self._lock:
            self._refusal = None

    def duplicate(self, count: int) -> None:
        """Send so many requests twice."""
        with self._lock:
            self._duplicates += count

    def oversize(self, size: int) -> None:
        """Enlarge one request to so many bytes."""
        with self._lock:
            self._oversize = size

    def reorder(self, count: int) -> None:
        """Hold so many requests, and turn their order round."""
        with self._lock:
            self._reordered += count

    # What the gateway meets

    def admit(self) -> None:
        """As :meth:`Hooks.admit`: refuses whoever registers, as long as a test asks for that."""
        with self._lock:
            refusal = self._refusal
        if refusal is not None:
            raise Refused(*refusal)

    def new_outbound(self, limits: Limits) -> Outbound:
        """As :meth:`Hooks.new_outbound`: a queue whose requests meet these faults."""
        return _FaultyOutbound(limits, self)

    def meet(self, data: bytes, outbound: _FaultyOutbound) -> list[tuple[_FaultyOutbound, bytes]]:
        """What is to be written, and where, now that ``data`` was to be written to one of them."""
        with self._lock:
            # Decoded only while a fault waits: responses, events and all the other requests pass.
            if not (self._duplicates or self._oversize or self._reordered) or not _is_request(data):
                return [(outbound, data)]
            if self._oversize:
                data = _enlarge(data, self._oversize)
                self._oversize = 0
            messages = [(outbound, data)]
            if self._duplicates:
                self._duplicates -= 1
                messages *= 2
            if not self._reordered:
                return messages
            self._reordered -= 1
            self._held += messages
            if self._reordered:
                return []
            # Each with the connection it was for: they may be several.
            released = self._held[::-1]
            self._held = []
            return released


class _FaultyOutbound(Outbound):
    """A connection's queue, of whose requests the faults have their say as they leave.

    It belongs to the gateway's thread, as every :class:`Outbound`.
    """

    def __init__(self, limits: Limits, faults: RequestFaults) -> None:
        super().__init__(limits)
        self._faults = faults
        self._through: deque[bytes] = deque()  # what has been met and is to be written now

    @property
    def has_more(self) -> bool:
        """As :attr:`Outbound.has_more`."""
        return super().has_more or (bool(self._through) and not self.is_discarded)

    def take(self, room: int) -> list[Data]:
        """As :meth:`Outbound.take`, of what has met the faults."""
        for data in () if self._through else super().take(room):
            for outbound, message in self._faults.meet(bytes(data), self):
                outbound._through.append(message)
                # It may be another connection's, whose stream has nothing to do just now.
                if outbound is not self:
                    outbound.on_put()
        taken: list[Data] = []
        while self._through and room > 0 and not self.is_discarded:
            taken.append(self._through.popleft())
            room -= len(taken[-1])
        return taken


class FaultyGateway(Gateway):
    """A gateway with faults inside, on a free port that it keeps: the same one after each start."""

    def __init__(self, faults: RequestFaults, **options: Any) -> None:
        super().__init__("127.0.0.1:0", **options)
        # Not an argument of Gateway: faults are no option that anybody should find there.
        self._settings = replace(self._settings, hooks=faults)

    @property
    def port(self) -> int:
        """Where it listens, or will again."""
        return int(self.address.rpartition(":")[2])

    def start(self) -> Gateway:
        """As :meth:`Gateway.start`, and from then on always on the same port."""
        super().start()
        # The free port of the first start: connectors come back to it after a restart.
        self._settings = replace(self._settings, port=self.port)
        return self

    def forget_all(self) -> None:
        """Forget every connection, and leave its stream open; returns when that is done."""
        with self._lock:
            thread = self._thread
        if thread is None:
            return
        done = threading.Event()

        def forget(serving: Serving) -> None:
            for connection in serving.registry.connections:
                serving.registry.forget(connection)
            done.set()

        # The registry belongs to the gateway's thread. A gateway that stops meanwhile does not run
        # this any more, so that the wait has an end of its own.
        thread.call_soon(forget)
        done.wait(_TIMEOUT)


def _is_request(data: bytes) -> bool:
    return ConnectionMessage.FromString(data).HasField("request")


def _enlarge(data: bytes, size: int) -> bytes:
    """The same message, at least ``size`` bytes long: of two values of a field the last counts."""
    padding = ConnectionMessage(request=ForwardRequest(request_id="x" * size))
    return padding.SerializeToString() + data
