"""Threads in tests: started, watched while they wait, and always joined."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any, Callable

TIMEOUT = 60.0


def in_thread(function: Callable[..., Any], *args: Any) -> Future:
    """Run a function in a thread; its result or exception comes out of the future."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            future.set_exception(error)

    threading.Thread(target=run, name="revconn-test", daemon=True).start()
    return future


def signal_waits(condition: threading.Condition) -> threading.Semaphore:
    """A semaphore that is released each time a thread is about to wait for ``condition``.

    That thread still holds the condition's lock then: whoever acquires the semaphore and after
    it the lock knows that the thread is asleep.
    """
    asleep = threading.Semaphore(0)
    wait = condition.wait

    def wait_and_tell(timeout: float | None = None) -> bool:
        asleep.release()
        return wait(timeout)

    condition.wait = wait_and_tell  # type: ignore[method-assign]
    return asleep
