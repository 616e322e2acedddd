from __future__ import annotations

import subprocess
import sys

SERVE = """
import sys, threading
from revconn import Connector

served = threading.Event()
connector = Connector(sys.argv[1], api_key="key")

@connector.method("/echo.Echo/Say")
def say(request):
    served.set()
    return request.payload

connector.start(block=False)
assert served.wait(60)
connector.stop(10)
print(sorted(name for name in ("grpc", "cygrpc", "grpc._cython") if name in sys.modules))
"""


def test_a_connector_that_served_has_not_imported_grpc(gateway) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-c", SERVE, gateway.address],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as program:
        peer = gateway.accept(timeout=60)
        peer.hears("register")
        peer.connected()
        peer.request(payload=b"\x0ahello")
        assert peer.answer().payload == b"\x0ahello"
        peer.hears_goodbye()
        output, _ = program.communicate(timeout=60)
    assert program.returncode == 0
    assert output.strip() == "[]"
