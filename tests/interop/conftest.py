"""What the interop tests get: programs in four languages, and the gateways they meet at."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import NoReturn

import pytest

from revconn.gateway import Gateway
from tests.interop.building import GO_PROGRAMS, JAVA_PROGRAMS, NODE, Sources, build
from tests.interop.peers import CONNECTORS, KEY, TRIES, client_command, connector_command, needed
from tests.support.apps import TIMEOUT, App
from tests.support.waiting import eventually

CLIENT_TIMEOUT = 180.0
BUILD_TIMEOUT = 600  # seconds, with everything downloaded


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith("tests/interop/"):
            item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT))


class Workshop:
    """Builds everything that can be built here, at once, when the first of it is asked for."""

    def __init__(self) -> None:
        self._problems: dict[str, str] | None = None

    def needs(self, sources: Sources | None) -> None:
        """Skip the test whose tools are missing; in CI, or with INTEROP=required, fail it."""
        if sources is None:
            return
        if sources.missing():
            _do_without(sources.missing())
        if self._problem(sources):
            pytest.fail(self._problem(sources))

    def needs_program(self, program: str, package: str) -> str:
        """Where a program of a Debian package is; what is missing is skipped or fails likewise."""
        path = shutil.which(program)
        if path is None:
            _do_without(f"{program} is not installed: apt-get install {package}")
        return path

    def has(self, sources: Sources | None) -> bool:
        """Whether it could be built."""
        return sources is None or not (sources.missing() or self._problem(sources))

    def _problem(self, sources: Sources) -> str:
        if self._problems is None:
            with ThreadPoolExecutor() as builders:
                tried = builders.map(_try_to_build, (GO_PROGRAMS, (NODE,), JAVA_PROGRAMS))
                self._problems = dict(chain.from_iterable(tried))
        return self._problems[sources.name]


def _do_without(missing: str) -> NoReturn:
    if os.environ.get("CI") == "true" or os.environ.get("INTEROP") == "required":
        pytest.fail(missing)
    pytest.skip(missing)


def _try_to_build(several: Iterable[Sources]) -> list[tuple[str, str]]:
    """What was wrong with each, built one after the other."""
    return [(sources.name, _problem(sources)) for sources in several]


def _problem(sources: Sources) -> str:
    if not sources.missing():
        try:
            build(sources)
        except subprocess.CalledProcessError as error:
            return f"{' '.join(error.cmd)} failed:\n{error.stdout}"
    return ""


class Interop:
    """A gateway for each connector; the connectors, and the clients' reports, when asked for."""

    def __init__(self, workshop: Workshop, directory: Path, opened: ExitStack) -> None:
        self.workshop = workshop
        self._directory = directory
        self._opened = opened
        self._gateways = {name: opened.enter_context(new_gateway()) for name in CONNECTORS}
        self._reports: dict[str, dict[tuple[str, str], str]] = {}

    def gateway(self, connector: str) -> Gateway:
        """A gateway that serves what ``connector`` registered."""
        gateway = self._gateways[connector]
        if not gateway.connections():
            self._opened.callback(self.start_connector(connector, gateway).kill)
        return gateway

    def start_connector(self, connector: str, gateway: Gateway) -> App:
        """Start a connector and wait until it has registered; to be killed by the caller."""
        self.workshop.needs(needed(connector))
        app = App(connector_command(connector, gateway.address, KEY), self._directory)
        try:
            eventually(gateway.connections, TIMEOUT)
        except AssertionError:
            app.kill()
            raise AssertionError(f"the {connector} connector said:\n{app.output}") from None
        return app

    def report(self, client: str) -> dict[tuple[str, str], str]:
        """What was wrong when ``client`` tried a connector in a case; empty when right.

        One run of the client is for all that it has to try.
        """
        if client not in self._reports:
            self.workshop.needs(needed(client))
            tries = {
                f"{self.gateway(connector).address}/{case}": (connector, case)
                for connector, one, case in TRIES
                if one == client and self.workshop.has(needed(connector))
            }
            ran = subprocess.run(
                client_command(client, list(tries)),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                timeout=CLIENT_TIMEOUT,
            )
            lines = [json.loads(line) for line in ran.stdout.splitlines()]
            self._reports[client] = {tries[line["try"]]: line["problem"] for line in lines}
            assert ran.returncode == 0, f"{client} ended with {ran.returncode}:\n{ran.stderr}"
        return self._reports[client]


def new_gateway() -> Gateway:
    # A connector that does not beat is not there for long.
    return Gateway(api_keys=KEY, max_message_bytes=16 << 20, heartbeat_timeout=5.0)


@pytest.fixture(scope="session")
def workshop() -> Workshop:
    return Workshop()


# No longer than its tests: some of others give every gateway of the process another clock.
@pytest.fixture(scope="package")
def interop(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interop]:
    with ExitStack() as opened:
        yield Interop(workshop, tmp_path_factory.mktemp("interop"), opened)
