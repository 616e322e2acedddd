"""gRPC over HTTP/2 (PROTOCOL-HTTP2): what headers, trailers and reset codes mean."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from revconn.core.errors import presentable
from revconn.core.refusals import Speaker, speaker
from revconn.core.status import StatusCode, decode_message
from revconn.http2.frames import error_name

__all__ = [
    "StreamEnd",
    "decode_metadata",
    "encode_metadata",
    "end_by_reset",
    "end_by_trailers",
    "refusal",
    "request_headers",
    "who_ended",
]


class StreamEnd(NamedTuple):
    """The status that a stream ended with, and words for an operator."""

    code: StatusCode
    details: str


_GRPC_CONTENT = re.compile(r"application/grpc(?:[+;].*)?")

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

_RESET_CODES = {
    "STREAM_CLOSED": StatusCode.UNKNOWN,
    "REFUSED_STREAM": StatusCode.UNAVAILABLE,
    "CANCEL": StatusCode.CANCELLED,
    "ENHANCE_YOUR_CALM": StatusCode.RESOURCE_EXHAUSTED,
    "INADEQUATE_SECURITY": StatusCode.PERMISSION_DENIED,
    "HTTP_1_1_REQUIRED": StatusCode.UNKNOWN,
}


def request_headers(
    scheme: str, authority: str, path: str, metadata: Mapping[str, str | bytes]
) -> list[tuple[bytes, bytes]]:
    """The headers that open a gRPC stream."""
    return [
        (b":method", b"POST"),
        (b":scheme", scheme.encode()),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"grpc-accept-encoding", b"identity,gzip"),
        *encode_metadata(metadata),
    ]


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
            metadata[name] = base64.b64decode(
                raw_value + b"=" * (-len(raw_value) % 4), validate=True
            )
        except binascii.Error:
            continue
    return metadata


def refusal(metadata: Mapping[str, str | bytes]) -> StreamEnd | None:
    """Why response headers do not open a gRPC stream; ``None`` when they do."""
    if "grpc-status" in metadata:
        return end_by_trailers(metadata, silent="no reason given")  # it may not be the gateway
    if _is_grpc(metadata):
        return None
    http_status = _number(metadata.get(":status"))
    content_type = str(metadata.get("content-type", ""))
    code = _HTTP_CODES.get(http_status, StatusCode.UNKNOWN)
    kind = f"content-type {content_type[:100]!r}" if content_type else "no content-type"
    return StreamEnd(
        code,
        f"what answered is no gRPC server: HTTP status {http_status}, {kind}"
        " (a proxy's error page, or a login page?)",
    )


def end_by_trailers(
    metadata: Mapping[str, str | bytes], *, silent: str = "the gateway ended the stream"
) -> StreamEnd:
    """The status in a stream's trailers; ``silent`` is what to say of one without words."""
    status = metadata.get("grpc-status")
    details = presentable(decode_message(str(metadata.get("grpc-message", ""))))
    details = details or silent
    try:
        return StreamEnd(StatusCode(_number(status)), details)
    except ValueError:
        problem = "without a status" if status is None else f"with grpc-status {status[:20]!r}"
        return StreamEnd(StatusCode.UNKNOWN, f"{details} ({problem})")


def who_ended(
    headers: Mapping[str, str | bytes], trailers: Mapping[str, str | bytes] | None
) -> Speaker:
    """Who ended a stream, with trailers or, ``None``, with the headers alone."""
    last = headers if trailers is None else trailers
    status = _number(last.get("grpc-status"))
    if not _is_grpc(headers) or not 0 <= status <= max(StatusCode):
        return Speaker.STRANGER
    words = decode_message(str(last.get("grpc-message", "")))
    opened = trailers is not None
    return speaker(StatusCode(status), words, {**headers, **last}, opened=opened)


def end_by_reset(error_code: int) -> StreamEnd:
    """What a RST_STREAM means."""
    name = error_name(error_code)
    unknown = StatusCode.UNKNOWN if name.startswith("code ") else StatusCode.INTERNAL
    return StreamEnd(_RESET_CODES.get(name, unknown), f"the gateway reset the stream ({name})")


def _is_grpc(headers: Mapping[str, str | bytes]) -> bool:
    content_type = str(headers.get("content-type", ""))
    return _number(headers.get(":status")) == 200 and bool(_GRPC_CONTENT.fullmatch(content_type))


def _number(value: str | bytes | None) -> int:
    """A header's number; -1 for anything else."""
    text = value if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
