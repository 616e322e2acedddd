"""uWSGI: its workers serve HTTP and, through their connectors, the gateway."""

from __future__ import annotations

import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import pytest

from tests.embedding.conftest import EmbeddingGateway
from tests.support.apps import TIMEOUT, App
from tests.support.optional import needs

POSTFORK = """\
from uwsgidecorators import postfork
from web import application, connector

@postfork
def start():
    connector.start(block=False)
"""


@pytest.fixture
def uwsgi(start_app: Callable[..., App], tmp_path) -> Callable[..., App]:
    """``uwsgi(module, *options)``: two workers."""
    needs("uwsgi")
    tmp_path.joinpath("forked.py").write_text(POSTFORK)
    command = ["uwsgi", "--http-socket=127.0.0.1:0", "--master", "--processes=2", "--die-on-term"]
    command += ["--need-app", f"--home={sys.prefix}", f"--pythonpath={tmp_path}"]
    return lambda module, *options, **env: start_app(
        [*command, f"--module={module}", *options], **env
    )


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("web:application", ["--enable-threads", "--lazy-apps"]),
        ("forked:application", ["--enable-threads"]),
    ],
    ids=["lazy-apps", "postfork"],
)
def test_each_worker_serves(
    uwsgi: Callable[..., App], gateway: EmbeddingGateway, module: str, options: list[str]
) -> None:
    lazy = "--lazy-apps" in options
    app = uwsgi(module, *options, START_AT="import" if lazy else "hook")
    (bound,) = app.hears("bound to TCP address")
    url = f"http://{re.search(r'127[.]0[.]0[.]1:[0-9]+', bound)[0]}"
    gateway.wait_connections(2, app)
    workers = {gateway.call("/app.App/Who") for _ in range(6)}
    assert len(workers) == 2
    with ThreadPoolExecutor(4) as callers:
        naps = [callers.submit(gateway.call, "/app.App/Nap") for _ in range(4)]
        answered = set()
        for _ in range(10):
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                answered.add(response.read().decode())
        assert [nap.result() for nap in naps] == ["rested"] * 4
    assert answered <= {f"{worker} READY" for worker in workers}
    app.stop()
    assert "Traceback" not in app.output
    gateway.wait_connections(0, app)
