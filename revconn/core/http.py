"""gRPC over HTTP/2 (PROTOCOL-HTTP2): what headers, trailers and reset codes mean."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from revconn.core.status import StatusCode, decode_message

__all__ = [
    "StreamEnd",
    "decode_metadata",
    "encode_metadata",
    "end_by_reset",
    "end_by_trailers",
    "refusal",
]


class StreamEnd(NamedTuple):
    """The status that a stream ended with, and words for an operator."""

    code: StatusCode
    details: str


_HTTP_CODES = {
    400: StatusCode.INTERNAL,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.UNIMPLEMENTED,
    429: StatusCode.UNAVAILABLE,
    502: StatusCode.UNAVAILABLE,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.UNAVAILABLE,
}

_RESETS = {
    0x0: ("NO_ERROR", StatusCode.INTERNAL),
    0x1: ("PROTOCOL_ERROR", StatusCode.INTERNAL),
    0x2: ("INTERNAL_ERROR", StatusCode.INTERNAL),
    0x3: ("FLOW_CONTROL_ERROR", StatusCode.INTERNAL),
    0x4: ("SETTINGS_TIMEOUT", StatusCode.INTERNAL),
    0x5: ("STREAM_CLOSED", StatusCode.UNKNOWN),
    0x6: ("FRAME_SIZE_ERROR", StatusCode.INTERNAL),
    0x7: ("REFUSED_STREAM", StatusCode.UNAVAILABLE),
    0x8: ("CANCEL", StatusCode.CANCELLED),
    0x9: ("COMPRESSION_ERROR", StatusCode.INTERNAL),
    0xA: ("CONNECT_ERROR", StatusCode.INTERNAL),
    0xB: ("ENHANCE_YOUR_CALM", StatusCode.RESOURCE_EXHAUSTED),
    0xC: ("INADEQUATE_SECURITY", StatusCode.PERMISSION_DENIED),
    0xD: ("HTTP_1_1_REQUIRED", StatusCode.UNKNOWN),
}


def encode_metadata(metadata: Mapping[str, str | bytes]) -> list[tuple[bytes, bytes]]:
    """Request metadata as headers; values under a ``-bin`` name are bytes, sent in base64."""
    headers = []
    for name, value in metadata.items():
        data = value.encode("ascii") if isinstance(value, str) else value
        if name.endswith("-bin"):
            data = base64.b64encode(data).rstrip(b"=")
        headers.append((name.encode("ascii"), data))
    return headers


def decode_metadata(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str | bytes]:
    """Headers as metadata; binary ones decoded (padding or not), malformed ones left out."""
    metadata: dict[str, str | bytes] = {}
    for raw_name, raw_value in headers:
        name = raw_name.decode("ascii", "replace")
        if not name.endswith("-bin"):
            metadata[name] = raw_value.decode("utf-8", "replace")
            continue
        try:
            metadata[name] = base64.b64decode(raw_value + b"=" * (-len(raw_value) % 4))
        except binascii.Error:
            continue
    return metadata


def refusal(metadata: Mapping[str, str | bytes]) -> StreamEnd | None:
    """Why response headers do not open a gRPC stream; ``None`` when they do."""
    if "grpc-status" in metadata:
        return end_by_trailers(metadata)
    http_status = _number(metadata.get(":status"))
    content_type = str(metadata.get("content-type", ""))
    if http_status == 200 and content_type.startswith("application/grpc"):
        return None
    code = _HTTP_CODES.get(http_status, StatusCode.UNKNOWN)
    kind = f"a {content_type} answer" if content_type else "no content-type"
    return StreamEnd(
        code,
        f"what answered is no gRPC server: HTTP status {http_status} with {kind!s:.100}"
        " (a proxy's error page, or a login page?)",
    )


def end_by_trailers(metadata: Mapping[str, str | bytes]) -> StreamEnd:
    """The status in a stream's trailers."""
    number = _number(metadata.get("grpc-status"))
    try:
        code = StatusCode(number)
    except ValueError:
        code = StatusCode.UNKNOWN
    details = decode_message(str(metadata.get("grpc-message", "")))
    if not details:
        details = "the gateway ended the stream"
        if number < 0:
            details += " without a status"
    return StreamEnd(code, details)


def end_by_reset(error_code: int) -> StreamEnd:
    """What a RST_STREAM means."""
    name, code = _RESETS.get(error_code, (f"code {error_code:#x}", StatusCode.UNKNOWN))
    return StreamEnd(code, f"the gateway reset the stream ({name})")


def _number(value: str | bytes | None) -> int:
    """A header's number; -1 for anything else."""
    text = value if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
