"""The library's own Gateway. It prints its address, and its counters for each line of input."""

from __future__ import annotations

import argparse
import json
import sys

from revconn.gateway import Gateway


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heartbeat-timeout", type=float, default=120.0)
    options = parser.parse_args()
    with Gateway(heartbeat_timeout=options.heartbeat_timeout) as gateway:
        print(gateway.address, flush=True)
        for _ in sys.stdin:
            print(json.dumps(gateway.stats()), flush=True)


if __name__ == "__main__":
    main()
