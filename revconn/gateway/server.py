"""Gateway: the façade for synchronous code, and the thread that serves behind it."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import ipaddress
import logging
import re
import threading
import time
from types import TracebackType
from typing import Any

import grpc

from revconn.gateway.keys import ApiKeys, ApiKeysGiven
from revconn.gateway.registry import ConnectionInfo, Registry
from revconn.gateway.serving import Serving, Settings
from revconn.gateway.tls import ServerTLS
from revconn.validation import refuse, require_count, require_seconds

__all__ = ["Gateway"]

logger = logging.getLogger(__name__)

_START_TIMEOUT = 30.0
_STOP_MARGIN = 10.0  # seconds that ending takes at most, beyond the grace given to calls
_LARGEST_MESSAGE = 2**31 - 1
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]@]+):(?P<port>\d{1,5})")


class Gateway:
    """A gateway inside this process: connectors dial in, gRPC clients call what they serve.

    One port takes both: ``registry.RegistryService`` is for connectors, every other unary call
    is forwarded to a connector that registered its service and answered with what came back.

    :param address: the ``host:port`` to listen on; port 0 takes a free one.
    :param api_keys: the key or keys that connectors may show; or a dict of keys, each with
        ``None`` or a list of patterns: which services it may register and, from a connector, call.
        ``"echo.Echo"`` is that service, ``"echo.*"`` every service below ``echo``, ``"*"`` every
        service. ``None``: whatever key is shown is taken, on a loopback address only.
    :param tls: :class:`ServerTLS`, or ``grpc.ssl_server_credentials(…)``; ``None`` for plaintext.
    :param heartbeat_timeout: seconds without a heartbeat after which a connection is ended.
    :param request_timeout: seconds a call may take at most, whatever its caller would allow.
    :param max_pending: calls that may wait for an answer at once; more fail with
        RESOURCE_EXHAUSTED.
    :param max_message_bytes: the largest message taken from a connector or a caller (4 MiB),
        below 2 GiB.

    Raises :class:`ConfigurationError` for an argument that cannot be used. Every method may be
    called from any thread. A stopped gateway may be started again.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        *,
        api_keys: ApiKeysGiven = None,
        tls: ServerTLS | grpc.ServerCredentials | None = None,
        heartbeat_timeout: float = 120.0,
        request_timeout: float = 30.0,
        max_pending: int = 1000,
        max_message_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        if tls is not None and not isinstance(tls, (ServerTLS, grpc.ServerCredentials)):
            kind = type(tls).__name__  # no more of it: it may be a private key
            remedy = "give ServerTLS(…), grpc.ssl_server_credentials(…), or None for plaintext"
            refuse("tls", None, f"is {kind}, not TLS settings", remedy)
        host, port = _parse_address(address)
        self._address = address
        self._keys = ApiKeys(api_keys)
        self._is_loopback = _is_loopback(host)
        if not self._keys.are_checked:
            self._require_loopback()
        self._settings = Settings(
            host=host,
            port=port,
            keys=self._keys,
            tls=tls,
            heartbeat_timeout=require_seconds("heartbeat_timeout", heartbeat_timeout),
            request_timeout=require_seconds("request_timeout", request_timeout),
            max_pending=require_count("max_pending", max_pending),
            max_message_bytes=_require_message_size(max_message_bytes),
        )
        self._lock = threading.Lock()  # guards _thread
        self._thread: _GatewayThread | None = None

    @property
    def address(self) -> str:
        """``host:port``, with the real port once the gateway has started."""
        return self._address

    def start(self) -> Gateway:
        """Listen and serve, on a thread of the gateway's own; returns once it does.

        Raises :class:`OSError` when the address cannot be listened on, and
        :class:`RuntimeError` when the gateway is running already.
        """
        with self._lock:
            if self._thread is not None:
                raise RuntimeError("the gateway is running already")
            thread = self._thread = _GatewayThread(self._settings)
        try:
            self._address = thread.start()
        except BaseException:
            self.stop(grace=0.0)
            raise
        atexit.register(self.stop, grace=0.0)
        logger.info("gateway listening on %s", self._address)
        return self

    def stop(self, grace: float = 5.0) -> None:
        """Take nothing new, let calls be answered for ``grace`` seconds, then end everything.

        Idempotent. Returns when the gateway's thread has ended, at most ten seconds after the
        grace. A call from the gateway's own thread (a log handler's) returns at once.
        """
        require_seconds("grace", grace, zero=True)
        with self._lock:
            thread = self._thread
        if thread is None:
            return
        if not thread.stop(grace):
            return
        with self._lock:
            if self._thread is thread:
                self._thread = None
        atexit.unregister(self.stop)

    def replace_keys(self, api_keys: ApiKeysGiven) -> None:
        """Accept these keys from now on, instead of those before.

        Connections whose key is not among them are ended with UNAUTHENTICATED; all others go on,
        with what they have registered. New patterns count for what is registered and called from
        now on. Raises :class:`ConfigurationError`, and changes nothing, as the constructor does.
        """
        if api_keys is None:
            self._require_loopback()
        self._keys.replace(api_keys)
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.end_withdrawn()

    def _require_loopback(self) -> None:
        if not self._is_loopback:
            problem = f"none given, and {self._address} can be reached from elsewhere"
            refuse("api_keys", None, problem, "give a key, or listen on 127.0.0.1")

    def connections(self) -> tuple[ConnectionInfo, ...]:
        """The connectors' connections as they are now, oldest first; none when not running."""
        with self._lock:
            thread = self._thread
        return () if thread is None else thread.connections()

    def __enter__(self) -> Gateway:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        with self._lock:
            state = "stopped" if self._thread is None else "running"
        return f"<Gateway {self._address} {state}>"


class _GatewayThread:
    """The thread of a gateway, its event loop, and the way in from other threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = threading.Thread(target=self._run, name="revconn-gateway", daemon=True)
        self._started: concurrent.futures.Future[str] = concurrent.futures.Future()
        # Set by the gateway's thread before it reports that it has started:
        self._registry = Registry()
        self._serving: Serving | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_requested: asyncio.Future[float] | None = None

    def start(self) -> str:
        """Serve; the address. Raises what made that fail."""
        self._thread.start()
        return self._started.result(_START_TIMEOUT)

    def stop(self, grace: float) -> bool:
        """Stop serving; whether the thread has ended."""
        if threading.current_thread() is self._thread:
            self._request_stop(grace)
            return False
        concurrent.futures.wait([self._started], _START_TIMEOUT)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: stopped already
                self._loop.call_soon_threadsafe(self._request_stop, grace)
        self._thread.join(grace + _STOP_MARGIN)
        if self._thread.is_alive():
            logger.error(
                "the gateway's thread has not ended %g seconds after its grace", _STOP_MARGIN
            )
        return not self._thread.is_alive()

    def connections(self) -> tuple[ConnectionInfo, ...]:
        """A picture of every connection."""
        return self._registry.describe(time.monotonic())

    def end_withdrawn(self) -> None:
        """End the connections whose key is not accepted any more."""
        serving, loop = self._serving, self._loop
        if serving is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: all are ended
                loop.call_soon_threadsafe(serving.end_withdrawn)

    def _request_stop(self, grace: float) -> None:
        if self._stop_requested is not None and not self._stop_requested.done():
            self._stop_requested.set_result(grace)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._started.done():
                logger.exception("the gateway failed")
            else:
                # Its traceback would keep the server, and grpc's thread with it, for a while.
                self._started.set_exception(error.with_traceback(None))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_report_loop_error)
        self._stop_requested = self._loop.create_future()
        serving = Serving(self._settings)
        address = await serving.start()
        self._registry = serving.registry
        self._serving = serving
        self._started.set_result(address)
        expiry = asyncio.ensure_future(serving.expire())
        grace = 0.0
        try:
            grace = await self._stop_requested
        finally:
            expiry.cancel()
            await serving.stop(grace)
            self._serving = None  # grpc's thread ends with the server


def _report_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Old grpcio wakes every event loop of the process for each event, and all but one of them
    # find nothing to read: harmless, and far too much for a log.
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)


def _require_message_size(value: Any) -> int:
    if require_count("max_message_bytes", value) > _LARGEST_MESSAGE:
        refuse("max_message_bytes", value, "more than gRPC can count", "give less than 2 GiB")
    return int(value)


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _parse_address(address: Any) -> tuple[str, int]:
    matched = _HOST_PORT.fullmatch(address) if isinstance(address, str) else None
    if matched is None or int(matched["port"]) > 65535:
        remedy = (
            'write host:port, such as "127.0.0.1:50051" or "[::]:50051"; port 0 takes a free one'
        )
        refuse("address", address, "not an address to listen on", remedy)
    return matched["host"], int(matched["port"])
