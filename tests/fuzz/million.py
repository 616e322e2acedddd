"""`python -m tests.fuzz.million`: what is fuzzed of a server, with random inputs, seed by seed.

Atheris goes deeper, this one goes anywhere: each input is made of its number alone.
"""

from __future__ import annotations

import argparse
import collections
import logging
import random
import sys
import time
import traceback

from tests.fuzz.endpoints import decode_blocks, serve
from tests.fuzz.gateways import Gateways
from tests.fuzz.webs import WebGateways

TARGETS = {
    "decoder": lambda: decode_blocks,
    "endpoint": lambda: serve,
    "gateway": lambda: Gateways().converse,
    "web": lambda: WebGateways().converse,
}


def made(seed: int, longest: int) -> bytes:
    """The input of that number."""
    chance = random.Random(seed)
    return chance.randbytes(chance.randrange(1, longest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seed", type=int, default=0, help="the first input's number")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--longest", type=int, default=600, help="bytes of an input")
    parser.add_argument("--most", type=int, default=5, help="different failures before it stops")
    options = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())  # else what is said goes to stderr
    run = TARGETS[options.target]()
    began = time.monotonic()
    failures: collections.Counter[str] = collections.Counter()
    slowest = (0.0, 0)
    done = 0
    for seed in range(options.seed, options.seed + options.runs):
        data = made(seed, options.longest)
        before = time.perf_counter()
        try:
            run(data)
        except KeyboardInterrupt:
            break
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            frames = traceback.extract_tb(error.__traceback__)
            where = [f"{frame.name}:{frame.lineno}" for frame in frames[-3:]]
            name = f"{type(error).__name__}: {str(error)[:60]} at {' '.join(where)}"
            if name not in failures:
                print(f"seed {seed}: {name}", flush=True)
            failures[name] += 1
        slowest = max(slowest, (time.perf_counter() - before, seed))
        done += 1
        if len(failures) >= options.most:
            break
    took = time.monotonic() - began
    print(
        f"{options.target}: {done:,} inputs from seed {options.seed} in {took:.0f} s;"
        f" slowest {slowest[0] * 1000:.0f} ms (seed {slowest[1]});"
        f" {sum(failures.values()):,} failures of {len(failures)} kinds"
    )
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
