"""A connector's first message, and what is wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import grpc.aio

from revconn._proto.registry_pb2 import ConnectionMessage
from revconn.core.decoding import decode
from revconn.core.errors import ProtocolError
from revconn.core.routing import LONGEST_SERVICE
from revconn.core.status import StatusCode
from revconn.gateway.counters import Counters
from revconn.gateway.failures import Refused
from revconn.gateway.keys import ApiKeys

__all__ = ["Registration", "check_registration", "check_services", "receive_registration"]

_MOST_SERVICES = 10_000  # looking at more would hold up everybody else


class Registration(NamedTuple):
    """Who registered what: the number of the API key, and the services' names, each once."""

    key: int
    services: tuple[str, ...]


async def receive_registration(
    context: grpc.aio.ServicerContext[Any, Any],
    keys: ApiKeys,
    timeout: float,
    counters: Counters,
) -> Registration:
    """Wait for a stream's first message and check it. Raises :class:`Refused`."""
    try:
        received = await asyncio.wait_for(context.read(), timeout)
    except asyncio.TimeoutError:
        counters.refused["handshake_timeout"] += 1
        problem = f"no register message came within {timeout:g} seconds"
        raise Refused(StatusCode.DEADLINE_EXCEEDED, problem) from None
    if not isinstance(received, bytes):
        raise Refused(StatusCode.INVALID_ARGUMENT, "the stream ended before a register message")
    return check_registration(received, keys)


def check_registration(received: bytes, keys: ApiKeys) -> Registration:
    """What the first message of a stream registers. Raises :class:`Refused`."""
    try:
        message = decode(ConnectionMessage, received)
    except ProtocolError as error:
        raise Refused(StatusCode.INVALID_ARGUMENT, str(error)) from None
    kind = message.WhichOneof("message_type")
    if kind != "register":
        problem = f"the first message must be register, not {kind or 'an unset one'}"
        raise Refused(StatusCode.INVALID_ARGUMENT, problem)
    key = keys.identify(message.register.api_key)
    if key is None:
        raise Refused(StatusCode.UNAUTHENTICATED, "Invalid token")
    return Registration(key, check_services(message.register.services, key, keys))


def check_services(names: Sequence[str], key: int, keys: ApiKeys) -> tuple[str, ...]:
    """The services' names, each once, which ``key`` may register. Raises :class:`Refused`."""
    if len(names) > _MOST_SERVICES:
        problem = f"{len(names):,} services; register {_MOST_SERVICES:,} at most"
        raise Refused(StatusCode.INVALID_ARGUMENT, problem)
    services = tuple(dict.fromkeys(names))
    for name in services:
        if not _is_service_name(name):
            problem = f"{name[:200]!r} is not a service name; register package.Service"
            raise Refused(StatusCode.INVALID_ARGUMENT, problem)
    for name in services:
        if not keys.allows(key, name):
            problem = f"the API key may not register {name[:200]!r}"
            raise Refused(StatusCode.PERMISSION_DENIED, problem)
    return services


def _is_service_name(name: str) -> bool:
    if not 0 < len(name) <= LONGEST_SERVICE:
        return False
    return name.isprintable() and "/" not in name and " " not in name
