"""The embedded gateway, with faults inside and a port that it keeps."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from revconn.gateway import Gateway
from revconn.gateway.listening import Serving
from revconn.testing.request_faults import RequestFaults

__all__ = ["FaultyGateway"]

_TIMEOUT = 10.0


class FaultyGateway(Gateway):
    """A gateway on a free port, the same one after each start."""

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
