"""Not reverse: an ordinary grpc.server with the same handler, which callers reach directly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc


def say(request: bytes, context: grpc.ServicerContext) -> bytes:
    return request


def main() -> None:
    server = grpc.server(ThreadPoolExecutor())
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(say)
    echo = grpc.method_handlers_generic_handler("echo.Echo", {"Say": handler})
    server.add_generic_rpc_handlers((echo,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
