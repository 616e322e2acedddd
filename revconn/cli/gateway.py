"""``revconn gateway``: run a gateway until a signal stops it."""

from __future__ import annotations

import argparse
import inspect
import os
import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any

from revconn.cli.api_keys import KEYS_VARIABLE, KeySources, keys_variable
from revconn.cli.garbage import GarbageWatch
from revconn.cli.logs import add_log_format, add_log_level, announce, set_up_logging
from revconn.exceptions import ConfigurationError
from revconn.gateway import Gateway, ServerTLS
from revconn.logger import get_logger
from revconn.runtime.signals import Repeats, obey_signals, signals_into
from revconn.runtime.threads import Mailbox, guarded_thread
from revconn.settings.checks import require_seconds
from revconn.settings.environment import PREFIX

__all__ = ["add_parser", "run"]

logger = get_logger(__name__)

_GLANCE = 0.5  # seconds

_DESCRIPTION = """\
Run a gateway. Connectors dial in and register services, gRPC clients call
those services, both on one port. It serves until SIGINT or SIGTERM.
"""

_KEYS = f"""\
The keys that connectors may show, each written as KEY [PATTERN ...]. A pattern
says which services the key may register and call: echo.Echo is that service,
echo.* every service below echo, * every service. publish:orders.* and
subscribe:orders.* say which types of events it may publish and receive. A key
with patterns may do what they say and nothing else, one without may do
everything. Without --api-key and --api-key-file the environment variable
{KEYS_VARIABLE} counts, with commas between the keys. Without any key whoever
connects may register, and the gateway listens on a loopback address only.
"""

_TLS = """\
PEM files. They are read again when they change, for connections that are made
from then on.
"""

_STOPPING = """\
The first SIGINT or SIGTERM refuses new calls, lets those that were accepted be
answered, sends the connectors away and exits with 0. The second one ends the
process at once, unless it is the same within a second.
"""

_EPILOG = """\
examples:
  revconn gateway
      for development: no keys, no TLS, reached from this machine only
  revconn gateway --address 0.0.0.0:50051 --api-key-file keys.txt
      behind a proxy that ends TLS; kill -HUP makes it read keys.txt again
  revconn gateway --address 0.0.0.0:443 --api-key-file keys.txt \\
      --tls-cert chain.pem --tls-key key.pem
      on its own

keys.txt:
  # who may do what
  4ObzMCoFYmdP                            # everything
  Zx9pCzcQb2Uo  billing.* orders.Orders   subscribe:orders.*

exit codes:
  0         stopped by a signal
  1         it could not listen, or go on
  2         something that was given cannot be used
  130, 143  ended at once by a second SIGINT or SIGTERM
"""

# The constructor's own limits, whose defaults are its: option, unit, help.
_LIMITS = {
    "heartbeat_timeout": ("SECONDS", "end a connection that has sent no heartbeat for so long"),
    "request_timeout": ("SECONDS", "give up a call that is not answered for so long"),
    "reconnect_grace": (
        "SECONDS",
        "hold calls of a service whose last connector has left for so long, in case one comes"
        " back; 0 refuses them at once",
    ),
    "http_send_timeout": (
        "SECONDS",
        "end an HTTP request whose caller has read nothing of the answer for so long",
    ),
    "max_pending": ("N", "calls that may wait for an answer at once"),
    "max_pending_per_connection": ("N", "of those, how many may wait for one connector"),
    "max_connections": ("N", "connectors that may be connected"),
    "max_connections_per_key": ("N", "of those, how many with the same API key"),
    "max_message_bytes": ("BYTES", "largest message taken from a connector or a caller"),
    "max_sent_message_bytes": ("BYTES", "largest message sent to a connector or a caller"),
    "max_response_bytes": ("BYTES", "largest response taken in several chunks"),
    "max_joining_bytes": ("BYTES", "all such responses together while they are not whole"),
    "max_queued_bytes": ("BYTES", "what may wait to be read by one connector"),
    "max_queued_events": ("N", "events that may wait to be read by one connector"),
    "max_subscriptions": ("N", "types of events that one connector may subscribe to"),
    "max_metadata_bytes": ("BYTES", "metadata of one call"),
    "max_sockets": ("N", "network connections of connectors and callers together"),
    "max_streams": ("N", "calls that one connection may have open at once"),
    "max_streaming_calls": ("N", "calls of streaming methods that may be open at once"),
    "max_streaming_calls_per_connection": ("N", "of those, at one connector or dialled service"),
    "max_receiving_bytes": ("BYTES", "requests that have come in part, all together"),
    "max_unread_bytes": ("BYTES", "answers that callers have not read, all together"),
    "handshake_timeout": ("SECONDS", "time a connector has to register once it is connected"),
    "idle_timeout": ("SECONDS", "end a connection on which there was no call for so long"),
    "max_connection_age": ("SECONDS", "ask a connection to go after so long"),
    "max_connection_age_grace": ("SECONDS", "time its calls have to end then"),
}
# Arguments of the library whose options are called otherwise.
_OPTIONS = {
    "api_keys": "--api-key",
    "ServerTLS(cert=)": "--tls-cert",
    "ServerTLS(key=)": "--tls-key",
    "ServerTLS(client_ca=)": "--tls-client-ca",
}


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser(
        "gateway",
        help="run a gateway",
        usage="%(prog)s [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--address",
        default="127.0.0.1:50051",
        metavar="HOST:PORT",
        help="where to listen; port 0 takes a free one; unix:PATH (default: %(default)s)",
    )
    parser.add_argument(
        "--no-dial-backends",
        action="store_false",
        dest="dial_backends",
        help="do not dial services that listen themselves; their Register is answered all the same",
    )
    parser.add_argument(
        "--dial-private",
        action="store_true",
        help="dial those on loopback and link-local addresses, too, and clouds' metadata services",
    )
    parser.add_argument(
        "--http",
        action="append",
        metavar="[HOST=]SERVICE",
        help="have a service answer plain HTTP on the same port, or what is asked for on one host;"
        " may be given several times; needs revconn[http]",
    )
    _add_keys(parser.add_argument_group("API keys", _KEYS))
    _add_tls(parser.add_argument_group("TLS", _TLS))
    _add_limits(parser.add_argument_group("limits"))
    stopping = parser.add_argument_group("stopping", _STOPPING)
    stopping.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long calls may take to be answered then (default: 30)",
    )
    logs = parser.add_argument_group("logging")
    add_log_level(logs)
    add_log_format(logs)
    parser.set_defaults(run=run)


def _add_keys(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="visible to every user of this machine; may be given several times",
    )
    group.add_argument(
        "--api-key-file",
        action="append",
        default=[],
        metavar="FILE",
        help="one key on each line, # begins a comment; read again at SIGHUP, which ends the"
        " connections whose key is gone; may be given several times",
    )


def _add_tls(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tls-cert", metavar="FILE", help="the gateway's certificate chain; without it: plaintext"
    )
    group.add_argument("--tls-key", metavar="FILE", help="its private key, without a passphrase")
    group.add_argument(
        "--tls-client-ca",
        metavar="FILE",
        help="ask connectors and callers for a certificate that these authorities issued",
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    parameters = inspect.signature(Gateway).parameters
    for name, (unit, text) in _LIMITS.items():
        # From the signature, so that the help never says another default than the library's.
        default = parameters[name].default
        shown = "never" if default is None else f"{default:.12g}"
        group.add_argument(
            _option(name),
            type=float if default is None else type(default),
            default=default,
            metavar=unit,
            help=f"{text} (default: {shown})",
        )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    set_up_logging(arguments.log_level, arguments.log_format)
    sources = KeySources(
        tuple(arguments.api_key), tuple(arguments.api_key_file), keys_variable(os.environ)
    )
    # Logging first: making it may warn, of a file with keys that others may read.
    gateway = _make_gateway(arguments, sources)
    # Not in silence: its owner may believe that those keys are in force.
    if sources.ignores_environment:
        logger.warning("%s is not used: --api-key and --api-key-file go before it", KEYS_VARIABLE)
    # Open on purpose, for development; or by a key under a connector's name, which is said.
    if sources == KeySources():
        other = f"{PREFIX}API_KEY"
        hint = f" ({other} is for a connector)" if other in os.environ else ""
        address = gateway.address
        logger.warning("no API keys%s: whoever can connect to %s may register", hint, address)
    wakeups: Mailbox[int | None] = Mailbox()
    repeats = Repeats()
    hangups = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
    # SIGHUP has its handler before the gateway listens and until it is gone: by default it would
    # end the process. SIGINT and SIGTERM only once it serves: before, they end this as any command.
    with signals_into(wakeups, hangups), gateway:
        with signals_into(wakeups):
            # Else a gateway that died would leave a process that waits for signals for ever, and
            # whoever supervises it sees nothing.
            watch = _Watch(gateway, wakeups)
            GarbageWatch.start(lambda: gateway.stats()["pending"])
            # On stdout, alone there: whoever started the command waits for this line, to learn the
            # port. By now signals are obeyed: what waits for it may send one at once.
            announce(
                f"gateway listening on {gateway.address}",
                __name__,
                arguments.log_format,
                event="listening",
                address=gateway.address,
            )
            obey_signals(
                wakeups,
                # Only the end of the wait: the gateway is stopped below, where the next signal
                # counts.
                drain=lambda: wakeups.put(None),
                abort=lambda: gateway.stop(grace=0.0),
                reload=lambda: _reload_keys(gateway, sources),
                repeats=repeats,
            )
            # There must be no moment without a handler between the wait and the drain.
            _leave_at_once_by_the_next(repeats)
            _stop(gateway, arguments.grace)
    return 1 if watch.has_failed else 0


class _Watch:
    """A thread that wakes the command when its gateway ends by itself, which the log then tells."""

    def __init__(self, gateway: Gateway, wakeups: Mailbox[int | None]) -> None:
        self.has_failed = False
        self._gateway = gateway
        self._wakeups = wakeups
        guarded_thread("revconn-gateway-watch", self._run).start()

    def _run(self) -> None:
        try:
            self._gateway.wait()
        except BaseException:  # noqa: BLE001 - the gateway has logged it
            self.has_failed = True
        finally:
            self._wakeups.put(None)


def _stop(gateway: Gateway, grace: float) -> None:
    """Stop the gateway in a thread, at which this one looks now and then.

    A signal that arrives while another one's handler runs interrupts no wait: its own handler would
    run when that has ended.
    """
    stopping = guarded_thread("revconn-stop", lambda: gateway.stop(grace))
    stopping.start()
    # Short waits: a signal's handler runs between two of them, whichever thread got it.
    while stopping.is_alive():
        stopping.join(_GLANCE)


def _leave_at_once_by_the_next(repeats: Repeats) -> None:
    def leave(number: int, frame: FrameType | None) -> None:
        # The drain may have minutes to go; whoever asks again does not want to wait for them.
        if not repeats.is_one(number):
            # Not by the signal's default action: the first process of a container has none.
            os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def _make_gateway(arguments: argparse.Namespace, sources: KeySources) -> Gateway:
    try:
        require_seconds("grace", arguments.grace, zero=True)
        return Gateway(
            arguments.address,
            api_keys=sources.read(),
            tls=_tls(arguments),
            http=_http(arguments.http or ()),
            dial_backends=arguments.dial_backends,
            dial_private=arguments.dial_private,
            **{name: getattr(arguments, name) for name in _LIMITS},
        )
    except ConfigurationError as error:
        # The library names its own arguments; who types a command knows the options.
        name = _OPTIONS.get(error.name, error.name)
        if name in vars(arguments):
            name = _option(name)
        raise ConfigurationError(name, error.value, error.problem, error.remedy) from None


def _tls(arguments: argparse.Namespace) -> ServerTLS | None:
    given = (arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca)
    if given == (None, None, None):
        return None
    # Half of TLS is an error, not plaintext.
    for option, value in (("--tls-cert", given[0]), ("--tls-key", given[1])):
        if value is None:
            raise ConfigurationError(option, None, "is missing", "TLS needs certificate and key")
    return ServerTLS(*given)


def _http(given: Sequence[str] | None) -> dict[str, str] | None:
    hosts: dict[str, str] = {}
    for each in given or ():
        host, given_host, service = each.rpartition("=")
        if given_host and not host:  # a variable that was not set, say: that is not every host
            raise ConfigurationError("--http", each, "has no host", 'write "*", or no "="')
        host = host or "*"
        if host in hosts:
            raise ConfigurationError("--http", each, "is a second one", "give each host once")
        hosts[host] = service
    return hosts or None


def _reload_keys(gateway: Gateway, sources: KeySources) -> None:
    try:
        # All files are read and checked before any key is replaced: a file that is being edited
        # leaves everybody connected.
        keys = sources.read()
        gateway.replace_keys(keys)
    except ConfigurationError as error:
        logger.error("SIGHUP: the API keys stay as they were: %s", error)
    else:
        logger.info("SIGHUP: read the API keys again: %d of them", len(keys or ()))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
