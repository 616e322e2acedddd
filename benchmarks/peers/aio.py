"""Not reverse: an ordinary grpc.aio server with the same handler, which callers reach directly."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio


async def say(request: bytes, context: object) -> bytes:
    return request


async def main() -> None:
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(say)
    echo = grpc.method_handlers_generic_handler("echo.Echo", {"Say": handler})
    server.add_generic_rpc_handlers((echo,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
