"""What users want called when a request is over."""

from __future__ import annotations

from collections.abc import Iterable

from revconn.guard import shielded
from revconn.messages import Request
from revconn.runtime.threads import own_thread

__all__ = ["run_callbacks"]


def run_callbacks(requests: Iterable[Request]) -> None:
    """Call the callbacks of requests that are over: each once, whoever else does the same."""
    with own_thread():  # they may call stop()
        for request in requests:
            for callback in request._take_callbacks():
                shielded(f"{request!r}: a callback", callback)
