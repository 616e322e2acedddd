"""``python -m tests.gateway.attacks.programs NAME OPTIONS``: who is attacked, as processes.

``gateway``: prints its address, and then a line of JSON, its ``stats()``, for each line it reads.
``connector``: serves what victims call; prints a line once it does. Both end when stdin does.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from revconn import TLS, Backoff, Connector, Request
from revconn.cli.garbage import GarbageWatch
from revconn.gateway import Gateway, ServerTLS
from tests.support.giving_back import give_back

__all__: list[str] = []

_LARGE = (4 << 20) - 1000  # nearly the largest that is taken in one message
_CHUNKED = 100_000  # more than the gateway of the test in question takes in one


def gateway(*, descriptors: int = 0, tls: list[str] | None = None, **options: Any) -> None:
    if descriptors:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, most))
    with Gateway(tls=ServerTLS(*tls) if tls else None, **options) as running:
        GarbageWatch.start(lambda: running.stats()["pending"])  # as the command does
        print(running.address, flush=True)
        for _ in sys.stdin:
            give_back()
            print(json.dumps(running.stats()), flush=True)


def connector(*, address: str, service: str = "echo.Echo", ca: str = "", **options: Any) -> None:
    given = {"backoff": Backoff(initial=0.05, maximum=0.05), **options}
    serving = Connector(address, tls=TLS(ca=ca) if ca else None, **given)

    @serving.method(f"/{service}/Say")
    def say(request: Request) -> bytes:
        return b"Echo: " + request.payload

    @serving.method(f"/{service}/Large")
    def large(request: Request) -> bytes:
        return bytes(_LARGE)

    @serving.method(f"/{service}/Chunks")
    def chunks(request: Request) -> bytes:
        return b"Echo: " + request.payload + bytes(_CHUNKED)

    with serving:
        serving.wait_ready(30)
        print("serving", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    globals()[sys.argv[1]](**json.loads(sys.argv[2]))
