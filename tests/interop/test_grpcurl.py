"""grpcurl lists what the gateway offers, and calls through it."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.interop.building import BUILD, GRPCURL, PROTOS
from tests.interop.conftest import Interop


@pytest.fixture
def grpcurl(interop: Interop):
    """``grpcurl(*arguments)``: run it, and give back how it ended."""
    interop.workshop.needs(GRPCURL)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [f"{BUILD}/go/grpcurl", "-plaintext", "-max-time", "10", *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=30)

    return run


def test_grpcurl_lists_the_gateways_own_services(interop: Interop, grpcurl) -> None:
    ran = grpcurl(interop.gateway("python-http2").address, "list")
    assert ran.returncode == 0, ran.stderr
    listed = ran.stdout.split()
    assert "registry.RegistryService" in listed
    assert "grpc.health.v1.Health" in listed


def test_grpcurl_describes_the_gateways_own_service(interop: Interop, grpcurl) -> None:
    address = interop.gateway("python-http2").address
    ran = grpcurl(address, "describe", "registry.RegistryService")
    assert ran.returncode == 0, ran.stderr
    assert "rpc EstablishConnection ( stream .registry.ConnectionMessage )" in ran.stdout


def test_grpcurl_calls_a_connector(interop: Interop, grpcurl) -> None:
    schema = ("-import-path", str(PROTOS), "-proto", "demo.proto")
    request = ("-d", '{"name": "grpcurl"}', "-H", "echo-note: seen", "-v")
    address = interop.gateway("python-http2").address
    ran = grpcurl(*schema, *request, address, "demo.Greeter/Hello")
    assert ran.returncode == 0, ran.stderr
    assert '"greeting": "grpcurl"' in ran.stdout
    assert "note: seen" in ran.stdout


def test_grpcurl_shows_a_connectors_failure(interop: Interop, grpcurl) -> None:
    schema = ("-import-path", str(PROTOS), "-proto", "demo.proto", "-format-error")
    address = interop.gateway("python-http2").address
    ran = grpcurl(*schema, "-H", "interop: fail", address, "demo.Greeter/Hello")
    assert ran.returncode == 64 + 5
    assert json.loads(ran.stderr)["message"] == "no such order: größer als 50 %"
