"""A response on its way to the connector that asked for it."""

from __future__ import annotations

from collections.abc import Iterator

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardResponse
from revconn.core.chunking import split
from revconn.core.features import CHUNKS
from revconn.gateway.counters import Counters
from revconn.gateway.failures import Refused, failure, over_limit
from revconn.gateway.registry import Connection

__all__ = ["LONGEST_METHOD", "respond"]

# What a peer that announced no limit takes: gRPC's own default, in every language.
USUAL_LIMIT = 4 * 1024 * 1024

LONGEST_METHOD = 200  # characters, of those that are named in errors


def respond(
    connection: Connection, response: ForwardResponse, counters: Counters, method: str
) -> None:
    """Send ``connection`` the response to its call of ``method``, or why it cannot have it."""
    try:
        messages = list(_messages(connection, response, counters))
    except Refused as refused:
        problem = f"{method[:LONGEST_METHOD]}: {refused.message}"
        messages = [_encode(failure(refused.code, problem, response.request_id))]
    for message in messages:
        connection.outbound.put(message)


def _messages(
    connection: Connection, response: ForwardResponse, counters: Counters
) -> Iterator[bytes]:
    data = _encode(response)
    limit = connection.max_message_bytes
    if connection.outbound.is_full and response.payload:
        problem = "the response cannot be delivered: what was sent before it is not being read"
        raise over_limit(counters, "max_queued_bytes", problem)
    if CHUNKS in connection.features and len(data) > min(limit, USUAL_LIMIT):
        try:
            chunks = split(response, min(limit, USUAL_LIMIT))
        except ValueError as error:
            raise over_limit(counters, "max_sent_message_bytes", str(error)) from None
        yield from (_encode(chunk) for chunk in chunks)
    elif len(data) > limit:
        problem = f"a response of {len(data):,} bytes exceeds the {limit:,} that may be sent"
        raise over_limit(counters, "max_sent_message_bytes", problem)
    else:
        yield data


def _encode(response: ForwardResponse) -> bytes:
    return ConnectionMessage(response=response).SerializeToString()
