"""``revconn proxy --to localhost:50052 --service pkg.Service``: a gateway's calls, passed on."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import time
from typing import Any, NamedTuple

import grpc

from revconn.cli.logs import add_log_format, add_log_level, set_up_logging
from revconn.cli.serve import serve_connector
from revconn.connector import Connector
from revconn.exceptions import ConfigurationError, ConnectionLost, RevconnError
from revconn.logger import get_logger
from revconn.serving.sidecar import Sidecar
from revconn.settings.checks import refuse, require_service_name
from revconn.settings.target import Target as Address

__all__ = ["add_parser", "run"]

logger = get_logger(__name__)

_WORKERS = 64
_OF_EACH = ("grpc.health.", "grpc.reflection.")  # what servers have beside what they serve
_DISCOVERY_TIMEOUT = 30.0  # seconds, for a target that is just starting


class Target(NamedTuple):
    """A server, and which of its services are passed on."""

    address: str
    services: list[str]


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser(
        "proxy",
        help="pass a gateway's calls on to a gRPC server",
        description=(
            "Connect to a gateway in the place of a gRPC server that cannot be reached from there,"
            " and pass every call on: all kinds of methods, metadata, deadlines and statuses. No"
            " schema is needed. The gateway, the API key and all options of a connector come from"
            " REVCONN_TARGET, REVCONN_API_KEY or REVCONN_API_KEY_FILE, and so on."
        ),
        epilog="Exit codes: as those of revconn serve.",
    )
    parser.add_argument(
        "--to",
        action=_To,
        dest="targets",
        metavar="HOST:PORT",
        required=True,
        help="the server; may be given again, each with its services behind it",
    )
    parser.add_argument(
        "--service",
        action=_Service,
        dest="targets",
        metavar="PKG.SERVICE",
        help="a service of the server named before it; may be given again",
    )
    parser.add_argument(
        "--discover",
        action="store_true",
        help="ask servers for which no service is given by their reflection",
    )
    parser.add_argument("--tls", action="store_true", help="speak TLS to the servers")
    parser.add_argument("--ca", metavar="FILE", help="whom to trust there, as PEM; means --tls")
    parser.add_argument("--gateway", metavar="HOST:PORT", help="in the place of REVCONN_TARGET")
    add_log_level(parser)
    add_log_format(parser)
    parser.set_defaults(run=run)


class _To(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        targets = [*(namespace.targets or ()), Target(values, [])]
        namespace.targets = targets


class _Service(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        if not namespace.targets:
            raise argparse.ArgumentError(self, "comes behind the --to of its server")
        namespace.targets[-1].services.append(values)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    set_up_logging(arguments.log_level, arguments.log_format)
    try:
        connector = _connector(arguments)
        return serve_connector(connector)
    except ConnectionLost:
        return 1  # the log has it
    except RevconnError as error:
        print(f"revconn proxy: {error}", file=sys.stderr)
        return 2


def _connector(arguments: argparse.Namespace) -> Connector:
    credentials = _credentials(arguments)
    overrides: dict[str, Any] = {}
    # Each call waits for the server, and holds a worker meanwhile; and most come as streams.
    given = os.environ.get("REVCONN_MAX_WORKERS", str(_WORKERS))
    if given == str(_WORKERS):
        overrides["max_workers"] = _WORKERS
    if "REVCONN_MAX_STREAMS" not in os.environ and given.isdigit():
        overrides["max_streams"] = int(given)
    if arguments.gateway:
        overrides["targets"] = arguments.gateway
    connector = Connector.from_env(**overrides)
    added: set[str] = set()
    for target in arguments.targets:
        sidecar = Sidecar(_require_address(target.address), credentials)
        services = target.services
        if not services:
            if not arguments.discover:
                remedy = "give --service PKG.SERVICE behind it, or --discover"
                refuse("--to", target.address, "no service of it is named", remedy)
            services = _discover(sidecar)
            logger.info("%s serves %s", target.address, ", ".join(services))
        for service in services:
            name = require_service_name("--service", service)
            if name in added and name.startswith(_OF_EACH):
                logger.warning("%s of %s is not asked: the one before it is", name, target.address)
            elif name in added:
                refuse("--service", name, "given twice", "name each service once")
            else:
                added.add(name)
                connector._add_sidecar(name, sidecar)
    return connector


def _require_address(given: str) -> str:
    # gRPC takes anything: it looks up a URL as a host, and dials port 443 where there is none.
    try:
        return Address.parse(given).address
    except ConfigurationError as error:
        remedy = 'write host:port, such as "localhost:50052", or unix:/path'
        refuse("--to", given, error.problem, remedy)


def _credentials(arguments: argparse.Namespace) -> grpc.ChannelCredentials | None:
    if not (arguments.tls or arguments.ca):
        return None
    roots = None
    if arguments.ca:
        try:
            roots = pathlib.Path(arguments.ca).read_bytes()
        except OSError as error:
            refuse("--ca", arguments.ca, f"cannot be read: {error.strerror}", "give a PEM file")
    return grpc.ssl_channel_credentials(roots)


def _discover(sidecar: Sidecar) -> list[str]:
    """The services that a server lists. Raises :class:`ConfigurationError` if it lists none."""
    try:
        from grpc_reflection.v1alpha import reflection_pb2
    except ImportError:
        remedy = "pip install 'revconn[gateway]'"
        refuse("--discover", None, "grpcio-reflection is not installed", remedy)
    question = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    deadline = time.monotonic() + _DISCOVERY_TIMEOUT
    problem = ""
    for version in ("v1", "v1alpha"):
        path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        method: Any = sidecar.channel.stream_stream(path)
        left = max(1.0, deadline - time.monotonic())
        try:
            (answer,) = method(iter([question]), timeout=left, wait_for_ready=True)
        except grpc.RpcError as error:
            problem = f"{error.code().name}: {error.details()}"
        else:
            listed = reflection_pb2.ServerReflectionResponse.FromString(answer)
            return [each.name for each in listed.list_services_response.service]
    problem = f"it does not tell its services ({problem})"
    return refuse("--discover", sidecar.target, problem, "name its services with --service")
