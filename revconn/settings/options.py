"""Settings: frozen values, validated where they are made."""

from __future__ import annotations

import os
import random
import ssl
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Callable, Union

from revconn.settings.checks import (
    refuse,
    require_api_key,
    require_count,
    require_flag,
    require_number,
    require_seconds,
    require_service_name,
    warn_of_readers,
)
from revconn.settings.proxy import Proxy, proxy_for
from revconn.settings.target import Target

__all__ = ["TLS", "Backoff", "Options", "PathOrPEM", "api_key_source", "parse_services"]

TRANSPORTS = ("auto", "http2", "grpcio")

PathOrPEM = Union[str, "os.PathLike[str]", bytes]


@dataclass(frozen=True)
class TLS:
    """How to speak TLS to a gateway.

    Each of ``ca``, ``cert`` and ``key`` is a path to a PEM file, or the PEM itself as bytes.
    Files are read again for every connection, so renewed certificates are picked up.

    :param ca: whom to trust instead of the system's authorities: roots, the one that issued the
        gateway's certificate, or that certificate itself.
    :param cert: the client's certificate chain, for mutual TLS.
    :param key: its private key.
    :param server_name: the name to expect in the gateway's certificate instead of the target's
        host.
    :param ssl_context: a client-side :class:`ssl.SSLContext` of your own, which decides everything
        that ``ca``, ``cert`` and ``key`` would, so none of them goes with it; for revocation
        lists, keys in hardware, a policy on ciphers. HTTP/2 is set as its ALPN protocol, so do
        not share it with what speaks something else. Only for the http2 transport.

    Raises :class:`ConfigurationError` for a file that cannot be read, half a key pair, or a
    context that cannot be used.
    """

    ca: PathOrPEM | None = None
    cert: PathOrPEM | None = None
    key: PathOrPEM | None = None
    server_name: str | None = None
    ssl_context: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        # Files are read here too, and thrown away: one that is missing is told of as the program
        # starts, and not by a connection that fails again and again.
        if (self.cert is None) != (self.key is None):
            missing = "key" if self.key is None else "cert"
            refuse(f"TLS({missing}=)", None, "is missing", "give cert and key together")
        for name in ("ca", "cert", "key"):
            self.read(name)
        if self.server_name is not None and not _is_name(self.server_name):
            remedy = "give the name in the gateway's certificate, as a str"
            refuse("TLS(server_name=)", self.server_name, "not a name", remedy)
        if self.ssl_context is not None:
            self._adopt(self.ssl_context)

    def _adopt(self, context: ssl.SSLContext) -> None:
        name, remedy = "TLS(ssl_context=)", "make one with ssl.create_default_context()"
        if not isinstance(context, ssl.SSLContext):
            refuse(name, context, "not an ssl.SSLContext", remedy)
        if context.protocol == ssl.PROTOCOL_TLS_SERVER:
            refuse(name, None, "is a server's context", remedy)
        if (self.ca, self.cert) != (None, None):
            problem = "decides alone whom to trust and who we are"
            refuse(name, None, problem, "load ca, cert and key into the context")
        # RFC 9113, 3.2: over TLS it is ALPN by which both sides agree on HTTP/2.
        context.set_alpn_protocols(["h2"])

    def read(self, name: str) -> bytes | None:
        """The PEM that ``name`` stands for, as it is on disk now.

        Raises :class:`ConfigurationError` as the constructor does.
        """
        source: PathOrPEM | None = getattr(self, name)
        if source is None:
            return None
        argument = f"TLS({name}=)"
        pem = source if isinstance(source, bytes) else _read_file(argument, source)
        # It is DER, most often, which the remedy is for.
        if b"-----BEGIN " not in pem:
            shown = None if isinstance(source, bytes) else os.fspath(source)
            refuse(
                argument, shown, "holds no PEM", "convert it: openssl x509 (or pkey) -inform der"
            )
        return pem

    # Bytes may be a private key. A path is what to look at when a certificate is refused.
    def __repr__(self) -> str:
        shown = (
            f"{name}={'<PEM>' if isinstance(value, bytes) else repr(value)}"
            for name, value in vars(self).items()
            if value is not None
        )
        return f"TLS({', '.join(shown)})"


@dataclass(frozen=True)
class Backoff:
    """How long to wait between attempts to connect: exponential, with full jitter.

    Before attempt *n* + 1 the wait is drawn evenly from 0 to ``initial * multiplier ** (n - 1)``
    seconds, at most ``maximum``: a fleet that lost its gateway at once does not return at once.

    :param initial: the longest wait after the first failure, in seconds.
    :param maximum: the longest wait of all, in seconds.
    :param multiplier: how many times longer the next wait may be.
    :param stable_after: seconds a connection must have lasted for the count to start afresh; one
        that breaks sooner counts as a failed attempt.
    :param max_attempts: give up after so many failures in a row (``None``: never).
    """

    initial: float = 1.0
    maximum: float = 60.0
    multiplier: float = 2.0
    stable_after: float = 10.0
    max_attempts: int | None = None

    def __post_init__(self) -> None:
        require_seconds("Backoff(initial=)", self.initial)
        require_seconds("Backoff(maximum=)", self.maximum)
        require_seconds("Backoff(stable_after=)", self.stable_after, zero=True)
        require_number("Backoff(multiplier=)", self.multiplier, at_least=1, at_most=1000)
        if self.maximum < self.initial:
            refuse(
                "Backoff(maximum=)", self.maximum, "is less than initial", "give at least initial"
            )
        if self.max_attempts is not None:
            require_count("Backoff(max_attempts=)", self.max_attempts)

    def ceiling(self, failures: int) -> float:
        """The longest wait, in seconds, after so many failures in a row (at least one)."""
        try:
            return float(min(self.maximum, self.initial * float(self.multiplier) ** (failures - 1)))
        except OverflowError:  # 2.0 ** 1024, after a thousand failures
            return float(self.maximum)

    def delay(self, failures: int) -> float:
        """A wait, in seconds, drawn for so many failures in a row."""
        # From zero on, and not around the ceiling: that spreads a fleet over the whole of the time.
        return random.uniform(0.0, self.ceiling(failures))  # noqa: S311


@dataclass(frozen=True)
class Options:
    """Everything a connector is told when it is made; :class:`~revconn.Connector` documents it."""

    targets: tuple[Target, ...]
    every_address: bool
    api_key: Callable[[], str]
    services: tuple[str, ...]
    tls: TLS | bool | None
    transport: str
    proxy: str | bool | None = field(repr=False)
    max_workers: int
    max_streams: int | None
    executor: Executor | None
    max_in_flight: int
    max_in_flight_bytes: int
    max_message_bytes: int
    replay_bytes: int
    heartbeat_interval: float
    liveness_timeout: float | None
    connect_timeout: float
    keepalive_interval: float | None
    keepalive_timeout: float
    probe_interval: float | None
    drain_timeout: float
    slow_handler_after: float | None
    backoff: Backoff
    is_fatal: Callable[[Exception], bool]

    def __post_init__(self) -> None:
        # Nobody checks annotations as a program runs: a wrong value would show in some thread, when
        # the first connection is lost.
        for name in ("max_workers", "max_in_flight", "max_in_flight_bytes", "max_message_bytes"):
            require_count(name, getattr(self, name))
        require_count("replay_bytes", self.replay_bytes)
        if self.max_streams is not None:
            require_count("max_streams", self.max_streams)
            if self.max_streams > self.max_workers:
                problem = f"more than max_workers ({self.max_workers})"
                refuse("max_streams", self.max_streams, problem, "give at most as many")
        for name in ("heartbeat_interval", "connect_timeout", "keepalive_timeout", "drain_timeout"):
            require_seconds(name, getattr(self, name))
        for name in (
            "liveness_timeout",
            "keepalive_interval",
            "probe_interval",
            "slow_handler_after",
        ):
            if getattr(self, name) is not None:
                require_seconds(name, getattr(self, name))
        # Else each pause between two heartbeats would be taken for a process that was asleep.
        if self.liveness_timeout is not None and self.liveness_timeout <= self.heartbeat_interval:
            refuse(
                "liveness_timeout",
                self.liveness_timeout,
                "would end before the next heartbeat",
                f"give more than heartbeat_interval ({self.heartbeat_interval:g} s)",
            )
        if not isinstance(self.backoff, Backoff):
            refuse("backoff", self.backoff, "not a Backoff", "give revconn.Backoff(...)")
        if not callable(self.is_fatal):
            refuse("is_fatal", self.is_fatal, "not callable", "give a function of the error")
        if self.tls is not None and not isinstance(self.tls, (TLS, bool)):
            kind = type(self.tls).__name__  # no more of it: it may hold a private key
            refuse(
                "tls", None, f"is {kind}, not TLS settings", "give TLS(...), True, False or None"
            )
        if self.proxy is not None and not isinstance(self.proxy, (str, bool)):
            refuse("proxy", None, "not a proxy", "give its URL, False for none, or leave it out")
        if isinstance(self.proxy, str):
            Proxy.parse(self.proxy)  # for what it raises; each target's transport reads it again
        if require_flag("every_address", self.every_address):
            self._require_own_lookups()
        if self.transport not in TRANSPORTS:
            refuse("transport", self.transport, "unknown", f"give one of {', '.join(TRANSPORTS)}")
        if self.transport == "grpcio" and isinstance(self.tls, TLS) and self.tls.ssl_context:
            problem = "cannot be used by grpcio, which has a TLS of its own"
            refuse("TLS(ssl_context=)", None, problem, 'use transport="http2", or ca, cert and key')
        if self.executor is not None:
            _require_threads(self.executor)

    def _require_own_lookups(self) -> None:
        """Refuse a proxy, which looks names up itself and tells nobody what it found."""
        for target in self.targets:
            proxy = proxy_for(target, self.proxy) if target.is_name else None
            if proxy is not None:
                refuse(
                    "every_address",
                    None,
                    f"the proxy {proxy} looks {target.host} up, so its addresses cannot be known",
                    "give proxy=False, name the gateways one by one, or leave it out",
                )

    @property
    def most_streams(self) -> int:
        """Workers that streaming calls may hold: by default half of them, and at least one."""
        return max(1, self.max_workers // 2) if self.max_streams is None else self.max_streams

    def tls_for(self, target: Target) -> TLS | None:
        """The TLS settings for one target; ``None`` is plaintext: to loopback, or asked for."""
        if isinstance(self.tls, TLS):
            return self.tls
        # The default is safe where it has to be, and the demo on one machine takes no certificate.
        use_tls = not target.is_loopback if self.tls is None else self.tls
        return TLS() if use_tls else None


def parse_services(services: Sequence[str]) -> tuple[str, ...]:
    """Service names in the order given; none of them twice."""
    # Text is a sequence too: "echo.Echo" would be nine names of one character each.
    if isinstance(services, (str, bytes)):
        refuse("services", services, "one text, not a list", f"write services=[{services!r}]")
    try:
        names = tuple(require_service_name("services", name) for name in services)
    except TypeError:
        refuse("services", services, "not a list of names", 'write services=["echo.Echo"]')
    if len(set(names)) < len(names):
        refuse("services", services, "names a service twice", "name each service once")
    return names


def api_key_source(api_key: str | Callable[[], str]) -> Callable[[], str]:
    """A callable as it is; a key, checked now, as a callable."""
    if callable(api_key):
        return api_key
    # Refused as the connector is made, where the traceback leads to who gave it. What a callable
    # returns is checked before each handshake.
    key = str.__str__(require_api_key(api_key))  # whatever a subclass makes of itself
    return key.__str__  # whose repr, as a lambda's, does not show the key


def _read_file(argument: str, path: str | os.PathLike[str]) -> bytes:
    remedy = "give the path of a PEM file, or its content as bytes"
    if not isinstance(path, (str, os.PathLike)):
        refuse(argument, None, f"is {type(path).__name__}, not a path", remedy)
    if "-----BEGIN " in os.fspath(path):  # it may be a private key
        refuse(argument, None, "is PEM as text, not a path", "give PEM as bytes: text.encode()")
    try:
        with open(path, "rb") as file:
            if argument == "TLS(key=)":  # the others are public
                warn_of_readers(argument, path, file.fileno())
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", error)
        refuse(argument, os.fspath(path), f"cannot be read: {reason}", remedy)


def _is_name(text: object) -> bool:
    return isinstance(text, str) and text.isprintable() and text.strip() == text != ""


def _require_threads(executor: Executor) -> None:
    from concurrent.futures import ProcessPoolExecutor  # brings all of multiprocessing along

    # A handler is given the request itself, which a caller may cancel meanwhile: no copy in another
    # process would hear of that, and few handlers could be sent there.
    if not isinstance(executor, Executor) or isinstance(executor, ProcessPoolExecutor):
        refuse(
            "executor",
            executor,
            "cannot run handlers",
            "give a concurrent.futures.ThreadPoolExecutor, or leave it out",
        )
