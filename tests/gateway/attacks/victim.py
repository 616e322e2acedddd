"""A caller who means no harm: it calls one after another, and measures."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import hpack

from tests.gateway.attacks.wire import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    RST_STREAM,
    Client,
    message,
    request,
    request_block,
)

__all__ = ["Calls", "Victim"]

_TIMEOUT = 20.0  # seconds, beyond which a call has failed; any test has failed long before
_PAUSE = 0.001  # seconds between calls: the victim is no load test
_FRESH = 50  # calls, one of which has a connection of its own
_FEWEST = 100  # calls without which there is no 99th percentile


class CallFailed(Exception):
    """A call was not answered with OK."""


class NotTaken(Exception):
    """The connection was about to end as the call was made, and nothing has become of it."""


@dataclass
class Calls:
    """What became of calls: seconds that each took, and why the others failed."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def p99(self) -> float:
        """Seconds that one call in a hundred took or exceeded."""
        assert self.seconds, self.failures
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)]

    def __str__(self) -> str:
        p50 = sorted(self.seconds)[len(self.seconds) // 2] if self.seconds else float("nan")
        most = max(self.seconds, default=float("nan"))
        figures = f"p50 {p50 * 1e3:.1f} ms, p99 {self.p99 * 1e3:.1f} ms, most {most * 1e3:.1f} ms"
        return f"{len(self.seconds)} calls, {len(self.failures)} failed; {figures}"


class Victim:
    """Calls a method of an echo service, and checks what it gets."""

    def __init__(
        self, address: str, *, tls: ssl.SSLContext | None = None, path: str = "/echo.Echo/Say"
    ) -> None:
        self._address = address
        self._tls = tls
        self._path = path
        self._line: _Line | None = None

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def call_for(self, seconds: float, *, fresh: bool = True, fewest: int = _FEWEST) -> Calls:
        """Call for so long, and not fewer times than that unless it takes forever.

        ``fresh``: now and then on a connection of its own, as a caller does who comes just then.
        """
        calls = Calls()
        end = time.monotonic() + seconds
        for number in self._until(end, calls, fewest):
            is_fresh = fresh and number % _FRESH == _FRESH - 1
            began = time.monotonic()
            try:
                self._call(str(number).encode(), is_fresh=is_fresh)
            except (OSError, CallFailed) as error:
                calls.failures.append(f"{type(error).__name__}: {error}")
                self.close()
            calls.seconds.append(time.monotonic() - began)
            time.sleep(_PAUSE)
        return calls

    def _until(self, end: float, calls: Calls, fewest: int) -> Iterator[int]:
        number = 0
        while time.monotonic() < end or (
            number < fewest and not calls.failures and time.monotonic() < end + _TIMEOUT
        ):
            yield number
            number += 1

    def _call(self, payload: bytes, *, is_fresh: bool) -> None:
        if is_fresh:
            with self._connect() as line:
                self._check(line, payload)
            return
        if self._line is None or self._line.goaway is not None:
            self.close()
            self._line = self._connect()
        try:
            self._check(self._line, payload)
        except NotTaken:
            self.close()
            self._call(payload, is_fresh=True)

    def _check(self, line: _Line, payload: bytes) -> None:
        answer = line.call(self._path, payload)
        if not answer.startswith(b"Echo: " + payload):
            raise CallFailed(f"answered {answer[:100]!r}")

    def _connect(self) -> _Line:
        return _Line(self._address, lambda: True, tls=self._tls)

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


class _Line(Client):
    """A victim's connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._decoder = hpack.Decoder()
        self._begin(0)
        super().__init__(*arguments, **options)

    def _begin(self, stream: int) -> None:
        self._stream = stream
        self._ended = ""
        self._trailers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._is_taken = True

    def call(self, path: str, payload: bytes) -> bytes:
        """The answer's payload.

        Raises :class:`CallFailed`, :class:`NotTaken` or :class:`OSError`.
        """
        self._begin(self.new_stream())
        self.send(request(self._stream, request_block(path), message(payload)))
        end = time.monotonic() + _TIMEOUT
        while not self._ended and not self.is_over and time.monotonic() < end:
            self.wait()
        if not self._is_taken:
            raise NotTaken
        if not self._ended:
            raise CallFailed("its connection was ended" if self.is_over else "not answered")
        if self._trailers.get("grpc-status") != "0":
            raise CallFailed(f"{self._ended}: {self._trailers}")
        return b"".join(self._body)[5:]

    def heard(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        super().heard(kind, flags, stream, payload)
        if kind == HEADERS:
            assert flags & END_HEADERS
            self._trailers.update(self._decoder.decode(payload))
        elif kind == DATA:
            self._body.append(payload)
        if kind == RST_STREAM and stream == self._stream:
            self._ended = self._ended or f"reset with {payload!r}"
        elif kind == GOAWAY and (self.goaway or self.last_taken < self._stream):
            self._is_taken = bool(self.goaway)  # an error is no way to leave
            self._ended = f"GOAWAY {payload!r}"
        elif kind in (HEADERS, DATA) and flags & END_STREAM:
            self._ended = "trailers"
