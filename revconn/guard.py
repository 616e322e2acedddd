"""Threads of the library's that cannot end unnoticed, whatever code they run into."""

from __future__ import annotations

import threading
from typing import Callable

from revconn import spares
from revconn.logger import get_logger, is_interrupt

__all__ = ["guarded_thread", "shielded"]

logger = get_logger(__name__)


def guarded_thread(
    name: str,
    body: Callable[[], object],
    on_failure: Callable[[BaseException], object] | None = None,
) -> threading.Thread:
    """A daemon thread, not started, of which somebody hears when ``body`` raises anything.

    The log does, and whoever depends on the thread: ``on_failure`` is called in it, last of all.
    """

    def run() -> None:
        try:
            body()
        except BaseException as error:
            logger.exception("the thread %s failed", name)
            if on_failure is not None:
                shielded("telling of it", on_failure, error)

    return spares.Thread(target=run, name=name, daemon=True)


def shielded(what: str, call: Callable[..., object], *arguments: object) -> bool:
    """Call somebody else's code; whatever it raises costs a line in the log.

    Whether it returned. Only Ctrl-C in the main thread gets out.
    """
    try:
        call(*arguments)
    except BaseException as error:
        if is_interrupt(error):
            raise
        logger.exception("%s failed", what)
        return False
    return True
