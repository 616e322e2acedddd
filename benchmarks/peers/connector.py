"""The library's own Connector: as it comes, or as its options say."""

from __future__ import annotations

import argparse
import sys
import time

from revconn import TLS, Connector, Request

LARGEST_MESSAGE = 128 << 20


def echo(request: Request) -> bytes:
    return request.payload


def busy(request: Request) -> bytes:
    """Keep a core busy, in Python code, for some 20 ms."""
    ends = time.thread_time() + 0.02
    while time.thread_time() < ends:
        pass
    return request.payload


def slow(request: Request) -> bytes:
    time.sleep(0.05)
    return request.payload


def stuck(request: Request) -> bytes:
    while True:
        time.sleep(3600)


HANDLERS = {handler.__name__: handler for handler in (echo, busy, slow, stuck)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gateway", help="host:port")
    parser.add_argument("--ca", help="speak TLS, and trust the certificate in this file")
    parser.add_argument("--transport", default="auto")
    parser.add_argument("--inline", action="store_true", help="answer in the receiving thread")
    parser.add_argument("--handler", choices=HANDLERS, default="echo")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--connectors", type=int, default=1)
    parser.add_argument("--switch-interval", type=float, help="seconds, for sys.setswitchinterval")
    options = parser.parse_args()
    if options.switch_interval is not None:
        sys.setswitchinterval(options.switch_interval)
    connectors = [_connector(options) for _ in range(options.connectors)]
    for connector in connectors[1:]:
        connector.start(block=False)
    connectors[0].start()


def _connector(options: argparse.Namespace) -> Connector:
    connector = Connector(
        options.gateway,
        api_key="benchmark",
        tls=TLS(ca=options.ca) if options.ca else False,
        heartbeat_interval=1.0,
        transport=options.transport,
        max_workers=options.workers,
        max_message_bytes=LARGEST_MESSAGE,
    )
    connector.method("/echo.Echo/Say", inline=options.inline)(HANDLERS[options.handler])
    return connector


if __name__ == "__main__":
    main()
