"""The example of a service that moved: both of its versions are run, and called alike."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from revconn.cli.demo.processes import free_port
from revconn.gateway import Gateway
from tests.support.waiting import eventually

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "grpc_service"
TIMEOUT = 60.0
MOST_CHANGED = 8


@contextmanager
def running(program: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, program], cwd=EXAMPLE, env={**os.environ, **environment}
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(TIMEOUT)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.syspath_prepend(EXAMPLE)
    return importlib.import_module("inventory_pb2"), importlib.import_module("inventory_pb2_grpc")


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway(api_keys="key") as gateway:
        yield gateway


@contextmanager
def before(_: Gateway) -> Iterator[tuple[subprocess.Popen[bytes], grpc.Channel]]:
    address = f"127.0.0.1:{free_port()}"
    with running("before.py", ADDRESS=address) as process:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(TIMEOUT)
            yield process, channel


@contextmanager
def after(gateway: Gateway) -> Iterator[tuple[subprocess.Popen[bytes], grpc.Channel]]:
    with running("after.py", GATEWAY=gateway.address, API_KEY="key") as process:
        with grpc.insecure_channel(gateway.address) as channel:
            eventually(gateway.connections, TIMEOUT)
            yield process, channel


def calls(channel: grpc.Channel, generated: tuple[Any, Any]) -> list[Any]:
    """What callers of all that the service has get of it."""
    pb2, pb2_grpc = generated
    stub = pb2_grpc.InventoryStub(channel)
    seen: list[Any] = []

    def take(item: str, pieces: int) -> None:
        try:
            level = stub.Take(pb2.TakeRequest(item=item, pieces=pieces), timeout=TIMEOUT)
        except grpc.RpcError as error:
            seen.append((error.code(), error.details()))
        else:
            seen.append((level.item, level.pieces))

    take("bolts", 2)
    take("bolts", 20)
    take("screws", 1)

    watch = stub.Watch(pb2.WatchRequest(item="nuts"), timeout=TIMEOUT)
    seen.append(next(watch).pieces)
    stock = stub.Stock(
        iter([pb2.Scan(item="bolts"), pb2.Scan(item="nuts"), pb2.Scan(item="bolts")]),
        timeout=TIMEOUT,
    )
    seen.append([(level.item, level.pieces) for level in stock])
    seen.append((metadata(stock.initial_metadata()), metadata(stock.trailing_metadata())))
    seen.append(next(watch).pieces)
    take("nuts", 5)
    seen.append(next(watch).pieces)
    watch.cancel()
    with pytest.raises(grpc.RpcError) as cancelled:
        next(watch)
    seen.append(cancelled.value.code())

    unheard = stub.Watch(pb2.WatchRequest(item="screws"), timeout=TIMEOUT)
    with pytest.raises(grpc.RpcError) as missing:
        next(unheard)
    seen.append((missing.value.code(), missing.value.details()))
    return seen


def metadata(pairs: Any) -> list[tuple[str, Any]]:
    return [tuple(pair) for pair in pairs]


EXPECTED = [
    ("bolts", 10),
    (grpc.StatusCode.FAILED_PRECONDITION, "there are 10 bolts"),
    (grpc.StatusCode.NOT_FOUND, "nobody has heard of screws"),
    7,
    [("bolts", 11), ("nuts", 8), ("bolts", 12)],
    ([("shelf", "a-12")], [("scanned", "3")]),
    8,
    ("nuts", 3),
    3,
    grpc.StatusCode.CANCELLED,
    (grpc.StatusCode.NOT_FOUND, "nobody has heard of screws"),
]


@pytest.mark.parametrize("version", [before, after])
def test_callers_get_the_same_of_both_versions(
    version: Any, gateway: Gateway, generated: tuple[Any, Any]
) -> None:
    with version(gateway) as (process, channel):
        assert calls(channel, generated) == EXPECTED
        assert calls_in_the_end(process, channel, generated) == 3
        assert process.wait(TIMEOUT) == 0


def calls_in_the_end(
    process: subprocess.Popen[bytes], channel: grpc.Channel, generated: tuple[Any, Any]
) -> int:
    """SIGTERM in the midst of a call: it goes on to its end."""
    pb2, pb2_grpc = generated
    asked = 0

    def scans() -> Iterator[Any]:
        nonlocal asked
        yield pb2.Scan(item="nuts")
        process.send_signal(signal.SIGTERM)
        for _ in range(2):
            asked += 1
            yield pb2.Scan(item="nuts")

    levels = list(pb2_grpc.InventoryStub(channel).Stock(scans(), timeout=TIMEOUT))
    assert asked == 2
    return len(levels)


def changed_lines() -> list[str]:
    texts = [(EXAMPLE / name).read_text("utf-8").splitlines() for name in ("before.py", "after.py")]
    compared = list(difflib.unified_diff(*texts, n=0, lineterm=""))[2:]
    return [line for line in compared if not line.startswith("@@")]


def test_the_versions_differ_by_a_few_lines() -> None:
    assert 0 < len(changed_lines()) <= MOST_CHANGED


def test_the_readme_shows_how_they_differ() -> None:
    readme = (EXAMPLE / "README.md").read_text("utf-8")
    (shown,) = re.findall(r"```diff\n(.*?)```", readme, re.S)
    assert [line for line in shown.splitlines() if line[:1] in ("-", "+")] == changed_lines()
