"""TestGateway: a gateway to test a connector's application against."""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import Message

from revconn.gateway import ConnectionInfo, Gateway
from revconn.settings.checks import refuse, require_api_key, require_count, require_seconds
from revconn.testing.fault_proxy import FaultProxy
from revconn.testing.faults import Faults
from revconn.testing.faulty_gateway import FaultyGateway, RequestFaults

__all__ = ["TestGateway"]

_POLL_INTERVAL = 0.005  # seconds
_CHANNEL_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # After a restart it is there again at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
]


class TestGateway:
    """An embedded gateway on loopback, in plaintext, with faults at hand.

    It serves from the moment it is made until :meth:`close`, or the end of a ``with`` block.
    Connectors dial :attr:`address`, which leads through a proxy that can break what passes;
    callers go straight to the gateway.

    :param api_key: the key that connectors have to show.
    :param options: those of :class:`revconn.gateway.Gateway`, such as ``request_timeout``, apart
        from ``address``, ``api_keys`` and ``tls``; ``dial_private`` is on.

    Raises :class:`ConfigurationError` for an option that cannot be used. Every method may be
    called from any thread, :meth:`start`, :meth:`stop`, :meth:`restart` and :meth:`close` by one
    at a time.

    :ivar address: the ``host:port`` for a connector. It stays the same when the gateway restarts.
    :ivar api_key: the key for a connector.
    :ivar faults: what can go wrong; see :class:`Faults`.
    :ivar gateway: the :class:`revconn.gateway.Gateway` inside: ``gateway.stats()``, say.
    """

    __test__ = False  # pytest: not a class of tests

    def __init__(self, *, api_key: str = "test-key", **options: Any) -> None:
        for name in ("address", "api_keys", "tls"):
            if name in options:
                refuse(name, None, "given, but TestGateway chooses it", "leave it off")
        self.api_key = require_api_key(api_key)
        requests = RequestFaults()
        # A test's services listen on loopback, as this does.
        options.setdefault("dial_private", True)
        self._gateway = FaultyGateway(requests, api_keys=api_key, **options)
        self._gateway.start()
        # Between connectors and the gateway alone: callers are to see what comes of a fault, not
        # the fault itself.
        self._proxy = FaultProxy(self._gateway.port)
        self.address = self._proxy.address
        self.gateway: Gateway = self._gateway
        self.faults = Faults(self._gateway, self._proxy, requests)
        self._channels = ExitStack()
        self._channel = self._new_channel()

    # Callers

    @property
    def channel(self) -> grpc.Channel:
        """A channel for generated stubs, to the gateway; a new one after each stop.

        Those before it go on working, once they have found out that they have to connect again.
        """
        return self._channel

    def _new_channel(self) -> grpc.Channel:
        channel = grpc.insecure_channel(self._gateway.address, options=_CHANNEL_OPTIONS)
        return self._channels.enter_context(channel)

    def call(
        self,
        method: str,
        payload: bytes | Message = b"",
        *,
        timeout: float = 10.0,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        """Call a method as any gRPC client would, and wait for the answer: its encoded message.

        Waits for a gateway that is stopped. Raises :class:`grpc.RpcError`, whose ``code()`` and
        ``details()`` say what went wrong; after ``timeout`` seconds that is DEADLINE_EXCEEDED.

        :param method: the full path, ``/package.Service/Method``.
        :param payload: a message of protobuf's, or an encoded one.
        """
        return self.call_future(method, payload, timeout=timeout, headers=headers).result()

    def call_future(
        self,
        method: str,
        payload: bytes | Message = b"",
        *,
        timeout: float = 10.0,
        headers: dict[str, str] | None = None,
    ) -> grpc.Future[bytes]:
        """As :meth:`call`, without waiting: ``result()`` has the answer, or raises.

        Hold on to what is returned: gRPC cancels a call that nobody holds any more.
        """
        message = payload if isinstance(payload, bytes) else payload.SerializeToString()
        unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method)
        return unary.future(
            message,
            timeout=require_seconds("timeout", timeout),
            metadata=tuple((headers or {}).items()),
            wait_for_ready=True,
        )

    # Connectors

    def connections(self) -> tuple[ConnectionInfo, ...]:
        """The connections that get requests: not those that leave, or that a fault has hit."""
        return tuple(
            connection
            for connection in self._gateway.connections()
            if not connection.draining and connection.connection_id not in self.faults.lost
        )

    def wait_connected(
        self, count: int = 1, *, timeout: float = 10.0
    ) -> tuple[ConnectionInfo, ...]:
        """Wait until there are ``count`` connections, or more, and return them.

        Calls are answered from then on. The connector itself may need a moment more to be READY:
        its own ``wait_ready()`` waits for that.
        A connection that a fault has hit does not count: after ``faults.drop()`` this waits until
        the connector is back. Raises :class:`TimeoutError`, which says how many there are.
        """
        require_count("count", count)
        deadline = time.monotonic() + require_seconds("timeout", timeout)
        while len(connections := self.connections()) < count:
            if time.monotonic() >= deadline:
                # The usual mistake in a test is a wrong key, of which the gateway keeps count.
                refused = self._gateway.stats()["connections_refused"]
                raise TimeoutError(
                    f"after {timeout:g} seconds {len(connections)} of {count} connectors are "
                    f"connected to {self.address}; {refused} attempts were refused"
                )
            time.sleep(_POLL_INTERVAL)
        return connections

    # The gateway's own life

    def stop(self, *, grace: float = 0.0) -> None:
        """An outage: the gateway says goodbye and is gone until :meth:`start`.

        Calls under way have ``grace`` seconds to be answered.
        """
        self._gateway.stop(grace)
        # One that has been used might send the next call down the connection that is gone.
        self._channel = self._new_channel()

    def start(self) -> None:
        """End the outage. Raises :class:`RuntimeError` when there is none."""
        self._gateway.start()

    def restart(self, *, grace: float = 0.0) -> None:
        """Stop and start: every connector has to come back."""
        self.stop(grace=grace)
        self.start()

    def close(self) -> None:
        """End everything. Idempotent."""
        self._channels.close()
        self._gateway.stop(grace=0.0)
        self._proxy.close()

    def __enter__(self) -> TestGateway:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<TestGateway {self.address}>"
