"""A connector: this library's own, with the answers that the other languages' connectors give.

usage: connector.py GATEWAY-ADDRESS API-KEY TRANSPORT
"""

from __future__ import annotations

import sys
import time

from revconn import Connector, Request, Response, StatusCode

ECHO_PREFIX = "echo-"
FAILURE = "no such order: größer als 50 %"
WAITING_TIME = 2.0


def answer(request: Request) -> Response:
    """Echo the payload, and each header ``echo-NAME`` as the header ``NAME``.

    The method ``Goodbye`` is not there. The header ``interop`` asks for something else: ``fail``
    for NOT_FOUND, ``wait`` for an answer that comes late, ``timeout`` for the seconds that are
    left in the header ``seen-timeout``.
    """
    headers = {
        name[len(ECHO_PREFIX) :]: value
        for name, value in request.headers.items()
        if name.startswith(ECHO_PREFIX)
    }
    if request.method.endswith("/Goodbye"):
        return failed(StatusCode.UNIMPLEMENTED, f"no such method: {request.method}", headers)
    wish = request.headers.get("interop")
    if wish == "fail":
        return failed(StatusCode.NOT_FOUND, FAILURE, headers)
    if wish == "wait":
        time.sleep(WAITING_TIME)
    if wish == "timeout":
        headers["seen-timeout"] = f"{request.time_remaining():.0f}"
    return Response(request.payload, headers=headers)


def failed(code: StatusCode, message: str, headers: dict[str, str]) -> Response:
    return Response(status=404, error=message, headers={**headers, "grpc-status": str(int(code))})


def main() -> None:
    address, api_key, transport = sys.argv[1:]
    connector = Connector(
        address,
        api_key=api_key,
        transport=transport,
        heartbeat_interval=1.0,
        max_message_bytes=16 << 20,
    )
    connector.add_service("demo.Greeter", answer)
    connector.start()


if __name__ == "__main__":
    main()
