"""An HTTP/2 client on a real socket that says, frame by frame, exactly what a test tells it to."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType

from hyperframe.frame import DataFrame, Frame, HeadersFrame, RstStreamFrame, SettingsFrame

from tests.support.scripted_http2 import Http2Peer, message

__all__ = ["Answer", "Http2Caller"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_TIMEOUT = 60.0


@dataclass
class Answer:
    """What came on a stream: blocks of headers, DATA, and the code if it was reset."""

    blocks: list[dict[str, str]] = field(default_factory=list)
    data: bytes = b""
    is_over: bool = False
    reset: int | None = None

    @property
    def status(self) -> str | None:
        """``grpc-status``, where gRPC has it: in the last block."""
        return self.blocks[-1].get("grpc-status")


class Http2Caller(Http2Peer):
    """A connection to a gateway. It sends its preface and SETTINGS, and then what it is told.

    The gateway's SETTINGS are not acknowledged unless a test says so.
    """

    def __init__(
        self,
        address: str,
        settings: dict[int, int] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(_TIMEOUT)
            sock.connect(address[len("unix:") :])
        else:
            host, _, port = address.rpartition(":")
            sock = socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT)
            if tls is not None:
                sock = tls.wrap_socket(sock, server_hostname=host)
        super().__init__(sock)
        self.answers: dict[int, Answer] = {}
        self.say(_PREFACE, SettingsFrame(0, settings=settings or {}))

    def __enter__(self) -> Http2Caller:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def hears_frame(self) -> Frame:
        """The next frame; what it says of a stream is in :attr:`answers` then."""
        frame = super().hears_frame()
        if isinstance(frame, (DataFrame, HeadersFrame, RstStreamFrame)):
            self._note(frame, self.answers.setdefault(frame.stream_id, Answer()))
        return frame

    def _note(self, frame: Frame, answer: Answer) -> None:
        if isinstance(frame, RstStreamFrame):
            answer.reset = frame.error_code
            answer.is_over = True
            return
        if isinstance(frame, DataFrame):
            answer.data += frame.data
        else:
            answer.blocks.append(dict(self.headers))
        answer.is_over |= "END_STREAM" in frame.flags

    def hears_answer(self, stream_id: int = 1) -> Answer:
        """All that comes on a stream, once it is over."""
        while not self.answers.setdefault(stream_id, Answer()).is_over:
            self.hears_frame()
        return self.answers[stream_id]

    def request_block(self, path: str, more: Iterable[tuple[str, str]] = ()) -> bytes:
        """The headers of a gRPC call, encoded; ``more`` replaces those of the same name."""
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "gateway",
            "content-type": "application/grpc",
            "te": "trailers",
            **dict(more),
        }
        return self._encoder.encode(list(headers.items()))

    def call(
        self,
        path: str,
        payload: bytes = b"",
        *more: tuple[str, str],
        stream_id: int = 1,
        compressed: bool = False,
    ) -> None:
        """A unary call in one HEADERS and one DATA frame."""
        block = self.request_block(path, more)
        body = message(payload, compressed=compressed)
        self.say(
            HeadersFrame(stream_id, block, flags=["END_HEADERS"]),
            DataFrame(stream_id, body, flags=["END_STREAM"]),
        )
