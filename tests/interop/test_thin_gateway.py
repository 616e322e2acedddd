"""The gateway that the benchmark compares with does what it is compared for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from revconn import Connector
from tests.interop.building import BUILD, GO
from tests.interop.conftest import Workshop
from tests.support.apps import App

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def address(workshop: Workshop, tmp_path: Path) -> Iterator[str]:
    """Of a thin gateway, where a connector echoes."""
    workshop.needs(GO)
    gateway = App([f"{BUILD}/go/thingateway"], tmp_path)
    try:
        (address,) = gateway.hears("127.0.0.1:")
        connector = Connector(address, api_key="key", tls=False)
        connector.add_method("/echo.Echo/Say", lambda request: request.payload)
        with connector:
            connector.wait_ready(60.0)
            yield address
            connector.abort()  # to stop takes 5 s: this gateway does not heed goodbyes
    finally:
        gateway.kill()


@pytest.mark.parametrize("way", ["connect", "through"])
def test_it_routes_calls_from_outside_and_from_connectors(address: str, way: str) -> None:
    command = [sys.executable, "-m", "benchmarks.loadgen", f"--{way}={address}"]
    command += ["--in-flight=8", "--seconds=0.2"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(ran.stdout.splitlines()[-1])
    assert (result["errors"], result["first_error"]) == (0, "")
    assert result["requests"] > 0


def test_it_knows_which_services_are_there(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/nobody.Home/Say")(b"", timeout=60.0)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
