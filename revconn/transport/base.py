"""What a stream to a gateway is, whatever carries it."""

from __future__ import annotations

import functools
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from revconn.core.rope import Data
from revconn.core.status import Speaker, StatusCode
from revconn.logger import Mask
from revconn.settings.options import TLS
from revconn.settings.proxy import Proxy
from revconn.settings.target import Target

__all__ = [
    "LARGEST_MESSAGE",
    "METHOD",
    "Source",
    "Stream",
    "StreamEnded",
    "Transport",
    "user_agent",
]

# The one RPC of the reverse connection. A server that does not know it is no gateway.
METHOD = "/registry.RegistryService/EstablishConnection"

LARGEST_MESSAGE = 256 << 20
"""Bytes; a gateway may send 100 MB at once, and no peer may make us allocate without bound."""


@functools.cache
def user_agent() -> str:
    """What connectors call themselves."""
    try:
        version = importlib.metadata.version("revconn")
    except importlib.metadata.PackageNotFoundError:  # bundled into an application, say
        version = "unknown"
    return f"revconn-python/{version}"


class Source(Protocol):
    """Where a stream's sender thread draws messages from."""

    def take(self) -> list[Data] | None:
        """Everything that waits to be sent, blocking until there is something.

        ``None`` says that the stream is to end; an empty list only wakes the sender (see
        :meth:`nudge`). Calling again says that the previous batch was handed to the network.
        """

    def nudge(self) -> None:
        """Make :meth:`take` return now, with an empty list if nothing waits. Any thread.

        It does the same to :meth:`wait`.
        """

    def leave_to_sender(self) -> None:
        """Not all that :meth:`Stream.send_now` is given leaves there: the sender sends the rest.

        Called before it returns. It wakes the sender as :meth:`nudge` does, and from then on is as
        if :meth:`take` had returned these messages.
        """

    def wait(self) -> bool:
        """Block until :meth:`nudge`; false once the stream is to end.

        For a sender that cannot take more yet: it says nothing about the previous batch.
        """

    blocked: bool
    """Whether the peer should send no more: requests or answers have piled up.

    When that ends :meth:`take` returns. Read without a lock, for every batch that arrives.
    """

    def wait_for_room(self) -> None:
        """Block while ``blocked``, or until the stream is to end."""


@dataclass(eq=False)
class StreamEnded(Exception):
    """The stream is over: the gRPC ``code`` it ended with, and ``details`` for an operator.

    ``speaker`` is whose word that is. ``status_lost`` says that the gateway may have ended it with
    a status of its own, which the transport was not shown: ``code`` stands in for it.
    """

    code: StatusCode
    details: str
    speaker: Speaker = Speaker.STRANGER
    status_lost: bool = False

    def __str__(self) -> str:
        return f"{self.code.name}: {self.details}"


class Stream(ABC):
    """One bidirectional gRPC stream. A stream owns its sender thread, which drains a Source."""

    going_away = False
    """Whether the peer wants the stream replaced, while it still works.

    When that becomes so :meth:`receive` returns, with nothing if nothing has arrived.
    """

    @abstractmethod
    def open(self, mask: Mask) -> None:
        """Connect and begin to send. Blocks at most as long as its transport's timeouts say.

        Log nothing of the peer's but through ``mask``, from here on.

        Raises :class:`StreamEnded`, also when :meth:`close` was called meanwhile.
        """

    # A stream pulls from its source what it sends: a batch is then all that waits when the network
    # is ready for more, and what was not pulled when it ended can leave on another one.

    @abstractmethod
    def receive(self) -> list[Data]:
        """Every message that has arrived; blocks until there is one (but see ``going_away``).

        Raises :class:`StreamEnded`. Called by one thread.
        """

    @abstractmethod
    def metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """The gateway's initial metadata. Called once :meth:`receive` has returned, by its thread.

        No sooner: a gateway may send it only with its first message.
        """

    def send_now(self, messages: list[Data]) -> bool:
        """Send ``messages`` in this thread if that needs no waiting; false: not done. Any thread.

        A lone answer saves a change of threads this way.
        """
        return False

    def check(self, now: float) -> float | None:
        """Called every few seconds (``now``: monotonic) by a thread that must not block.

        A transport that has to find silent peers by itself looks for them here, and says by when
        it has to look again (monotonic; ``None``: in a few seconds).
        """
        return None

    def blame(self) -> None:  # noqa: B027 - where there is one address there is nothing to do
        """It came to a bad end, whatever failed: the next begins with another of the addresses."""

    @abstractmethod
    def close(self) -> None:
        """End the stream at once and wake who is blocked in it. Any thread; idempotent."""

    @abstractmethod
    def join(self, timeout: float) -> None:
        """Wait, at most ``timeout`` seconds, until the threads of a closed stream have ended."""


class Transport(ABC):
    """Makes streams to one gateway.

    Without ``tls`` it is plaintext, without ``proxy`` straight. ``keepalive_interval`` and
    ``keepalive_timeout`` are seconds between HTTP/2 pings (``None``: none), and until one that is
    not answered ends the connection.
    """

    @abstractmethod
    def __init__(
        self,
        target: Target,
        tls: TLS | None,
        proxy: Proxy | None,
        *,
        keepalive_interval: float | None,
        keepalive_timeout: float,
    ) -> None: ...

    @property
    def addresses(self) -> int:
        """How many addresses the gateway's name had when a stream was last opened."""
        return 1

    @abstractmethod
    def stream(self, source: Source, name: str) -> Stream:
        """A stream that is not open yet; ``name`` names its threads."""
