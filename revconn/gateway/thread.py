"""One run of a gateway: its thread, its event loop, and the way in from other threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Coroutine
from typing import Any, Callable

from revconn.gateway.loop import new_loop
from revconn.gateway.report import ConnectionInfo
from revconn.gateway.serving import Serving
from revconn.gateway.shared import Settings, Shared
from revconn.logger import get_logger

__all__ = ["GatewayThread"]

_thread_logger = get_logger(__name__)

_KEPT_BYTES = 16 << 20
_START_TIMEOUT = 30.0  # seconds that the gateway's thread has to listen
_GLANCE = 1.0  # seconds
_UNWIND_TIMEOUT = 2.0  # seconds
_STOP_MARGIN = 10.0  # seconds that ending takes at most, beyond the grace given to calls


class GatewayThread:
    """One run of a gateway: its thread, its event loop, and the way in from other threads.

    :ivar shared: the run's state, once the thread has built it; it stays readable after the end.
    :ivar failure: what the gateway could not go on from, if that ended it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = threading.Thread(target=self._run, name="revconn-gateway", daemon=True)
        self._started: concurrent.futures.Future[str] = concurrent.futures.Future()
        # Set by the gateway's thread before it reports that it has started. Until then every other
        # thread finds None, and has nothing to ask of a gateway that serves nobody yet.
        self.shared: Shared | None = None
        self._serving: Serving | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_requested: asyncio.Future[float] | None = None
        self.failure: BaseException | None = None

    def start(self) -> str:
        """Serve; the address. Raises what made that fail."""
        try:
            self._thread.start()
        except BaseException as error:  # no thread could be had: none is to be waited for
            self._started.set_exception(error)
            raise
        return self._started.result(_START_TIMEOUT)

    def stop(self, grace: float) -> bool:
        """Stop serving; whether the thread has ended."""
        if threading.current_thread() is self._thread:
            self._request_stop(grace)
            return False
        concurrent.futures.wait([self._started], _START_TIMEOUT)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: stopped already
                self._loop.call_soon_threadsafe(self._request_stop, grace)
        self._join(grace + _STOP_MARGIN)
        if self._thread.is_alive():
            _thread_logger.error(
                "the gateway's thread has not ended %g seconds after its grace", _STOP_MARGIN
            )
        return not self._thread.is_alive()

    def _join(self, timeout: float) -> None:
        """Wait for the thread's end, glancing up now and then.

        The system may hand a signal to another thread than the main one, whose wait it does not
        interrupt then: its handler, which may be to leave at once, runs at the next glance.
        """
        while timeout > 0 and self._thread.is_alive():
            self._thread.join(min(_GLANCE, timeout))
            timeout -= _GLANCE

    def wait(self, timeout: float | None) -> bool:
        """Whether the thread has ended, at the latest after ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        # Another thread may just be in start(): a thread that was not started cannot be joined.
        if not concurrent.futures.wait([self._started], timeout).done:
            return False
        if self._thread.is_alive():
            self._thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not self._thread.is_alive()

    def connections(self) -> tuple[ConnectionInfo, ...]:
        """A picture of every connection. Safe from any thread."""
        shared = self.shared
        return () if shared is None else shared.registry.describe(time.monotonic())

    def end_withdrawn(self) -> None:
        """End the connections whose key is not accepted any more."""
        self.call_soon(Serving.end_withdrawn)

    def call_soon(self, do: Callable[[Serving], None]) -> None:
        """Have the gateway's thread do something, unless it has stopped serving."""
        serving, loop = self._serving, self._loop
        if serving is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: all are ended
                loop.call_soon_threadsafe(do, serving)

    def _request_stop(self, grace: float) -> None:
        if self._stop_requested is not None and not self._stop_requested.done():
            self._stop_requested.set_result(grace)
        elif self._serving is not None:
            self._serving.hurry(grace)

    def _run(self) -> None:
        try:
            _run_to_the_end(self._serve)
        except BaseException as error:
            # Its traceback would keep all that served for a while.
            if self._started.done():
                _thread_logger.exception("the gateway failed")
                self.failure = error.with_traceback(None)
            else:
                self._started.set_exception(error.with_traceback(None))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_report_loop_error)
        self._stop_requested = self._loop.create_future()
        serving = Serving(self._settings)
        self.shared = serving.shared
        address = await serving.start()
        self._serving = serving
        self._started.set_result(address)
        expiry = asyncio.ensure_future(serving.expire())
        grace = 0.0
        try:
            grace = await self._stop_requested
        finally:
            expiry.cancel()
            await serving.stop(grace)
            self._serving = None


def _run_to_the_end(serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run on a loop of its own, as :func:`asyncio.run` does, but for what ends the loop untimely.

    That cancels every task at once; calls are answered and goodbyes said before.
    """
    _keep_memory()
    loop = new_loop()
    asyncio.set_event_loop(loop)
    try:
        serving = loop.create_task(serve())
        try:
            loop.run_until_complete(serving)
        except BaseException:  # SystemExit or the like, raised by whatever ran on the loop
            if not serving.done():
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    loop.run_until_complete(serving)
            raise
    finally:
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=_UNWIND_TIMEOUT))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def _keep_memory() -> None:
    """Have the C library keep memory that is used again and again.

    glibc gives blocks above a size back to the system, which has to clear them each time they are
    asked for again: a third of what a call with 64 KiB costs. The largest block that was ever
    given back sets that size.
    """
    bytearray(_KEPT_BYTES)


def _report_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Not by asyncio's own logger: what that runs into could end the loop.
    error, message = context.get("exception"), str(context.get("message"))
    _thread_logger.error("on the event loop: %s", message, exc_info=error)
