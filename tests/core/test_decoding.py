from __future__ import annotations

import pytest

from revconn._proto.registry_pb2 import ConnectionMessage, Heartbeat
from revconn.core.connection import decode
from revconn.core.status import ProtocolError


def test_a_message_is_decoded() -> None:
    message = ConnectionMessage(heartbeat=Heartbeat(timestamp=7))
    assert decode(ConnectionMessage, message.SerializeToString()) == message


class Protobuf:
    """Protobuf of any release: each raises something else at garbage."""

    DESCRIPTOR = ConnectionMessage.DESCRIPTOR

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def FromString(self, received: bytes) -> None:
        raise self._error("returned a result with an exception set")


@pytest.mark.parametrize("error", [SystemError, RuntimeWarning, IndexError, RecursionError])
def test_whatever_protobuf_makes_of_garbage_is_a_protocol_error(
    error: type[BaseException],
) -> None:
    protobuf = Protobuf(error)
    with pytest.raises(ProtocolError, match="no ConnectionMessage") as caught:
        decode(protobuf, b"garbage")  # type: ignore[type-var]
    assert caught.value.received == "7 bytes"
    assert caught.value.__cause__ is None
