"""What every test gets."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import re
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import settings

# What grpc does around a fork it also does in the children of Python 3.9's subprocess, before they
# execute anything: with newer releases some never do. Whom the tests start is to have it as usual.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import grpc

import revconn
from revconn import Connector
from revconn.testing import FaultProxy
from tests.support.certificates import Authority
from tests.support.connectors import QUICK, TRANSPORTS
from tests.support.programs import Program
from tests.support.scripted_gateway import ScriptedGateway

grpc.insecure_channel("127.0.0.1:9").close()  # looks at it, if grpc is older than 1.74
del os.environ["GRPC_ENABLE_FORK_SUPPORT"]

JOIN_TIMEOUT = 60.0

# What these set up is costly: one worker gets them all. Other tests go to whoever is free.
TOGETHER = ("tests/interop/", "tests/test_packaging.py")

# A slow machine is no bug: hypothesis' own per-example deadline is off, pytest-timeout is on.
settings.register_profile("revconn", deadline=None, max_examples=40)
# After a change of what they test: --hypothesis-profile=many
settings.register_profile("many", deadline=None, max_examples=1000)
# For tests that have had their examples elsewhere: --hypothesis-profile=few
settings.register_profile("few", deadline=None, max_examples=15)
settings.load_profile("revconn")

# What these run, the rooms' own tests measure: to trace it takes as long again.
UNMEASURED = tuple(
    f"tests/{place}"
    for place in (
        "benchmarks/",
        "cli/test_demo.py",
        "docs/",
        "embedding/",
        "fuzz/",
        "gateway/attacks/",
        "examples/",
        "gateway/test_faults.py",
        "gateway/test_looks.py",
        "gateway/test_patience.py",
        "gateway/test_scale.py",
        "interop/",
        "runtime/",
        "serving/test_faults_of_tunnels.py",
        "support/",
        "test_ascii.py",
        "test_packaging.py",
        "transport/test_through_a_proxy.py",
        "web/test_browser.py",
        "web/test_frameworks.py",
    )
)
# Of what runs in several ways, these run what the others do.
UNMEASURED_WAYS = re.compile(r"\[(grpcio|TLS)\b")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute tests one by one, but for those that belong together."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((room for room in TOGETHER if nodeid.startswith(room)), nodeid)

    return Scheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Whoever hands the tests out to workers runs none: there is nothing to trace."""
    if tracing() and config.getoption("numprocesses", None):
        from coverage import Coverage

        Coverage.current().stop()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect untraced, which takes half as long; what revconn does on import is traced before."""
    if not tracing() or session.config.getoption("numprocesses", None):
        return (yield)
    for module in pkgutil.walk_packages(revconn.__path__, "revconn."):
        if module.name != "revconn.__main__":
            importlib.import_module(module.name)
    with untraced():
        return (yield)


def pytest_collection_finish() -> None:
    """To look through what was collected, a fifth of a second long, frees nothing."""
    gc.freeze()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of the files, collect those that can hold what is asked for: to collect all takes 5 s."""
    if config.option.markexpr != "alone" or collection_path.suffix != ".py":
        return None
    return "mark.alone" not in collection_path.read_text(encoding="utf-8") or None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Leave what is unmeasured, and the programs that it starts, to run untraced."""
    is_measured = not (item.nodeid.startswith(UNMEASURED) or UNMEASURED_WAYS.search(item.nodeid))
    if not tracing() or is_measured:
        return (yield)
    with untraced():
        return (yield)


def tracing() -> bool:
    """Whether this runs under coverage."""
    return "COVERAGE_PROCESS_CONFIG" in os.environ


@contextmanager
def untraced() -> Iterator[None]:
    """Pause coverage in this process, and in programs that are started meanwhile."""
    from coverage import Coverage
    from coverage.exceptions import CoverageWarning

    tracer, inherited = Coverage.current(), os.environ.pop("COVERAGE_PROCESS_CONFIG")
    tracer.stop()
    try:
        yield
    finally:
        os.environ["COVERAGE_PROCESS_CONFIG"] = inherited
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CoverageWarning)  # that revconn was imported before
            tracer.start()


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """Fail the test that leaves a revconn thread running."""
    before = set(threading.enumerate())
    yield
    started = [thread for thread in threading.enumerate() if thread not in before]
    left = [thread for thread in started if thread.name.startswith("revconn-")]
    for thread in left:
        thread.join(JOIN_TIMEOUT)
    running = [thread.name for thread in left if thread.is_alive()]
    assert not running, f"the test left threads running: {running}"


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    """A gateway that says what the test tells it to."""
    with ScriptedGateway() as gateway:
        yield gateway


@pytest.fixture
def proxy(gateway: ScriptedGateway) -> Iterator[FaultProxy]:
    """A proxy in front of the gateway, for breaking connections."""
    with FaultProxy(gateway.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def authority() -> Authority:
    """Whom the tests' certificates are issued by."""
    return Authority()


@pytest.fixture(params=list(TRANSPORTS))
def transport_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The options that choose a transport; the test runs once with each."""
    return TRANSPORTS[request.param]


@pytest.fixture
def new_connector(transport_options: dict[str, Any]) -> Iterator[Callable[..., Connector]]:
    """``new_connector(targets, **options)``: one with short times, aborted after the test."""
    made: list[Connector] = []

    def make(targets: str | list[str], **options: Any) -> Connector:
        made.append(Connector(targets, **{**QUICK, **transport_options, **options}))
        return made[-1]

    yield make
    for connector in made:
        connector.abort()


@pytest.fixture
def new_program(transport_options: dict[str, Any]) -> Iterator[Callable[..., Program]]:
    """``new_program(body, target, **options)``: see Program; killed after the test."""
    started: list[Program] = []

    def start(body: str, target: str | list[str], **options: Any) -> Program:
        started.append(Program(body, target, **{**transport_options, **options}))
        return started[-1]

    yield start
    for program in started:
        program.close()
