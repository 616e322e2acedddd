"""gunicorn: every kind of worker serves HTTP and, through its connector, the gateway."""

from __future__ import annotations

import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import pytest

from tests.embedding.conftest import EmbeddingGateway
from tests.support.apps import TIMEOUT, App
from tests.support.optional import needs

StartApp = Callable[..., App]

START = """\
def {hook}:
    from web import connector
    connector.start(block=False)
"""
STARTS = {
    "post_fork": START.format(hook="post_fork(server, worker)"),
    "post_worker_init": START.format(hook="post_worker_init(worker)"),
}
STOP = """\
import os

def worker_exit(server, worker):
    from web import connector
    connector.stop()
    os.write(1, f"stopped {connector.state.name}\\n".encode())  # in one piece: two do
"""


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        return response.read().decode()


def url_of(app: App) -> str:
    (line,) = app.hears("Listening at")
    return re.search(r"http://[\d.]+:\d+", line)[0]


@pytest.fixture
def gunicorn(start_app: StartApp, tmp_path) -> Callable[..., App]:
    """``gunicorn(kind, hook, *options)``: two workers of a kind; ``hook`` starts the connector."""

    def start(kind: str, hook: str, *options: str) -> App:
        needs("gunicorn")
        if kind == "gevent":
            needs("gevent")
        tmp_path.joinpath("gunicorn.conf.py").write_text(STARTS.get(hook, "") + STOP)
        command = ["gunicorn", f"--worker-class={kind}", "--bind=127.0.0.1:0", *options]
        return start_app([*command, "web:application"], START_AT=hook)

    return start


@pytest.mark.parametrize(
    ("kind", "hook", "options"),
    [
        ("sync", "import", ["--workers=2"]),
        ("gthread", "post_fork", ["--workers=2", "--threads=4", "--preload"]),
        # Not post_fork: gevent patches the worker only after it.
        ("gevent", "post_worker_init", ["--workers=2", "--preload"]),
        ("gevent", "import", ["--workers=2"]),
    ],
)
def test_each_worker_serves(
    gunicorn: Callable[..., App],
    gateway: EmbeddingGateway,
    kind: str,
    hook: str,
    options: list[str],
) -> None:
    app = gunicorn(kind, hook, *options)
    url = url_of(app)
    gateway.wait_connections(2, app)
    workers = {gateway.call("/app.App/Who") for _ in range(6)}
    assert len(workers) == 2
    assert str(app.pid) not in workers
    with ThreadPoolExecutor(4) as callers:  # two naps in each worker
        began = time.monotonic()
        naps = [callers.submit(gateway.call, "/app.App/Nap") for _ in range(4)]
        answered = {get(url) for _ in range(10)}
        assert not any(nap.done() for nap in naps) or time.monotonic() - began > 3
        assert [nap.result() for nap in naps] == ["rested"] * 4
        assert time.monotonic() - began < 6
    assert answered <= {f"{worker} READY" for worker in workers}
    app.stop()
    assert app.hears("stopped", 2) == ["stopped CLOSED"] * 2
    assert "Traceback" not in app.output
    assert gateway.connections == 0


@pytest.mark.parametrize("kind", ["sync", "gevent"])
def test_one_that_is_started_at_first_use_serves_from_then_on(
    gunicorn: Callable[..., App], gateway: EmbeddingGateway, kind: str
) -> None:
    app = gunicorn(kind, "first use", "--workers=1", "--preload")
    worker = get(url_of(app)).split()[0]
    gateway.wait_connections(1, app)
    assert gateway.call("/app.App/Who") == worker != str(app.pid)
    app.stop()
    assert "Traceback" not in app.output


def test_one_that_is_started_before_the_fork_says_so_in_the_workers(
    gunicorn: Callable[..., App], gateway: EmbeddingGateway
) -> None:
    app = gunicorn("sync", "import", "--workers=1", "--preload")
    url = url_of(app)
    gateway.wait_connections(1, app)
    assert gateway.call("/app.App/Who") == str(app.pid)
    assert get(url).endswith(" CLOSED")
    assert "started before a fork and serves in the parent only" in get(f"{url}/start")
    assert gateway.call("/app.App/Who") == str(app.pid)
    app.stop()
