"""The event loop: uvloop's if it is installed, else asyncio's with a shorter way to a socket.

asyncio makes a handle of each socket that is found ready, puts it into a queue, and runs it in a
context of its own. With thousands of connectors that send a heartbeat now and then that is a
sixth of all that they cost.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import selectors
import sys
from collections.abc import Mapping
from typing import Any, Callable

__all__ = ["new_loop"]

# So many sockets are looked at before all that they led to is done: a few of hundreds that have
# something to say at once need not wait for the last.
_MOST_AT_ONCE = 64

_Callback = Callable[..., object]
_Watches = dict[int, tuple[_Callback, tuple[Any, ...]]]  # by descriptors


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop that can watch sockets."""
    try:
        import uvloop  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        # On Windows the usual one is of a kind that cannot watch sockets.
        if sys.platform == "linux":
            return DirectLoop(_DirectSelector())
        return asyncio.SelectorEventLoop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


if sys.platform == "linux":
    _IN, _OUT = select.EPOLLIN, select.EPOLLOUT

    class _DirectSelector(selectors.BaseSelector):
        """Calls who waits for a socket as it finds that ready; tells asyncio of its own alone."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self._asyncios = selectors.EpollSelector()  # few: what wakes it from other threads
            self._own = self._asyncios.fileno()
            self._epoll.register(self._own, _IN)
            self.readers: _Watches = {}
            self.writers: _Watches = {}

        def watch(
            self,
            table: _Watches,
            fd: int,
            callback: _Callback,
            args: tuple[Any, ...],
        ) -> None:
            before = self._mask(fd)
            # First: what cannot be watched raises OSError, and is not in the table.
            mask = before | (_IN if table is self.readers else _OUT)
            if not before:
                self._epoll.register(fd, mask)
            elif mask != before:
                self._epoll.modify(fd, mask)
            table[fd] = callback, args

        def ignore(self, table: _Watches, fd: int) -> bool:
            if table.pop(fd, None) is None:
                return False
            mask = self._mask(fd)
            with contextlib.suppress(OSError):  # it was closed before, and so is watched no more
                if mask:
                    self._epoll.modify(fd, mask)
                else:
                    self._epoll.unregister(fd)
            return True

        def _mask(self, fd: int) -> int:
            return (_IN if fd in self.readers else 0) | (_OUT if fd in self.writers else 0)

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            found: list[tuple[selectors.SelectorKey, int]] = []
            readers, writers = self.readers, self.writers
            for fd, events in self._epoll.poll(timeout, _MOST_AT_ONCE):
                if fd == self._own:
                    found = self._asyncios.select(0)
                    continue
                # What was called before may have ended it, or the one or the other watch.
                if events & ~_OUT and fd in readers:
                    self._call(*readers[fd])
                if events & ~_IN and fd in writers:
                    self._call(*writers[fd])
            return found

        def _call(self, callback: _Callback, args: tuple[Any, ...]) -> None:
            # As asyncio has it: only who wants the program to end ends the loop.
            try:
                callback(*args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001
                message = f"Exception in callback {callback!r}"
                context = {"message": message, "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

        # For asyncio

        def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
            return self._asyncios.register(fileobj, events, data)

        def unregister(self, fileobj: Any) -> selectors.SelectorKey:
            return self._asyncios.unregister(fileobj)

        def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
            return self._asyncios.modify(fileobj, events, data)

        def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
            return self._asyncios.get_map()

        def close(self) -> None:
            self.readers.clear()  # nobody has to say any more that it waits no longer
            self.writers.clear()
            self._asyncios.close()
            self._epoll.close()

    class DirectLoop(asyncio.SelectorEventLoop):
        """asyncio's, but that who waits for a socket is called as soon as that is found ready.

        That is before all that was put off by ``call_soon`` until then, and outside of any context.
        """

        def __init__(self, selector: _DirectSelector) -> None:
            super().__init__(selector)
            self._direct = selector

        def add_reader(  # type: ignore[override]
            self, fd: int, callback: _Callback, *args: Any
        ) -> None:
            self._direct.watch(self._direct.readers, fd, callback, args)

        def remove_reader(self, fd: int) -> bool:  # type: ignore[override]
            is_ours = self._direct.ignore(self._direct.readers, fd)
            return is_ours or super().remove_reader(fd)  # sock_recv() and the like have their own

        def add_writer(  # type: ignore[override]
            self, fd: int, callback: _Callback, *args: Any
        ) -> None:
            self._direct.watch(self._direct.writers, fd, callback, args)

        def remove_writer(self, fd: int) -> bool:  # type: ignore[override]
            return self._direct.ignore(self._direct.writers, fd) or super().remove_writer(fd)
