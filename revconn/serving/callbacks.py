"""What users want called when a request is over."""

from __future__ import annotations

from collections.abc import Iterable

from revconn.messages import Request
from revconn.runtime.threads import own_thread, shielded
from revconn.serving.executor import DaemonExecutor

__all__ = ["Callbacks", "run_callbacks"]


class Callbacks:
    """A thread for callbacks of requests whose handlers may be busy yet. Thread-safe.

    Where a handler has answered its thread calls them; one that hangs delays only other callbacks
    of this thread.
    """

    def __init__(self) -> None:
        self._caller = DaemonExecutor(1, "revconn-callbacks")

    def start(self) -> None:
        """Start the thread. Raises :class:`RuntimeError` when there is none to be had."""
        self._caller.start()

    def call(self, ended: Iterable[Request]) -> None:
        """These are over, and nobody else calls their callbacks. Does not wait."""
        told = [request for request in ended if request._callbacks]
        if not told:
            return
        try:
            self._caller.submit(run_callbacks, told)
        except RuntimeError:  # shut down, or no thread to be had
            run_callbacks(told)

    def close(self) -> None:
        """Call what is to be called yet, and let the thread end."""
        self._caller.shutdown(wait=False)


def run_callbacks(requests: Iterable[Request]) -> None:
    """Call the callbacks of requests that are over: each once, whoever else does the same."""
    with own_thread():  # they may call stop()
        for request in requests:
            for callback in request._take_callbacks():
                shielded(f"{request!r}: a callback", callback)
