"""`python -m tests.fuzz`: all targets under atheris, 60 s or as libFuzzer's flags say."""

from __future__ import annotations

import logging
import pathlib
import sys
import tempfile

# Not from tests.fuzz.record: what is imported before it can be instrumented is not followed.
RECORDINGS = pathlib.Path(__file__).parent / "recordings"
MOST_CHOICES = 300  # bytes
DEFAULTS = ("-max_total_time=60", "-timeout=10", "-rss_limit_mb=1024", "-max_len=65536")


def main() -> None:
    try:
        import atheris
    except ImportError:
        sys.exit(
            "fuzzing needs atheris, which is made for Linux and Python 3.9 to 3.13:"
            " pip install 'revconn[fuzz]'"
        )
    with atheris.instrument_imports(include=["revconn", "hpack", "h11"]):
        from tests.fuzz.decoders import decode_all
        from tests.fuzz.endpoints import decode_blocks, serve
        from tests.fuzz.gateways import Gateways
        from tests.fuzz.target import converse
        from tests.fuzz.webs import WebGateways

    gateways, web_gateways = Gateways(), WebGateways()

    def run(data: bytes) -> None:
        converse(data)  # libFuzzer wants nothing back
        decode_all(data)
        # Of what is choices, so many make a long conversation already.
        choices = data[:MOST_CHOICES]
        decode_blocks(choices)
        serve(choices)
        gateways.converse(choices)
        web_gateways.converse(choices)

    logging.getLogger().addHandler(logging.NullHandler())  # the gateway must log no error
    found = tempfile.mkdtemp(prefix="revconn-fuzz-")
    atheris.Setup([sys.argv[0], *DEFAULTS, *sys.argv[1:], found, str(RECORDINGS)], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
