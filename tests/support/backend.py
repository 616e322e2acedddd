"""A service that listens itself: an ordinary gRPC server, which a gateway can dial."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

__all__ = ["Backend"]

Answer = Callable[[bytes, grpc.ServicerContext], bytes]


class Backend(grpc.GenericRpcHandler):
    """Answers every method with ``answer``, which echoes if nothing else is said.

    ``streams``: the answer is an iterator of messages. ``calls`` holds the context of each call
    that came.
    """

    def __init__(
        self,
        answer: Answer | None = None,
        address: str = "127.0.0.1:0",
        *,
        streams: bool = False,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._streams = streams
        self.calls: queue.SimpleQueue[grpc.ServicerContext] = queue.SimpleQueue()
        self._answer = answer or (lambda payload, context: payload)
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self,))
        if credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, credentials)
        self.address = address.replace(":0", f":{port}")
        self._server.start()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        if self._streams:
            return grpc.unary_stream_rpc_method_handler(self._handle)
        return grpc.unary_unary_rpc_method_handler(self._handle)

    def _handle(self, payload: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls.put(context)
        return self._answer(payload, context)

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Cut off what is under way."""
        self._server.stop(None).wait()
