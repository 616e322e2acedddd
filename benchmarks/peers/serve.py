"""`revconn serve --processes N` with a handler that computes: what all cores are for."""

from __future__ import annotations

import argparse
import os
import sys
import time

from revconn import Connector, Request
from revconn.cli import main

_GATEWAY = "REVCONN_BENCHMARK_GATEWAY"
COMPUTES = 0.02  # seconds of CPU time for each request


def compute(request: Request) -> bytes:
    ends = time.thread_time() + COMPUTES
    while time.thread_time() < ends:
        pass
    return request.payload


def connector() -> Connector:
    made = Connector(
        os.environ[_GATEWAY],
        api_key="benchmark",
        tls=False,
        heartbeat_interval=1.0,
        max_workers=4,
    )
    made.add_method("/echo.Echo/Say", compute)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", default="1")
    parser.add_argument("gateway", help="host:port")
    options = parser.parse_args()
    os.environ[_GATEWAY] = options.gateway
    served = "benchmarks.peers.serve:connector"
    sys.exit(main(["serve", "--processes", options.processes, "--log-level=warning", served]))
