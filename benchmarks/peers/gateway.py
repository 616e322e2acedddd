"""The library's own Gateway. It prints its address, and serves until it is ended."""

from __future__ import annotations

import argparse
import importlib
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (0)")
    parser.add_argument("--heartbeat-timeout", type=float, default=120.0)
    parser.add_argument("--connectors", type=int, default=10_000, help="that may connect (10,000)")
    parser.add_argument("--certificate", help="speak TLS, with the chain in this file")
    parser.add_argument("--key", help="and with the private key in this one")
    parser.add_argument("--loop", choices=["auto", "asyncio"], default="auto")
    options = parser.parse_args()
    if options.loop == "asyncio":
        sys.modules["uvloop"] = None  # type: ignore[assignment]  # as if it was not installed
    package = importlib.import_module("revconn.gateway")  # which may look for uvloop
    tls = options.certificate and package.ServerTLS(options.certificate, options.key)
    gateway = package.Gateway(
        f"127.0.0.1:{options.port}",
        tls=tls or None,
        heartbeat_timeout=options.heartbeat_timeout,
        max_connections=options.connectors,
        max_connections_per_key=options.connectors,
    )
    with gateway:
        print(gateway.address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
