"""Every host that is documented, ended as users end it, beside a second replica: no call is lost.

Calls that its handlers have in hand are answered, and so are all of the 40 a second that come
meanwhile.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Callable

import grpc
import pytest

from revconn import Connector
from tests.embedding.conftest import KEY, EmbeddingGateway
from tests.support.apps import TIMEOUT, App
from tests.support.optional import needs
from tests.support.recipes import Recipe
from tests.support.waiting import eventually

IN_FLIGHT = 4
CALLS_PER_SECOND = 40
QUICK = "/orders.Orders/Quick"

HANDLERS = """
import os
import time

@connector.method("/orders.Orders/Quick")
def quick(request):
    return b"quick"

@connector.method("/orders.Orders/Slow")
def slow(request):
    os.write(1, b"handling\\n")
    while connector.state.name == "READY" and request.is_active():
        time.sleep(0.01)  # until it leaves
    time.sleep(0.2)
    return b"slow"

"""


class Load:
    """Calls in the handlers of an application, and a steady rate of others from then on."""

    def __init__(self, gateway: EmbeddingGateway, app: App) -> None:
        self._gateway = gateway
        self._app = app
        self._calls: list[grpc.Future] = []
        self._over = threading.Event()
        self._caller = threading.Thread(target=self._keep_calling, name="caller")

    def __enter__(self) -> Load:
        before = self._app.lines.count("handling")
        self.in_hand = [self._call("/orders.Orders/Slow") for _ in range(IN_FLIGHT)]
        self._app.hears("handling", before + IN_FLIGHT)
        self._replica = Connector(self._gateway.address, api_key=KEY)
        self._replica.add_method(QUICK, lambda request: b"quick")
        self._replica.start(block=False)
        self._replica.wait_ready(TIMEOUT)
        self._caller.start()
        eventually(lambda: len(self._calls) > IN_FLIGHT + 10)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        count = len(self._calls)
        if kind is None:
            eventually(lambda: len(self._calls) > count + 10)
        self._over.set()
        self._caller.join()
        problems = [str(problem) for call in self._calls if (problem := call.exception(TIMEOUT))]
        self._replica.stop()
        assert problems == [], self._app.output

    def _call(self, method: str) -> grpc.Future:
        self._calls.append(self._gateway.call_future(method))
        return self._calls[-1]

    def _keep_calling(self) -> None:
        while not self._over.wait(1 / CALLS_PER_SECOND):
            self._call(QUICK)

    def all_in_hand_are_answered(self) -> bool:
        return all(call.done() for call in self.in_hand)


SCRIPT = """\
import atexit
import signal
from revconn import Connector

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
connector = Connector.from_env()
"""
SIGTERM_COMES = "signal.sigwait({signal.SIGTERM})\n"
ENDS = {
    "with": f"with connector:\n    {SIGTERM_COMES}",
    "atexit": f"connector.start(block=False)\natexit.register(connector.stop)\n{SIGTERM_COMES}",
    "an exception": f"connector.start(block=False)\n{SIGTERM_COMES}raise SystemExit('oh')\n",
    "start": ("signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})\nconnector.start()\n"),
}


@pytest.mark.parametrize("end", list(ENDS))
def test_a_script(
    start_app: Callable[..., App], gateway: EmbeddingGateway, tmp_path: Path, end: str
) -> None:
    tmp_path.joinpath("script.py").write_text(SCRIPT + HANDLERS + ENDS[end])
    app = start_app([sys.executable, "script.py"])
    gateway.wait_connections(1, app)
    with Load(gateway, app):
        app.stop()


def test_revconn_serve(
    start_app: Callable[..., App],
    gateway: EmbeddingGateway,
    tmp_path: Path,
) -> None:
    tmp_path.joinpath("served.py").write_text(
        f"from revconn import Connector\nconnector = Connector.from_env()\n{HANDLERS}"
    )
    app = start_app(["revconn", "serve", "served:connector"])
    gateway.wait_connections(1, app)
    with Load(gateway, app):
        app.stop()


@pytest.fixture
def gunicorn(
    start_app: Callable[..., App], recipe: Callable[[str], Recipe], tmp_path: Path
) -> Callable[..., App]:
    """``gunicorn(*options)``: what its page says, with these options besides."""
    needs("gunicorn")
    needs("flask")
    page = recipe("howto/gunicorn.md")
    page.write("app.py", tmp_path, HANDLERS)
    page.write("gunicorn.conf.py", tmp_path)
    command = page.command("gunicorn")
    return lambda *options: start_app([*command, "--bind=127.0.0.1:0", *options])


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_gunicorn_at_sigterm(
    gunicorn: Callable[..., App], gateway: EmbeddingGateway, kind: str
) -> None:
    if kind == "gevent":
        needs("gevent")
    app = gunicorn(f"--worker-class={kind}")
    gateway.wait_connections(2, app)
    with Load(gateway, app):
        app.stop()


def test_gunicorn_at_sighup_and_at_max_requests(
    gunicorn: Callable[..., App], gateway: EmbeddingGateway
) -> None:
    app = gunicorn("--max-requests=1")
    (line,) = app.hears("Listening at")
    url = re.search(r"http://[\d.]+:\d+", line)[0] + "/health"
    gateway.wait_connections(2, app)
    with Load(gateway, app) as load:
        app.signal(signal.SIGHUP)
        eventually(load.all_in_hand_are_answered, TIMEOUT)
        gateway.wait_serving(3)
    with Load(gateway, app) as load:
        while not load.all_in_hand_are_answered():
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                response.read()
        gateway.wait_serving(3)
    app.stop()


def test_uwsgi_at_sigterm_though_its_workers_are_busy(
    start_app: Callable[..., App],
    gateway: EmbeddingGateway,
    recipe: Callable[[str], Recipe],
    tmp_path: Path,
) -> None:
    needs("uwsgi")
    page = recipe("howto/uwsgi.md")
    busy = """
def answer_health(environ, start_response, answer=application):
    os.write(1, b"busy\\n")
    while connector.state.name == "READY" and os.path.exists("busy"):
        time.sleep(0.01)
    return answer(environ, start_response)

application = answer_health
"""
    page.write("app.py", tmp_path, HANDLERS + busy)
    tmp_path.joinpath("busy").touch()
    app = start_app(page.command("uwsgi"))
    (bound,) = app.hears("bound to TCP address")
    url = f"http://{re.search(r'127[.]0[.]0[.]1:[0-9]+', bound)[0]}"
    gateway.wait_connections(2, app)
    with Load(gateway, app), ExitStack() as visitors:
        visitor = threading.Thread(target=lambda: urllib.request.urlopen(url).read())
        visitor.start()
        visitors.callback(visitor.join)
        app.hears("busy")
        app.signal(signal.SIGTERM)
        app.hears("graceful shutdown triggered")
        tmp_path.joinpath("busy").unlink()
        app.wait()


ASYNC = """
@connector.method("/orders.Orders/Slow", replace=True)
def slow_as_the_loop_is(request):
    slow(request)
    finishing = asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1, b"slow"), app.state.loop)
    return finishing.result(10)
"""


def test_uvicorn_at_sigterm_though_handlers_wait_for_its_loop(
    start_app: Callable[..., App],
    gateway: EmbeddingGateway,
    recipe: Callable[[str], Recipe],
    tmp_path: Path,
) -> None:
    needs("fastapi")
    needs("uvicorn")
    page = recipe("howto/asyncio.md")
    page.write("api.py", tmp_path, HANDLERS + ASYNC)
    app = start_app(page.command("uvicorn"))
    gateway.wait_connections(1, app)
    with Load(gateway, app):
        app.stop()


def test_celery_at_sigterm(
    start_app: Callable[..., App],
    gateway: EmbeddingGateway,
    recipe: Callable[[str], Recipe],
    tmp_path: Path,
) -> None:
    needs("celery")
    page = recipe("howto/celery.md")
    page.write("tasks.py", tmp_path, HANDLERS)
    app = start_app([*page.command("celery"), "--without-gossip", "--without-mingle"])
    gateway.wait_connections(2, app)
    with Load(gateway, app):
        app.stop()
