"""The rare frames, which h2 speaks, and how many of them are too many."""

from __future__ import annotations

from collections.abc import Sequence

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import hpack.hpack
import hpack.table

from revconn.core.errors import ProtocolError
from revconn.logger import get_logger

__all__ = ["ControlFrames", "Patience", "initial_window_change"]

_MAX_HEADER_BYTES = 64 << 10

_BURST = 10_000
_PER_SECOND = 1_000.0
_MOST = 100_000  # with what was earned: it may take a peer many reads to use that

_Codes = h2.settings.SettingCodes

# It logs in the middle of decoding, at DEBUG: what a filter raises there would end the connection.
for _module in (hpack.hpack, hpack.table):
    setattr(_module, "log", get_logger(_module.__name__))  # noqa: B010 - it is a logger by type


class ControlFrames:
    """Settings, headers, resets: the part of HTTP/2 that h2 speaks, and nothing else reaches.

    :param stream_window: bytes of DATA that the peer may send before it is given more.
    :param frame_bytes: the longest frame that it may send.
    """

    def __init__(self, stream_window: int, frame_bytes: int) -> None:
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding=None)
        )
        self._h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                _Codes.ENABLE_PUSH: 0,
                _Codes.INITIAL_WINDOW_SIZE: stream_window,
                _Codes.MAX_FRAME_SIZE: frame_bytes,
                _Codes.MAX_HEADER_LIST_SIZE: _MAX_HEADER_BYTES,
            },
        )
        # Peers send larger frames the moment they may; h2 counts only from their ack on.
        self._h2.max_inbound_frame_size = frame_bytes

    @property
    def longest_outbound(self) -> int:
        """The longest frame that the peer takes, in bytes."""
        return self._h2.max_outbound_frame_size

    def begin(self) -> bytes:
        """The preface, and our settings."""
        self._h2.initiate_connection()
        return self._h2.data_to_send()

    def open_stream(self, headers: Sequence[tuple[bytes, bytes]]) -> int:
        """Open the one stream: its id. After :meth:`begin`."""
        stream_id = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream_id, headers)
        return stream_id

    def receive(self, frame: bytes) -> list[h2.events.Event]:
        """What a whole frame means. Raises :class:`ProtocolError`."""
        try:
            return self._h2.receive_data(frame)
        except h2.exceptions.ProtocolError as error:
            raise ProtocolError(f"HTTP/2: {error}") from None

    def output(self) -> bytes:
        """What is to be said since the last time."""
        return self._h2.data_to_send()


def initial_window_change(event: h2.events.RemoteSettingsChanged) -> int:
    """By how many bytes the peer's settings change the window of a stream that is open."""
    change = event.changed_settings.get(_Codes.INITIAL_WINDOW_SIZE)
    return 0 if change is None else change.new_value - (change.original_value or 0)


class Patience:
    """What a peer may ask of us without giving anything: it refills with time.

    Frames without data cost more than they bring (see :class:`FrameSplitter`); a peer that sends
    them faster than messages go in and out floods the connection.
    """

    def __init__(self) -> None:
        self._left = float(_BURST)
        self._refilled_at: float | None = None

    def earn(self, worth: float) -> None:
        """Something useful happened: messages came, or went (which calls for window updates)."""
        self._left = min(self._left + worth, _MOST)

    def spend(self, weight: int, now: float) -> None:
        """Frames without data came. Raises :class:`ProtocolError` when there are too many."""
        if self._refilled_at is not None and self._left < _BURST:
            refill = (now - self._refilled_at) * _PER_SECOND
            self._left = min(self._left + refill, _BURST)
        self._refilled_at = now
        self._left -= weight
        if self._left < 0:
            what = "what costs more than it brings"
            raise ProtocolError(f"the gateway floods the connection with {what}")
