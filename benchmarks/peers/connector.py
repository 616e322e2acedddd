"""The library's own Connector with an echo handler."""

from __future__ import annotations

import sys

from revconn import Connector, Request


def main() -> None:
    connector = Connector(sys.argv[1], api_key="benchmark", tls=False, heartbeat_interval=1.0)

    @connector.method("/echo.Echo/Say")
    def say(request: Request) -> bytes:
        return request.payload

    connector.start()


if __name__ == "__main__":
    main()
