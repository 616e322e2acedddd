"""What people check, load and look at a gRPC server with, of other projects and other makes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from revconn.gateway import Gateway, ServerTLS
from tests.interop.building import BUILD, PROTOS, TOOLS
from tests.interop.conftest import Interop, Workshop
from tests.support.certificates import Authority
from tests.support.scripted_http2 import message

TIMEOUT = 60.0
CALLS = 300
HELLO = message(b"\x0a\x05hello")  # a HelloRequest, and the reply's first field likewise
SERVING = message(b"\x08\x01")
GRPC = ("-H", "content-type: application/grpc", "-H", "te: trailers")


def run(*command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; that it fails is the test's to judge."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False
    )


def succeeds(*command: str) -> bytes:
    """What a command says that succeeds."""
    ran = run(*command)
    assert ran.returncode == 0, f"{ran.stdout!r}\n{ran.stderr!r}"
    return ran.stdout


@pytest.fixture
def gateway(interop: Interop) -> Gateway:
    """One that serves ``demo.Greeter``, in plaintext."""
    return interop.gateway("python-http2")


@pytest.fixture
def hello(tmp_path: Path) -> str:
    """A file with the body of a request."""
    path = tmp_path / "hello"
    path.write_bytes(HELLO)
    return str(path)


class Secured(NamedTuple):
    """A gateway that wants its callers' certificates, and the files of one who has one."""

    port: str
    ca: str
    cert: str
    key: str


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    authority = Authority()
    ca = authority.write(tmp_path / "ca.pem")
    (tmp_path / "client").mkdir()
    cert, key = authority.issue_files(tmp_path / "client", "client")
    tls = ServerTLS(*authority.issue_files(tmp_path), client_ca=ca)
    with Gateway(api_keys="key", tls=tls) as gateway:
        yield Secured(gateway.address.rpartition(":")[2], str(ca), str(cert), str(key))


# nghttp2, and curl, which is made with it


def test_h2load_gets_every_answer(workshop: Workshop, gateway: Gateway, hello: str) -> None:
    h2load = workshop.needs_program("h2load", "nghttp2-client")
    before = gateway.stats()["calls_answered"]
    amount = ("-n", str(CALLS), "-c", "3", "-m", "10")
    url = f"http://{gateway.address}/demo.Greeter/Hello"
    said = succeeds(h2load, *amount, *GRPC, "-d", hello, url).decode()
    counts = f"{CALLS} done, {CALLS} succeeded, 0 failed, 0 errored, 0 timeout"
    assert counts in said
    assert f"status codes: {CALLS} 2xx" in said
    assert f"({CALLS * len(HELLO)}) data" in said
    assert gateway.stats()["calls_answered"] == before + CALLS


def test_nghttp_shows_the_answer_and_its_trailers(
    workshop: Workshop, gateway: Gateway, hello: str
) -> None:
    nghttp = workshop.needs_program("nghttp", "nghttp2-client")
    url = f"http://{gateway.address}/demo.Greeter/Hello"
    command = (nghttp, "--verbose", "--no-dep", *GRPC, "-H", "echo-note: seen", "-d", hello, url)
    said = succeeds(*command).decode("utf-8", "replace")
    received = re.findall(r"recv \(stream_id=\d+\) (\S+): (.*)", said)
    assert (":status", "200") in received
    assert ("content-type", "application/grpc") in received
    assert ("grpc-status", "0") in received
    assert ("note", "seen") in received


def test_curl_gets_the_answer_and_its_trailers(
    workshop: Workshop, gateway: Gateway, hello: str, tmp_path: Path
) -> None:
    curl = workshop.needs_program("curl", "curl")
    headers = tmp_path / "headers"
    known = (curl, "--silent", "--show-error", "--http2-prior-knowledge", "-D", str(headers))
    url = f"http://{gateway.address}/demo.Greeter/Hello"
    said = succeeds(*known, *GRPC, "-H", "echo-note: seen", "--data-binary", f"@{hello}", url)
    assert said == HELLO
    lines = headers.read_text(encoding="ascii").splitlines()
    assert lines[0].split() == ["HTTP/2", "200"]
    assert {"content-type: application/grpc", "grpc-status: 0", "note: seen"} <= set(lines)


def test_curl_asks_for_health_over_tls_with_a_certificate(
    workshop: Workshop, secured: Secured, tmp_path: Path
) -> None:
    curl = workshop.needs_program("curl", "curl")
    request = tmp_path / "request"
    request.write_bytes(message(b""))
    trust = ("--cacert", secured.ca)
    shown = ("--cert", secured.cert, "--key", secured.key)
    call = (*GRPC, "--data-binary", f"@{request}")
    url = f"https://localhost:{secured.port}/grpc.health.v1.Health/Check"
    assert succeeds(curl, "--silent", "--http2", *trust, *shown, *call, url) == SERVING
    assert run(curl, "--silent", "--http2", *trust, *call, url).returncode != 0


# ghz


@pytest.fixture
def ghz(interop: Interop):
    """``ghz(address, *arguments)``: its report."""
    interop.workshop.needs(TOOLS)

    def ghz(address: str, *arguments: str) -> dict:
        command = (f"{BUILD}/go/ghz", "--insecure", "-O", "json", "-n", str(CALLS))
        return json.loads(succeeds(*command, *arguments, address))

    return ghz


def test_ghz_gets_every_answer(gateway: Gateway, ghz) -> None:
    schema = ("--proto", str(PROTOS / "demo.proto"), "--call", "demo.Greeter.Hello")
    load = ("-c", "20", "--connections", "4", "-d", '{"name": "{{.RequestNumber}}"}')
    report = ghz(gateway.address, *schema, *load)
    assert report["statusCodeDistribution"] == {"OK": CALLS}
    assert report["errorDistribution"] == {}


def test_ghz_finds_what_to_call_by_reflection(gateway: Gateway, ghz) -> None:
    report = ghz(gateway.address, "--call", "grpc.health.v1.Health.Check", "-c", "5")
    assert report["statusCodeDistribution"] == {"OK": CALLS}


# grpc-health-probe


@pytest.fixture
def probe(interop: Interop):
    """``probe(*arguments)``: run it, and give back how it ended."""
    interop.workshop.needs(TOOLS)
    # By itself it waits for a second, which is little on a busy machine.
    patient = (f"{BUILD}/go/grpc-health-probe", "-connect-timeout=30s", "-rpc-timeout=30s")
    return lambda *arguments: run(*patient, *arguments)


@pytest.mark.parametrize("service", ["", "demo.Greeter"])
def test_grpc_health_probe_finds_what_is_served_healthy(
    gateway: Gateway, probe, service: str
) -> None:
    ran = probe(f"-addr={gateway.address}", f"-service={service}")
    assert (ran.returncode, b"status: SERVING" in ran.stdout + ran.stderr) == (0, True), ran


def test_grpc_health_probe_says_what_nobody_serves(gateway: Gateway, probe) -> None:
    ran = probe(f"-addr={gateway.address}", "-service=no.Body")
    rpc_failed = 3
    assert ran.returncode == rpc_failed
    assert b"no connector serves no.Body" in ran.stderr


def test_grpc_health_probe_shows_its_certificate(secured: Secured, probe) -> None:
    over_tls = (f"-addr=localhost:{secured.port}", "-tls", f"-tls-ca-cert={secured.ca}")
    shown = (f"-tls-client-cert={secured.cert}", f"-tls-client-key={secured.key}")
    assert probe(*over_tls, *shown).returncode == 0
    assert probe("-connect-timeout=2s", *over_tls).returncode != 0
