"""The library's own Connector with an echo handler."""

from __future__ import annotations

import argparse

from revconn import Connector, Request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gateway", help="host:port")
    parser.add_argument("--transport", default="auto")
    parser.add_argument("--inline", action="store_true", help="answer in the receiving thread")
    options = parser.parse_args()
    connector = Connector(
        options.gateway,
        api_key="benchmark",
        tls=False,
        heartbeat_interval=1.0,
        transport=options.transport,
    )

    @connector.method("/echo.Echo/Say", inline=options.inline)
    def say(request: Request) -> bytes:
        return request.payload

    connector.start()


if __name__ == "__main__":
    main()
