"""The example of a web application: it is run, and asked by HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from revconn.gateway import Gateway
from tests.support.waiting import eventually

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "web_application"
TIMEOUT = 60.0


@contextmanager
def served(gateway: Gateway, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    told = {"GATEWAY": gateway.address, "API_KEY": "key", **environment}
    process = subprocess.Popen(
        [sys.executable, "connector.py"], cwd=EXAMPLE, env={**os.environ, **told}
    )
    try:
        eventually(gateway.connections, TIMEOUT)
        yield process
    finally:
        process.kill()
        process.wait(TIMEOUT)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway(api_keys="key", http="web.Shop") as gateway:
        yield gateway


def ask(gateway: Gateway, method: str, path: str, **options: object) -> tuple[int, str]:
    connection = HTTPConnection(gateway.address, timeout=TIMEOUT)
    try:
        connection.request(method, path, **options)  # type: ignore[arg-type]
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_the_page_and_its_stylesheet_are_served(gateway: Gateway) -> None:
    with served(gateway):
        status, page = ask(gateway, "GET", "/")
        assert status == 200
        assert "/static/shop.css" in page
        assert ask(gateway, "GET", "/static/shop.css")[0] == 200


def test_a_program_gets_what_it_asks_for(gateway: Gateway) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    with served(gateway) as process:
        assert ask(gateway, "POST", "/orders", body="item=tea", headers=form)[0] == 303
        assert json.loads(ask(gateway, "GET", "/orders")[1]) == ["tea"]
        pieces = iter([b"x" * 100_000] * 100)
        photo = ask(gateway, "POST", "/photos", body=pieces, encode_chunked=True)
        assert (photo[0], json.loads(photo[1])) == (200, {"bytes": 10_000_000})
        assert ask(gateway, "GET", "/nowhere")[0] == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0
