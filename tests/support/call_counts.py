"""The function calls that one request alone costs a connector, counted on a wire in memory.

Time says little on a busy machine; what is called, and how often, is the same in every run. A
whole connector runs, with its own threads, on frames from memory in the place of a socket's.

    python -m tests.support.call_counts                  how many calls each kind of request takes
    python -m tests.support.call_counts inline           these calls in their order, and who calls
    python -m tests.support.call_counts inline --sorted  how often each function is called
"""

from __future__ import annotations

import argparse
import collections
import itertools
import queue
import statistics
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import isfunction
from types import CodeType, FrameType
from typing import Any, Callable

from revconn import Connector, Request, supervisor
from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus, ForwardRequest
from revconn.transport import http2

__all__ = ["KINDS", "Call", "Kind", "calls_of_one_request", "echo", "numbers"]

_TIMEOUT = 60.0
_WARM_UP, _REQUESTS = 10, 21
# Whoever was woken has to be seen awake, on a busy machine too.
_LOOKS, _BETWEEN_LOOKS = 3, 0.001

_PATH = "/echo.Echo/Say"
_HEADERS = {"content-type": "application/grpc", "te": "trailers", "user-agent": "grpc-go/1.80.0"}
_PAYLOAD = b"\x0a" + b"x" * 63


@dataclass(frozen=True)
class Kind:
    """How a request is served: by an inline handler or the pool, by a gateway that pings or not.

    One that pings does so for its bandwidth estimate, as grpc-go's defaults have it: WINDOW_UPDATE
    and PING follow every lone answer, and the next request comes in the same segment.
    """

    inline: bool
    pings: bool = False


KINDS = {
    "inline": Kind(inline=True),
    "pool": Kind(inline=False),
    "inline-pinged": Kind(inline=True, pings=True),
    "pool-pinged": Kind(inline=False, pings=True),
}


@dataclass(frozen=True)
class Call:
    """One call of a function in Python (its code) or in C (itself), and the thread that made it."""

    thread: str
    function: Any

    @property
    def is_python(self) -> bool:
        return isinstance(self.function, CodeType)

    @property
    def name(self) -> str:
        """Such as "engine.py:143 put" and "deque.append"."""
        if isinstance(self.function, CodeType):
            file = self.function.co_filename.rpartition("/")[2]
            return f"{file}:{self.function.co_firstlineno} {self.function.co_name}"
        return str(getattr(self.function, "__qualname__", self.function))


def echo(request: Request) -> bytes:
    """The least that a handler can do."""
    return request.payload


def numbers(calls: Sequence[Call]) -> tuple[int, int]:
    """How many of them are of functions in Python, and how many in C."""
    python = sum(call.is_python for call in calls)
    return python, len(calls) - python


def calls_of_one_request(kind: Kind, handler: Callable[[Request], bytes] = echo) -> list[Call]:
    """Those of a lone request in the middle of many, in all of the connector's threads.

    Of a median one: now and then a timer is due, or a worker makes way for its successor.
    """
    recorder = _Recorder()
    wire = _MemoryWire()
    connector = Connector(
        "127.0.0.1:9",  # nobody dials it
        api_key="key",
        transport="http2",
        keepalive_interval=None,
        probe_interval=None,
    )
    connector.method(_PATH, inline=kind.inline)(handler)
    _put_on(wire, connector)
    with recorder.recording():
        connector.start(block=False)
        try:
            wire.feed(_settings(), _opened(), _connected())
            connector.wait_ready(_TIMEOUT)
            measured = [
                _measure(kind, wire, recorder, number) for number in range(_WARM_UP + _REQUESTS)
            ][_WARM_UP:]
        finally:
            connector.abort()
    middle = statistics.median_low(len(calls) for calls in measured)
    return next(calls for calls in measured if len(calls) == middle)


def _measure(kind: Kind, wire: _MemoryWire, recorder: _Recorder, number: int) -> list[Call]:
    request_id = f"{number:08x}-0000-4000-8000-000000000000"
    recorder.settle()
    recorder.calls.clear()
    if kind.pings:
        wire.feed(_window_update(), _ping(), _request(request_id))
        wire.await_written(request_id.encode(), _PING_ANSWER)
    else:
        wire.feed(_request(request_id))
        wire.await_written(request_id.encode())
    recorder.settle()
    return recorder.calls.copy()


# The wire


class _MemoryWire:
    """In the place of transport/http2's Wire: reads what was fed, keeps what is written."""

    has_backlog = False
    can_write_now = True

    def __init__(self) -> None:
        self._fed: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._awaited: bytes | None = None
        self._written: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def feed(self, *frames: bytes) -> None:
        """Frames that arrive together."""
        self._fed.put(b"".join(frames))

    def await_written(self, *pieces: bytes) -> None:
        """Wait until the connector has written all of these, each in one write."""
        missing = set(pieces)
        while missing:
            written = self._written.get(timeout=_TIMEOUT)
            missing = {piece for piece in missing if piece not in written}

    # What a connector calls: each stands for one system call

    def await_data(self, _seconds: float) -> bool:
        """The next request comes in a moment, when the answer has been written."""
        self._awaited = self._fed.get()
        return True

    def read(self) -> bytes:
        data, self._awaited = self._awaited, None
        return self._fed.get() if data is None else data

    def write(self, output: Sequence[bytes]) -> None:
        self._written.put(b"".join(output))

    def write_now(self, output: Sequence[bytes]) -> None:
        self._written.put(output[0] if len(output) == 1 else b"".join(output))

    def close(self) -> None:
        self._fed.put(b"")

    def release(self) -> None:
        pass


class _Dialer:
    addresses = 1

    def __init__(self, wire: _MemoryWire) -> None:
        self._wire = wire

    def dial(self, _cancelled: Callable[[], bool]) -> tuple[_MemoryWire, None, tuple[int, str]]:
        return self._wire, None, (0, "")

    def failed(self, *_addresses: object) -> None:
        pass


def _put_on(wire: _MemoryWire, connector: Connector) -> None:
    """Have the connector reach this wire whatever it dials."""
    make = supervisor.transport_for

    def transport_for(target: Any, options: Any) -> Any:
        made: Any = make(target, options)
        if options is connector._options:
            made.dialer = _Dialer(wire)
        return made

    supervisor.transport_for = transport_for
    made_of_sockets = http2.Wire
    http2.Wire = lambda dialled: dialled if dialled is wire else made_of_sockets(dialled)


# What is called


# What the wire calls in its turn is not the connector's.
_WIRE = {member.__code__ for member in vars(_MemoryWire).values() if isfunction(member)}
# What a thread is in that has nothing to do, and another one for a moment.
_WAITS = {"acquire", "get", "wait", "select", "poll"}
# Python 3.12 and later run a comprehension where it stands; until then it is a call.
_COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>"}


class _Thread:
    """One of the connector's threads, profiled; the thread itself sets what is here."""

    def __init__(self, record: Callable[[Call], None]) -> None:
        self._thread = threading.current_thread()
        self._record = record
        self._in_wire = False
        self._within = ""  # the name of the C function that it is in

    @property
    def rests(self) -> bool:
        """Whether it waits for something, if only for a moment, or has ended."""
        return self._within in _WAITS or not self._thread.is_alive()

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        """What sys.setprofile asks for."""
        self._within = argument.__name__ if event == "c_call" else ""
        if not self._in_wire:
            if event == "c_call":
                self._record(Call(self._thread.name, argument))
            elif event == "call" and frame.f_code.co_name not in _COMPREHENSIONS:
                self._record(Call(self._thread.name, frame.f_code))
        if frame.f_code in _WIRE and event in ("call", "return"):
            self._in_wire = event == "call"


class _Recorder:
    """Every call of the connector's threads, in their order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._threads: list[_Thread] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what the threads that are started meanwhile call."""
        threading.setprofile(self._begin)
        try:
            yield
        finally:
            threading.setprofile(None)

    def settle(self) -> None:
        """Wait until no thread calls anything, because all of them wait."""
        deadline = time.monotonic() + _TIMEOUT
        seen, looks = -1, 0
        while looks < _LOOKS:
            assert time.monotonic() < deadline, "the connector does not come to rest"
            rests = seen == len(self.calls) and all(thread.rests for thread in self._threads)
            looks = looks + 1 if rests else 0
            seen = len(self.calls)
            time.sleep(_BETWEEN_LOOKS)

    def _begin(self, *_event: object) -> None:
        """The first event of a thread."""
        if threading.current_thread().name.startswith("revconn-"):
            thread = _Thread(self.calls.append)
            self._threads.append(thread)
            sys.setprofile(thread.profile)
        else:
            sys.setprofile(None)


# What a gateway says, frame by frame

_DATA, _HEADERS_FRAME, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_ACK, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4
_LARGEST_WINDOW, _FIRST_WINDOW = (1 << 31) - 1, (1 << 16) - 1
_PING_DATA = b"estimate"


def _frame(kind: int, flags: int, stream_id: int, body: bytes) -> bytes:
    return struct.pack(">BHBBI", 0, len(body), kind, flags, stream_id) + body


def _settings() -> bytes:
    window = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
    more = struct.pack(">I", _LARGEST_WINDOW - _FIRST_WINDOW - (1 << 20))
    return b"".join(
        [
            _frame(_SETTINGS, 0, 0, window),
            _frame(_SETTINGS, _ACK, 0, b""),
            _frame(_WINDOW_UPDATE, 0, 0, more),
        ]
    )


def _opened() -> bytes:
    # HPACK: number 8 of its static table is ":status: 200", and 31 is "content-type".
    return _frame(_HEADERS_FRAME, _END_HEADERS, 1, b"\x88\x5f\x10application/grpc")


def _connected() -> bytes:
    status = ConnectionStatus(status=ConnectionStatus.CONNECTED, connection_id="id")
    return _message(ConnectionMessage(status=status))


def _request(request_id: str) -> bytes:
    request = ForwardRequest(
        request_id=request_id,
        method_path=_PATH,
        headers=_HEADERS,
        payload=_PAYLOAD,
        timeout_seconds=30,
    )
    return _message(ConnectionMessage(request=request))


def _message(message: ConnectionMessage) -> bytes:
    body = message.SerializeToString()
    return _frame(_DATA, 0, 1, struct.pack(">BI", 0, len(body)) + body)


def _ping() -> bytes:
    return _frame(_PING, 0, 0, _PING_DATA)


def _window_update() -> bytes:
    return _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", 256))


_PING_ANSWER = _frame(_PING, _ACK, 0, _PING_DATA)


# As a program


def _print_totals() -> None:
    for name, kind in KINDS.items():
        python, c = numbers(calls_of_one_request(kind))
        print(f"{name:14} {python:4} in Python, {c:4} in C")


def _print_in_order(calls: Sequence[Call]) -> None:
    for thread, group in itertools.groupby(calls, key=lambda call: call.thread):
        print(f"{thread}:")
        for call in group:
            print(f"  {'' if call.is_python else '    '}{call.name}")


def _print_sorted(calls: Sequence[Call]) -> None:
    for is_python in (True, False):
        names = collections.Counter(call.name for call in calls if call.is_python == is_python)
        print("Python:" if is_python else "C:")
        for name, count in names.most_common():
            print(f"{count:4} {name}")


def _main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", nargs="?", choices=KINDS)
    parser.add_argument("--sorted", action="store_true")
    options = parser.parse_args()
    if options.kind is None:
        _print_totals()
        return
    calls = calls_of_one_request(KINDS[options.kind])
    (_print_sorted if options.sorted else _print_in_order)(calls)


if __name__ == "__main__":
    _main()
