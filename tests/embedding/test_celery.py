"""Celery: the processes of a prefork worker run tasks and serve."""

from __future__ import annotations

import sys
from typing import Callable

from tests.embedding.conftest import EmbeddingGateway
from tests.support.apps import App
from tests.support.optional import needs

ASK = "from tasks import add; print('sum', add.delay(40, 2).get(timeout=15))"


def test_each_process_of_a_prefork_worker_serves_and_runs_tasks(
    start_app: Callable[..., App], gateway: EmbeddingGateway
) -> None:
    needs("celery")
    command = ["celery", "--app=tasks", "worker", "--pool=prefork", "--concurrency=2"]
    worker = start_app([*command, "--loglevel=INFO", "--without-gossip", "--without-mingle"])
    gateway.wait_connections(2, worker)
    serving = {gateway.call("/app.App/Who") for _ in range(6)}
    assert len(serving) == 2
    assert str(worker.pid) not in serving

    asking = start_app([sys.executable, "-c", ASK])
    assert asking.hears("sum") == ["sum 42"]
    assert asking.wait() == 0
    worker.hears("succeeded")
    assert {gateway.call("/app.App/Who") for _ in range(6)} == serving

    worker.stop()
    assert "Traceback" not in worker.output
    assert gateway.connections == 0
