from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterable

import pytest

from revconn import is_fatal
from revconn.exceptions import HandshakeError
from revconn.logger import Mask
from revconn.serving.handlers import Handlers
from revconn.settings.options import TLS
from revconn.transport.base import Stream
from tests.support.calls import open_calls
from tests.support.quiet_stream import new_session
from tests.support.threads import TIMEOUT

PEM = b"-----BEGIN CERTIFICATE-----\n"


class StreamWithCertificate(Stream):
    """A stream that reads its certificate when it is opened, as every transport does."""

    def __init__(self, tls: TLS) -> None:
        self._tls = tls

    def open(self, mask: Mask) -> None:
        self._tls.read("ca")
        raise AssertionError("there was nothing to read")

    def receive(self) -> list[bytes]:
        raise AssertionError("the stream is not open")

    def metadata(self) -> Iterable[tuple[str, str | bytes]]:
        raise AssertionError("the stream is not open")

    def blame(self) -> None:
        pass

    def close(self) -> None:
        pass

    def join(self, timeout: float) -> None:
        pass


def test_a_certificate_that_cannot_be_read_just_now_is_worth_another_attempt(
    tmp_path: pathlib.Path,
) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(PEM)
    tls = TLS(ca=file)
    file.write_bytes(b"")  # it is being replaced

    with open_calls(Handlers()) as calls:
        session, _ = new_session(StreamWithCertificate(tls), calls)
        session.start("key", ("echo.Echo",))
        session.join(TIMEOUT)
    error = session.error
    assert isinstance(error, HandshakeError)
    assert str(error).startswith("gateway:1: TLS(ca=): holds no PEM")
    assert not is_fatal(error)


def test_without_a_thread_to_be_had_nothing_is_kept_for_a_stream_that_never_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    stream = StreamWithCertificate(TLS())
    with open_calls(Handlers()) as calls:
        session, _ = new_session(stream, calls)
        replies = session._replies
        assert replies.opening == [session._line]
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            session.start("key", ("echo.Echo",))
        assert isinstance(session.error, HandshakeError)
        assert replies.opening == []
