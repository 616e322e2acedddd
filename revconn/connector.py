"""The connector: what an application creates, gives its handlers to, and starts."""

from __future__ import annotations

import atexit
import inspect
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Executor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, cast

from revconn.exceptions import ConfigurationError, RevconnError
from revconn.exceptions import is_fatal as default_is_fatal
from revconn.logger import get_logger
from revconn.runtime.signals import obey_signals, signals_into
from revconn.runtime.state import LinkStatus, State, Stopped, trouble
from revconn.runtime.threads import Mailbox, aside, is_own_thread
from revconn.serving.handler_registry import HandlerRegistry
from revconn.settings.checks import (
    refuse,
    require_attribute,
    require_flag,
    require_seconds,
    require_wait,
)
from revconn.settings.environment import PREFIX, environment_options, named_by_variable
from revconn.settings.options import TLS, Backoff, Options, api_key_source, parse_services
from revconn.settings.target import parse_targets
from revconn.supervisor import Claims, StateBoard, Supervisor

if TYPE_CHECKING:
    import grpc

__all__ = ["Connector", "LinkStatus"]

logger = get_logger(__name__)

_NOT_GIVEN = cast(float, object())
_HELD_UP = 10.0  # seconds; all that closing takes beyond its timeout is less


class Connector(HandlerRegistry):
    """Serves gRPC requests that gateways push down connections which this side opened.

    Every option is keyword-only; durations are float seconds, sizes bytes.

    :param targets: a gateway's address (``host:port``, ``[v6]:port``, ``unix:path``), or several:
        one connection to each, all serving.
    :param every_address: one link to each address that a target's name has, looked up anew about
        every 30 s: to each of the gateways behind one name (``False``: one link to the name,
        whichever address answers). The link to an address that vanished leaves as :meth:`stop`
        does, once those that appeared are ready; a look-up that fails changes nothing. Not through
        a proxy. An IP address or a Unix socket is one link.
    :param api_key: the key, or a callable that returns it, asked before every handshake.
    :param services: full names of services to register, besides those that handlers name.
    :param tls: ``None`` (TLS, except to a loopback address), a :class:`TLS`, ``True``, or
        ``False`` for plaintext.
    :param transport: ``"http2"`` (a socket, and HTTP/2 of our own: the fast one), ``"grpcio"``, or
        ``"auto"``, which is http2.
    :param proxy: the URL of an HTTP proxy to tunnel through, ``http://[user:password@]host:port``;
        ``None`` asks the environment (``HTTPS_PROXY``, ``NO_PROXY``), ``False`` uses none.
    :param max_workers: how many handlers run at once (16).
    :param max_streams: how many of those streaming calls may hold at once (``None``: half), so that
        unary calls keep the rest; others wait for one. A call whose caller does not read holds
        none.
    :param executor: a :class:`~concurrent.futures.ThreadPoolExecutor` of your own to run them in;
        it is not shut down. Default: one of the connector's.
    :param max_in_flight: requests accepted and not yet answered (1000, as many as the reference
        gateway keeps pending in all); more are refused with 429 at once.
    :param max_in_flight_bytes: bytes of requests, headers and all, accepted and not yet answered
        (64 MiB); beyond them gateways are held back by flow control instead of filling this
        machine's memory.
    :param max_message_bytes: the largest message sent (4 MiB, a gRPC server's default limit:
        beyond it a gateway would end the whole stream). A larger answer is sent in chunks where
        the gateway knows them, and fails alone where it does not.
    :param replay_bytes: of answers that are kept for the next connection, per gateway (16 MiB):
        those that could not leave, and those that left so shortly before a break that they may not
        have arrived. Beyond that the oldest are given up.
    :param heartbeat_interval: seconds between heartbeats (30.0).
    :param liveness_timeout: after a longer silence (a suspended machine, a starved process) the
        gateway may have forgotten the connection, so it is replaced (90.0: that leaves 30 s of
        the reference gateway's 120). ``None`` disables.
    :param connect_timeout: bounds the whole handshake, from dialling to CONNECTED (20.0).
    :param keepalive_interval: between HTTP/2 pings on an idle connection (330.0: servers built on
        gRPC's core refuse pings more often than every 300 s). ``None`` disables.
    :param keepalive_timeout: how long such a ping may stay unanswered and, where the system can
        say so, sent data unacknowledged (20.0).
    :param probe_interval: seconds between calls of the connector to itself through the gateway, of
        each service that it registered, in turn (``None``: none, since not every gateway routes
        such calls). No handler sees them. A connection is replaced when the gateway no longer
        has a route of one of the services, when all calls of one go to other replicas in two
        rounds, or when nothing is heard for ``keepalive_timeout`` after one: it is the one proof
        that requests arrive, where a gateway that locked up still answers pings.
    :param drain_timeout: how long SIGTERM, :meth:`stop` and leaving a ``with`` block wait for
        what was accepted to be answered (30.0).
    :param slow_handler_after: seconds after which a request's handler is named in the log, with
        what its thread is doing (10.0: a third of what the reference gateway gives a request, so
        that the log speaks before callers give up). ``None`` disables.
    :param backoff: :class:`Backoff`, the waits between attempts to connect.
    :param is_fatal: says of a :class:`ConnectionLost` whether trying again is useless
        (:func:`revconn.is_fatal`).
    :param interceptors: :class:`grpc.ServerInterceptor` objects, outermost first, for servicers:
        what :meth:`add_generic_rpc_handlers` and its like register.
    :param start_blocks: what :meth:`start` does when it is not told. With ``False`` a connector
        takes the place of a :class:`grpc.Server`, whose ``start`` returns at once.

    Raises :class:`ConfigurationError` for anything that cannot be used. All methods may be called
    from any thread.
    """

    def __init__(
        self,
        targets: str | Sequence[str],
        *,
        api_key: str | Callable[[], str],
        services: Sequence[str] = (),
        every_address: bool = False,
        tls: TLS | bool | None = None,
        transport: str = "auto",
        proxy: str | bool | None = None,
        max_workers: int = 16,
        max_streams: int | None = None,
        executor: Executor | None = None,
        max_in_flight: int = 1000,
        max_in_flight_bytes: int = 64 << 20,
        max_message_bytes: int = 4 << 20,
        replay_bytes: int = 16 << 20,
        heartbeat_interval: float = 30.0,
        liveness_timeout: float | None = 90.0,
        connect_timeout: float = 20.0,
        keepalive_interval: float | None = 330.0,
        keepalive_timeout: float = 20.0,
        probe_interval: float | None = None,
        drain_timeout: float = 30.0,
        slow_handler_after: float | None = 10.0,
        backoff: Backoff = Backoff(),
        is_fatal: Callable[[Exception], bool] = default_is_fatal,
        interceptors: Sequence[grpc.ServerInterceptor] = (),
        start_blocks: bool = True,
    ) -> None:
        self._options = Options(
            targets=parse_targets(targets),
            every_address=every_address,
            api_key=api_key_source(api_key),
            services=parse_services(services),
            tls=tls,
            transport=transport,
            proxy=proxy,
            max_workers=max_workers,
            max_streams=max_streams,
            executor=executor,
            max_in_flight=max_in_flight,
            max_in_flight_bytes=max_in_flight_bytes,
            max_message_bytes=max_message_bytes,
            replay_bytes=replay_bytes,
            heartbeat_interval=heartbeat_interval,
            liveness_timeout=liveness_timeout,
            connect_timeout=connect_timeout,
            keepalive_interval=keepalive_interval,
            keepalive_timeout=keepalive_timeout,
            probe_interval=probe_interval,
            drain_timeout=drain_timeout,
            slow_handler_after=slow_handler_after,
            backoff=backoff,
            is_fatal=is_fatal,
        )
        self._lock = threading.Lock()  # guards _supervisor, _stopped and registration
        super().__init__(interceptors)
        self._start_blocks = require_flag("start_blocks", start_blocks)
        self._board = StateBoard()
        self._wakeups: Mailbox[int | None] = Mailbox()  # signals; None: the end
        self._supervisor: Supervisor | None = None
        self._stopped = False  # before any start, so there is to be none
        self._forked = False  # it was started in the parent, and this is the child
        _connectors.add(self)

    @classmethod
    def from_env(cls, prefix: str = PREFIX, **overrides: Any) -> Connector:
        """A connector with its options from environment variables.

        ``PREFIX_TARGET`` (comma-separated) and ``PREFIX_API_KEY``, or ``PREFIX_API_KEY_FILE`` (read
        again before every handshake), have to be set; the reference lists the variables of all
        other options. ``overrides`` are options of the constructor: they count instead of their
        variables, which are then not looked at.

        Raises :class:`ConfigurationError` naming the variable that is missing, blank or malformed,
        or that begins with ``REVCONN_`` and is no option's; :class:`TypeError` for an override that
        is none.
        """
        inspect.signature(cls).bind_partial(**overrides)  # before a variable is missed in its place
        options = environment_options(prefix, os.environ, overrides)
        try:
            return cls(**{**options, **overrides})
        except ConfigurationError as error:
            # Whoever has to mend it has set a variable, and never saw the argument.
            raise named_by_variable(error, prefix, overrides) from None

    # To set connector.max_worker, misspelt, would change nothing, and nobody would be told.
    def __setattr__(self, name: str, value: object) -> None:
        require_attribute(Connector, self, name)
        super().__setattr__(name, value)

    # Lifecycle

    def start(self, block: bool | None = None) -> None:
        """Connect and serve.

        With ``block`` (``None``: ``start_blocks``) it returns when the connector was stopped. In
        the main thread it then also
        handles SIGINT and SIGTERM: the first drains, the second aborts (the same one within a
        second is no second). Without ``block`` it
        returns at once and leaves signals alone; :meth:`wait_ready` tells when a gateway has
        accepted the connection.

        Raises :class:`ConfigurationError` when there is nothing to serve, and, when blocking, the
        fatal error that ended it (:class:`AuthenticationError` for a refused key).
        """
        block = self._start_blocks if block is None else require_flag("block", block)
        self._start_applications()
        if not block:
            self._launch()
            return
        # From before the start, so that a signal in the midst of it is heard when it is done.
        with signals_into(self._wakeups):
            supervisor = self._launch()
            # Returns when _end() was called. To begin a drain is not to wait for it: the second
            # signal has to be heard while the first one's drain goes on.
            obey_signals(
                self._wakeups,
                drain=lambda: supervisor.begin_drain(self._options.drain_timeout),
                abort=supervisor.abort,
            )
        self.wait()  # it has ended: this raises what ended it, if anything did

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until at least one gateway has accepted the connection.

        Raises :class:`TimeoutError` after ``timeout`` seconds, which says why there is no
        connection and when the next attempt is due; the fatal error that ended the connector; or
        :class:`RevconnError` when it was stopped. A handler or a callback needs to give a
        ``timeout``: it may hold up the very thread that connects.
        """
        require_wait(timeout)
        if timeout is None and is_own_thread():
            raise RevconnError(
                "wait_ready() in a handler or a callback could wait for itself; give a timeout"
            )
        # After DRAINING there is no READY any more, so to wait on would be to wait for the end.
        reached = self._board.wait_for((State.READY, State.DRAINING, State.CLOSED), timeout)
        if reached is None:
            raise TimeoutError(f"not ready within {timeout:g} s: {self!r}")
        if reached is not State.READY:
            self._raise_error()
            raise RevconnError(f"stopped before it was ready: {self!r}")

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the connector has ended.

        Raises :class:`TimeoutError` after ``timeout`` seconds, and the fatal error that ended it,
        if one did.
        """
        if is_own_thread():
            raise RevconnError("wait() in a handler or a callback would wait for itself")
        require_wait(timeout)
        if self._board.wait_for((State.CLOSED,), timeout) is None:
            raise TimeoutError(f"still running after {timeout:g} s: {self!r}")
        self._raise_error()

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """As :class:`grpc.Server`'s: wait for the end; true when ``timeout`` seconds ran out.

        Raises the fatal error that ended it, if one did.
        """
        try:
            self.wait(timeout)
        except TimeoutError:
            return True
        return False

    def stop(self, timeout: float | None = None, *, grace: float | None = _NOT_GIVEN) -> Stopped:
        """Drain and end: finish what was accepted, say goodbye, and leave.

        Takes at most about ``timeout`` seconds (``None``: ``drain_timeout``); what is unfinished
        by then is answered 503. Idempotent. Called in a handler or a callback it returns at once
        and the draining goes on.

        ``grace``, in the place of ``timeout``, is :class:`grpc.Server`'s: it returns at once, and
        what is unfinished after so many seconds (``None``: at once) is answered 503. What it
        returns is like an event that is set at the end.
        """
        at_once = grace is not _NOT_GIVEN
        name, given = ("grace", grace or 0.0) if at_once else ("timeout", timeout)
        seconds = self._options.drain_timeout if given is None else given
        require_seconds(name, seconds, zero=True)

        def stop() -> None:
            supervisor = self._end_idle()
            if supervisor is not None and at_once:
                supervisor.begin_drain(seconds)
            elif supervisor is not None:
                supervisor.stop(seconds)
                if not is_own_thread():  # else the draining goes on, and ends them
                    self._applications.stop()

        # It takes locks. In a signal handler the main thread may hold one of them already.
        aside(stop, _HELD_UP if at_once else seconds + _HELD_UP)
        return Stopped(lambda timeout: self._board.wait_for((State.CLOSED,), timeout) is not None)

    def abort(self) -> None:
        """End at once; what is in flight is abandoned. Idempotent, and bounded to seconds."""
        aside(self._abort, _HELD_UP)

    def _abort(self) -> None:
        supervisor = self._end_idle()
        if supervisor is not None:
            supervisor.abort()

    # Not stop itself: to unregister that would unregister what an application has registered.
    def _stop_at_exit(self) -> None:
        """The interpreter ends and nobody has stopped it: an ordinary end all the same."""
        self.stop()

    def __enter__(self) -> Connector:
        self.start(block=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # What it is doing

    @property
    def state(self) -> State:
        """What it is doing now. One link that is ready makes a connector ready."""
        return self._board.state

    @property
    def connection_id(self) -> str | None:
        """The id that the (first connected) gateway gave; ``None`` while there is none."""
        return next((link.connection_id for link in self.links if link.connection_id), None)

    @property
    def links(self) -> tuple[LinkStatus, ...]:
        """What each link is doing, in the order of ``targets``.

        With ``every_address`` there is one for each address, ``host:port (address)``.
        """
        # Read once: a start() in another thread sets it.
        supervisor = self._supervisor
        if supervisor is None:
            state = self.state
            return tuple(LinkStatus(str(t), state, None) for t in self._options.targets)
        return tuple(status for link in supervisor.links for status in link.statuses)

    def stats(self) -> dict[str, float]:
        """Counters since the start; empty before it.

        Of requests: ``accepted``; ``answered`` (failures too); ``expired`` (answered by their
        deadline); ``cancelled`` (their caller gave up, so nobody answered them); ``late`` (results
        that came after either); ``overloaded`` (refused); ``repeated``
        (their id was in flight already). ``undelivered``: answers that could not leave at all
        before their deadline, or were beyond ``replay_bytes``. ``replayed``: answers sent again,
        since their connection broke when they had just left. ``connections``: how many were
        established.
        Now: ``in_flight``, and of those ``waiting`` for a worker. With ``probe_interval``, once a
        probe came back: ``probe_round_trip``, the seconds that the last one took (of several
        targets the slowest one's).
        """
        supervisor = self._supervisor
        return {} if supervisor is None else supervisor.stats()

    def on_state_change(self, callback: Callable[[State], object]) -> None:
        """Call ``callback(state)`` at every change from now on, in order, from some thread.

        It should return soon. An exception in it is logged and changes nothing.
        """
        if not callable(callback):
            refuse("callback", callback, "not callable", "give a function of the state")
        self._board.subscribe(callback)

    # What a TimeoutError says of it, so it has to tell why there is no connection.
    def __repr__(self) -> str:
        targets = ", ".join(str(target) for target in self._options.targets)
        troubles = "".join(map(trouble, self.links))
        state = self.state.name
        return f"<Connector {targets} {state} connection_id={self.connection_id}{troubles}>"

    # Inside

    def _registered_services(self) -> tuple[str, ...] | None:
        return None if self._supervisor is None else self._supervisor.services

    def _launch(self) -> Supervisor:
        with self._lock:
            self._refuse_fork()
            if self._supervisor is not None or self._stopped:
                raise RevconnError("a connector starts once; make a new one")
            services = self._services_to_register(self._options.services)
            if not services:
                refuse("services", (), "nothing to serve", "add a handler, or name the services")
            supervisor = self._supervisor = Supervisor(
                self._options,
                self._handlers,
                services,
                self._board,
                on_end=self._end,
            )
        # Outside of the lock: it may warn, and logging runs the application's handlers.
        _claims.claim(self, self._options.targets, services)
        atexit.register(self._stop_at_exit)
        supervisor.start()
        self._applications.watch(supervisor.fail)
        return supervisor

    def _start_applications(self) -> None:
        """Have them start up, before any signal is caught: that may take as long as it likes."""
        if self._supervisor is not None or self._stopped:  # which _launch() will tell
            return
        try:
            self._applications.start()
        except BaseException:
            self._end_idle()
            raise

    def _end(self) -> None:
        """All has ended: in whichever thread ended it. Whoever waits for signals goes on."""
        self._applications.stop()
        atexit.unregister(self._stop_at_exit)
        _claims.release(self)
        self._wakeups.put(None)

    def _forsake(self) -> None:
        """In a forked child: what was started stays the parent's; any lock may be held for ever."""
        self._lock = threading.Lock()
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:  # made before the fork, to be started after it: pre-forking servers
            self._board.renew_locks()
            return
        supervisor.forsake()
        # Without the callbacks, which are for the parent: there it goes on, as if nothing was.
        self._board = StateBoard(State.CLOSED)
        self._forked = self._stopped = True

    def _end_idle(self) -> Supervisor | None:
        """The supervisor to end; without one the connector is closed right here."""
        # At once: another connector may take its place while this one still drains.
        _claims.release(self)
        with self._lock:
            if self._supervisor is not None:
                return self._supervisor
            self._stopped = True  # under the lock: a start() that comes now is refused
        self._board.update(lambda state: State.CLOSED)
        self._applications.begin_stop()  # start() may wait for one just now
        return None

    def _refuse_fork(self) -> None:
        if self._forked:
            raise RevconnError(
                "this connector was started before a fork and serves in the parent only;"
                " make and start one in each child, after the fork"
            )

    def _raise_error(self) -> None:
        self._refuse_fork()
        error = None if self._supervisor is None else self._supervisor.error
        if error is not None:
            raise error


# Each that there is, started or not, for a fork to find; weakly, so that none lives on for that.
_connectors: weakref.WeakSet[Connector] = weakref.WeakSet()
_claims = Claims()


def _after_fork_in_child() -> None:
    _claims.forsake()
    for connector in _connectors:
        connector._forsake()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
