"""Streaming methods to be measured: behind a connector, or behind grpc's own server."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

SERVICE = "bench.Streams"


def down(request: bytes, context: Any) -> Iterator[bytes]:
    message = b"x" * int(request)
    while True:
        yield message


def up(requests: Iterator[bytes], context: Any) -> bytes:
    return b"%d" % sum(1 for _ in requests)


def echo(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    yield from requests


def say(request: bytes, context: Any) -> bytes:
    return request


HANDLERS = grpc.method_handlers_generic_handler(
    SERVICE,
    {
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
        "Say": grpc.unary_unary_rpc_method_handler(say),
    },
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--direct", action="store_true", help="behind grpc.server; prints its port")
    parser.add_argument("gateway", nargs="?", help="the gateway's address")
    options = parser.parse_args()
    if options.direct:
        server = grpc.server(ThreadPoolExecutor(64))
        server.add_generic_rpc_handlers((HANDLERS,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        print(f"127.0.0.1:{port}", flush=True)
        signal.pause()
        return
    from revconn import Connector

    connector = Connector(options.gateway, api_key="key", max_workers=64, max_streams=48)
    connector.add_generic_rpc_handlers((HANDLERS,))
    connector.start(block=False)
    connector.wait_ready(30)
    print("ready", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
