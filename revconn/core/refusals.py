"""Who refused a handshake, the gateway or what stands in its place, and when that is final."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from revconn.core.status import StatusCode

__all__ = ["CONFIRMED_AFTER", "FINAL_CODES", "Refusals", "Speaker", "speaker"]

CONFIRMED_AFTER = 300.0
"""Seconds without any other answer until a stranger's counts as well.

A gateway that starts again and again is given its longest break by Kubernetes: five minutes.
"""

FINAL_CODES = frozenset(
    {
        StatusCode.UNAUTHENTICATED,
        StatusCode.PERMISSION_DENIED,
        StatusCode.INVALID_ARGUMENT,
        StatusCode.UNIMPLEMENTED,
    }
)

_OWN_HEADERS = "revconn-"
_REFERENCE_GATEWAYS_WORDS = (StatusCode.UNAUTHENTICATED, "Invalid token")


class Speaker(Enum):
    """Whose word a refusal is."""

    GATEWAY = "a gateway that speaks this protocol"
    PERHAPS = "a gRPC server whose words may be a gateway's, or a proxy's"
    STRANGER = "whatever stands in the gateway's place"


def speaker(
    code: StatusCode, words: str, metadata: Iterable[str], *, opened: bool = False
) -> Speaker:
    """Who ended a stream with this gRPC status.

    :param words: its ``grpc-message``, as it came.
    :param metadata: the names of all the headers and trailers that came.
    :param opened: whether response headers had opened the stream before.
    """
    if any(name.startswith(_OWN_HEADERS) for name in metadata):
        return Speaker.GATEWAY
    if code is StatusCode.UNIMPLEMENTED:  # to the one method that makes it a gateway
        return Speaker.STRANGER
    if opened or (code, words) == _REFERENCE_GATEWAYS_WORDS:
        return Speaker.GATEWAY
    if code is StatusCode.INVALID_ARGUMENT or (code is StatusCode.UNAUTHENTICATED and words):
        return Speaker.PERHAPS
    return Speaker.STRANGER


class Refusals:
    """The refusals of one target in a row, and whether it has ever served.

    Times are seconds on any one clock. Whoever owns it guards it.
    """

    def __init__(self) -> None:
        self._served = False
        self._strangers_since: float | None = None

    def accepted(self) -> None:
        """The target has served: it is a gateway, and the key and the services were right."""
        self._served = True
        self._strangers_since = None

    def failed_otherwise(self) -> None:
        """An attempt came to no refusal: something happens there."""
        self._strangers_since = None

    def is_final(self, code: StatusCode, speaker: Speaker, now: float) -> bool:
        """Whether another attempt is useless, now that this refusal has come."""
        if code not in FINAL_CODES:
            self.failed_otherwise()
            return False
        if speaker is Speaker.STRANGER:
            if self._strangers_since is None:
                self._strangers_since = now
            return not self._served and now - self._strangers_since >= CONFIRMED_AFTER
        self._strangers_since = None
        return speaker is Speaker.GATEWAY or not self._served
