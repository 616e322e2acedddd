"""Forks around connectors: forking.py TRANSPORT SCENARIO. Target and key are in the environment."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from typing import Callable

from revconn import Backoff, Connector

TRANSPORT, SCENARIO = sys.argv[1:]
TARGET, KEY = os.environ["REVCONN_TARGET"], os.environ["REVCONN_API_KEY"]
PATIENCE = 60

# Python 3.12 warns of forking with threads: the very thing that happens here.
warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)


def say(*words: object) -> None:
    # One write per line: several processes share the pipe.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def make_connector(name: str = "app.App", target: str = TARGET, **options: object) -> Connector:
    backoff = Backoff(initial=0.01, maximum=0.05)
    connector = Connector(target, api_key=KEY, transport=TRANSPORT, backoff=backoff, **options)
    connector.add_method(f"/{name}/Who", lambda request: str(os.getpid()).encode())
    return connector


def serving() -> Connector:
    connector = make_connector()
    connector.start(block=False)
    connector.wait_ready(PATIENCE)
    return connector


def fork(child: Callable[[], object]) -> int:
    """Run ``child`` in a child that cannot hang: SIGALRM ends it."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.alarm(PATIENCE)
        child()
        status = 0
    except BaseException as error:  # noqa: BLE001 - whatever it is, the child must not go on
        say("child failed:", repr(error))
    finally:
        os._exit(status)


def join(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return status


def use_every_method(connector: Connector) -> dict[str, str]:
    def enter() -> None:
        with connector:
            pass

    attempts: dict[str, Callable[[], object]] = {
        "start": connector.start,
        "start(block=False)": lambda: connector.start(block=False),
        "with": enter,
        "wait_ready": lambda: connector.wait_ready(5),
        "wait": lambda: connector.wait(5),
        "add_method": lambda: connector.add_method("/app.App/New", lambda request: b""),
        "add_service": lambda: connector.add_service("app.App", lambda request: b""),
        "stop": connector.stop,
        "abort": connector.abort,
        "state": lambda: connector.state.name,
        "connection_id": lambda: connector.connection_id,
        "links": lambda: [link.state.name for link in connector.links],
        "stats": connector.stats,
        "on_state_change": lambda: connector.on_state_change(say),
        "repr": lambda: "CLOSED" in repr(connector),
    }
    outcomes = {}
    for name, attempt in attempts.items():
        try:
            outcomes[name] = repr(attempt())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            outcomes[name] = f"{type(error).__name__}: {error}"
    return outcomes


def inert_after_os_fork() -> None:
    connector = serving()
    assert join(fork(lambda: say("outcomes", json.dumps(use_every_method(connector))))) == 0
    connector.wait()


def inert_after_multiprocessing() -> None:
    connector = serving()
    context = multiprocessing.get_context("fork")
    process = context.Process(
        target=lambda: say("outcomes", json.dumps(use_every_method(connector))), daemon=True
    )
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    connector.wait()


def fork_in_a_loop() -> None:
    connector = serving()
    say("begin")
    failed = 0
    for _ in range(8):
        answered = connector.stats()["answered"]
        deadline = time.monotonic() + PATIENCE
        while connector.stats()["answered"] == answered:  # requests flow
            assert time.monotonic() < deadline, "no request came"
            time.sleep(0.001)
        failed += join(fork(lambda: use_every_method(connector))) != 0
    say("forked, failed:", failed)
    connector.wait()


def created_before_started_after() -> None:
    connector = make_connector()
    for _ in range(2):
        fork(connector.start)
    join(-1)


def one_in_each() -> None:
    serving()
    for _ in range(2):
        fork(lambda: make_connector().start())
    join(-1)


def forked_while_locks_are_held() -> None:
    connector = make_connector()
    held = threading.Event()

    def hold() -> None:
        with connector._lock, connector._board._lock:
            held.set()
            time.sleep(PATIENCE)

    threading.Thread(target=hold, daemon=True).start()
    held.wait(PATIENCE)
    fork(connector.start)
    join(-1)


def a_child_that_stays() -> None:
    connector = make_connector()
    connector.start(block=False)
    connector.wait_ready(PATIENCE)
    fork(lambda: (say("child", os.getpid()), signal.pause()))
    connector.wait()


def a_child_made_while_dialling() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    make_connector(target=os.environ["DIAL"], tls=True).start(block=False)
    signal.sigwait({signal.SIGUSR1})
    fork(lambda: (say("child", os.getpid()), signal.pause()))
    signal.pause()


def a_handler_that_forks() -> None:
    connector = make_connector()
    context = multiprocessing.get_context("fork")

    @connector.method("/app.App/Terminated")
    def run_and_terminate(request: object) -> bytes:
        process = context.Process(target=lambda: (say("child waits"), time.sleep(PATIENCE)))
        process.start()
        time.sleep(0.2)  # SIGTERM may come at any time; most of all while it waits
        process.terminate()
        process.join(PATIENCE)
        return str(process.exitcode).encode()

    @connector.method("/app.App/Serving")
    def run_another(request: object) -> bytes:
        # Not by multiprocessing: a pool's thread cannot leave such a child with exit code 0.
        return str(join(fork(serve_and_stop))).encode()

    def serve_and_stop() -> None:
        own = make_connector("app.Child")
        own.start(block=False)
        own.wait_ready(PATIENCE)
        own.stop()
        own.wait(1)
        assert own.state.name == "CLOSED", own

    connector.start()
    say("start returned")


globals()[SCENARIO]()
