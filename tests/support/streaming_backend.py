"""A service that listens itself, and whose methods are of all four kinds.

As a program it says its address, then a line for each call that has come, and answers none of them.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import grpc

__all__ = ["KINDS", "Asked", "StreamingBackend"]

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

Behaviour = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]


def path_of(kind: str, service: str = "echo.Echo") -> str:
    """The method of that kind."""
    return f"/{service}/{kind}"


class StreamingBackend(grpc.GenericRpcHandler):
    """Has a method of each kind, which all do the same, as far as their kind allows.

    ``behave`` is given the messages of the request, and yields those of the answer. Where that has
    to be one, the rest is done before it is sent. ``calls`` has the context of each call.
    """

    def __init__(self, behave: Behaviour) -> None:
        self._behave = behave
        self.calls: queue.SimpleQueue[grpc.ServicerContext] = queue.SimpleQueue()
        self._server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        kind = handler_call_details.method.rpartition("/")[2]
        if kind not in KINDS:
            return None
        handle = self._stream if kind.endswith("_stream") else self._answer
        new_handler = getattr(grpc, f"{kind}_rpc_method_handler")
        return new_handler(handle)

    def _stream(
        self, request: bytes | Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        self.calls.put(context)
        yield from self._behave(iter([request]) if isinstance(request, bytes) else request, context)

    def _answer(self, request: bytes | Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        answer, *_ = self._stream(request, context)
        return answer

    def __enter__(self) -> StreamingBackend:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Cut off what is under way."""
        self._server.stop(None).wait()


class Asked:
    """A call of a method of that kind, under way; ``said``: what its request consists of."""

    def __init__(
        self,
        channel: grpc.Channel,
        kind: str,
        said: Iterable[bytes],
        *,
        service: str = "echo.Echo",
        timeout: float | None = 60.0,
        metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        method = getattr(channel, kind)(path_of(kind, service))
        self.streams = kind.endswith("_stream")
        start = method if self.streams else method.future
        request = iter(said) if kind.startswith("stream_") else next(iter(said))
        self.call = start(request, timeout=timeout, metadata=tuple(metadata))
        self.answers: list[bytes] = []

    def next(self) -> bytes:
        """The next message of the answer."""
        self.answers.append(next(self.call))
        return self.answers[-1]

    def wait(self) -> list[bytes]:
        """Until it is over; all messages that were answered."""
        try:
            if self.streams:
                self.answers += self.call
            else:
                self.answers.append(self.call.result())
        except (grpc.RpcError, grpc.FutureCancelledError):
            pass
        return self.answers

    @property
    def end(self) -> tuple[grpc.StatusCode, str]:
        """How it has ended, once it has."""
        self.wait()
        return self.call.code(), self.call.details()


def _main() -> None:
    counter = itertools.count()

    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        if context.code() is None:
            print(next(counter), flush=True)
        yield b"first"
        threading.Event().wait()

    print(StreamingBackend(behave).address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    _main()
