"""An API key in a file that is changed while its connection serves."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from revconn import Connector, State
from revconn.gateway import Gateway
from revconn.settings.environment import KeyFile
from tests.support.connectors import QUICK, TRANSPORTS
from tests.support.waiting import eventually

SOON = 0.05


class CountingKeyFile(KeyFile):
    """Counts how often it was asked."""

    asked = 0

    def __call__(self) -> str:
        self.asked += 1
        return super().__call__()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway(api_keys=["old", "new"]) as gateway:
        yield gateway


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("old\n")
    return path


@pytest.fixture
def key(key_file: Path) -> CountingKeyFile:
    return CountingKeyFile("KEY_FILE", str(key_file))


@pytest.fixture(params=list(TRANSPORTS))
def connector(
    request: pytest.FixtureRequest, gateway: Gateway, key: CountingKeyFile
) -> Iterator[Connector]:
    options: dict[str, Any] = {**QUICK, **TRANSPORTS[request.param]}
    options.update(api_key=key, heartbeat_interval=SOON)
    connector = Connector(gateway.address, **options)
    connector.add_method("/echo.Echo/Say", lambda request: request.payload)
    connector.start(block=False)
    connector.wait_ready(30)
    yield connector
    connector.abort()


def is_replaced(connector: Connector, first: str | None) -> Callable[[], bool]:
    return lambda: connector.connection_id not in (None, first)


def test_the_connection_is_replaced_by_one_with_the_new_key(
    connector, gateway, key_file, caplog
) -> None:
    caplog.set_level(logging.INFO, "revconn")
    first = connector.connection_id
    states: list[State] = []
    connector.on_state_change(states.append)
    key_file.write_text("new\n")
    eventually(is_replaced(connector, first))
    eventually(lambda: len(gateway.connections()) == 1)
    gateway.replace_keys(["new"])
    assert connector.state is State.READY
    assert states == [], "it was READY throughout"
    assert "there is another API key: replacing the connection" in caplog.text
    assert "lost the connection" not in caplog.text
    assert "new" not in caplog.text.replace("the new", "").split()


def test_without_a_readable_key_the_connection_serves_on(connector, key, key_file) -> None:
    first = connector.connection_id
    key_file.unlink()
    asked = key.asked
    eventually(lambda: key.asked > asked + 2)
    assert (connector.state, connector.connection_id) == (State.READY, first)


def test_after_a_key_that_is_refused_the_next_one_is_tried(connector, key_file, caplog) -> None:
    first = connector.connection_id
    key_file.write_text("a typing error")
    eventually(lambda: "gave up replacing" in caplog.text)
    assert (connector.state, connector.connection_id) == (State.READY, first)
    key_file.write_text("new")
    eventually(is_replaced(connector, first))
