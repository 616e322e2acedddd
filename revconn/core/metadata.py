"""gRPC metadata as headers of a request, and headers of a response as gRPC metadata."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Union
from urllib.parse import unquote

from revconn._proto.registry_pb2 import MetadataEntry
from revconn.core.requests import encode_varint
from revconn.core.status import encode_message

__all__ = [
    "Metadata",
    "application_metadata",
    "bounded",
    "encode_extension",
    "encode_header",
    "entries_of",
    "headers_from_metadata",
    "headers_size",
    "invocation_metadata",
    "legal_metadata",
    "metadata_from_entries",
    "metadata_from_headers",
    "metadata_size",
    "pairs_of",
    "require_metadata",
    "truncate_message",
    "usable_header_list",
]

Metadata = tuple[tuple[str, Union[str, bytes]], ...]

# gRPC implementations refuse a header list that is longer than they take, and with it the whole
# call: a call whose headers do not fit loses headers, not its status.
_USUAL_HEADER_LIST = 8 << 10  # bytes that all of them take
_UNBOUNDED_HEADER_LIST = 32 << 10  # bytes that those are sent who state no limit

_PER_HEADER = 32  # what HTTP/2 counts for each header besides its name and value
_LEGAL_KEY = re.compile(r"[0-9a-z_.-]+")
_CUT_ESCAPE = re.compile(r"%.?$")
_LEGAL_VALUE = re.compile(r"[\x20-\x7e]*")
_STATUS_DETAILS = "grpc-status-details-bin"
# What gRPC's servers keep to themselves.
_OF_THE_CALL = frozenset(
    {"content-type", "te", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding"}
)
_OF_THE_TRANSPORT = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "host",
        "keep-alive",
        "proxy-connection",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)


def headers_from_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """A caller's metadata as a request's headers.

    Binary (``-bin``) values are base64 without padding, as they are on the wire; values of a
    repeated key are joined with commas, as HTTP has it. What is not ASCII is dropped.
    """
    headers: dict[str, str] = {}
    for key, value in metadata:
        text = _encode_binary(value) if isinstance(value, bytes) else value
        if text.isascii():
            headers[key] = f"{headers[key]},{text}" if key in headers else text
    return headers


def encode_header(name: bytes, value: bytes) -> bytes:
    """A header as an entry of ``ForwardRequest.headers``, encoded; nothing if it is not ASCII.

    As :func:`headers_from_metadata` has it, for one whose value is as it is on the wire.
    """
    if not (name.isascii() and value.isascii()):
        return b""
    if name.endswith(b"-bin"):
        value = value.rstrip(b"=")
    entry = b"".join(
        (b"\x0a", encode_varint(len(name)), name, b"\x12", encode_varint(len(value)), value)
    )
    return b"\x1a" + encode_varint(len(entry)) + entry


def encode_extension(metadata: Metadata, peer: bytes) -> bytes:
    """What feature "metadata" adds to a ``ForwardRequest``, encoded.

    :param metadata: all of the caller's; empty where headers tell it.
    :param peer: who calls.
    """
    fields: list[bytes] = []
    for name, value in metadata:
        key = name.encode()
        data = value.encode() if isinstance(value, str) else value
        entry = b"".join(
            (b"\x0a", encode_varint(len(key)), key, b"\x12", encode_varint(len(data)), data)
        )
        fields += (b"\xaa\x06", encode_varint(len(entry)), entry)
    return b"".join((*fields, b"\xb2\x06", encode_varint(len(peer)), peer))


def headers_size(headers: Mapping[str, str]) -> int:
    """The bytes of a request's headers, as HTTP/2 counts them."""
    size = len(headers) * _PER_HEADER
    for name, text in headers.items():  # no sum(): a generator is entered once for each header
        size += len(name) + len(text)
    return size


def application_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """The part of a call's metadata that an application set, without the transport's own."""
    return tuple((key, value) for key, value in metadata if _is_applications(key))


def metadata_from_headers(headers: Mapping[str, str]) -> Metadata:
    """A response's headers as metadata for its caller.

    The transport's own headers are left out, and ``grpc-*`` except the status details that
    applications may set; so is what gRPC would refuse.
    """
    metadata: list[tuple[str, str | bytes]] = []
    for name, text in headers.items():
        key = name.lower()
        value = _legal_value(key, text)
        if value is not None and _is_applications(key):
            metadata.append((key, value))
    return tuple(metadata)


def metadata_from_entries(entries: Iterable[MetadataEntry]) -> Metadata:
    """The same, where a response has entries: names may repeat, binary values are bytes."""
    return legal_metadata(pairs_of(entries))


def legal_metadata(metadata: Metadata) -> Metadata:
    """What of an answer's metadata a caller may be given; names are in lower case then."""
    kept: list[tuple[str, str | bytes]] = []
    for name, value in metadata:
        key = name.lower()
        if not _is_applications(key):
            continue
        if isinstance(value, bytes):
            kept.append((key, value))
        elif _LEGAL_VALUE.fullmatch(value) and not key.endswith("-bin"):
            kept.append((key, value.strip(" ")))
    return tuple(kept)


def usable_header_list(stated: int | None) -> int:
    """Bytes of a header list that are sent to a peer that says that it takes so many.

    ``None``: it does not say.
    """
    if stated is None:
        return _UNBOUNDED_HEADER_LIST
    # gRPC's core states its hard limit, and refuses at random what is beyond the soft one: by
    # default that is half of it.
    return max(min(stated, _USUAL_HEADER_LIST), stated // 2)


def entries_of(metadata: Metadata) -> list[MetadataEntry]:
    """Metadata as entries of a message."""
    return [
        MetadataEntry(key=key, value=value.encode() if isinstance(value, str) else value)
        for key, value in metadata
    ]


def pairs_of(entries: Iterable[MetadataEntry]) -> Metadata:
    """Entries as metadata, as they came: bytes where a name is binary."""
    return tuple(
        (entry.key, entry.value if entry.key.endswith("-bin") else entry.value.decode("latin-1"))
        for entry in entries
    )


def invocation_metadata(
    headers: Mapping[str, str], entries: Iterable[MetadataEntry]
) -> tuple[tuple[str, str | bytes], ...]:
    """The metadata of a call as gRPC's servers give it to a servicer.

    From a request's entries where it has any, else from its headers.
    """
    told = tuple(pair for pair in pairs_of(entries) if pair[0] not in _OF_THE_CALL)
    if told:
        return told
    metadata: list[tuple[str, str | bytes]] = []
    for name, text in headers.items():
        if name in _OF_THE_CALL or name.startswith(":"):
            continue
        if not name.endswith("-bin"):
            metadata.append((name, text))
            continue
        for part in text.split(","):  # as HTTP joins what has one name
            value = _decode_binary(part)
            if value is not None:
                metadata.append((name, value))
    return tuple(metadata)


def require_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """An application's metadata for a caller; text where a name is not binary.

    Raises :class:`ValueError` for what gRPC, or a connection to a gateway, cannot carry, and
    :class:`TypeError` for what is no metadata.
    """
    checked: list[tuple[str, str | bytes]] = []
    for key, value in metadata:
        if not isinstance(key, str) or not isinstance(value, (str, bytes)):
            raise TypeError(f"metadata {key!r:.100}: give pairs of str and str, or bytes for -bin")
        if not _is_applications(key):
            raise ValueError(
                f"metadata {key!r:.100}: not a name that an application may set; use 0-9 a-z _ - ."
                " and neither grpc- nor HTTP's own"
            )
        if key.endswith("-bin"):
            checked.append((key, value.encode() if isinstance(value, str) else value))
            continue
        text = value if isinstance(value, str) else value.decode("latin-1")
        if not _LEGAL_VALUE.fullmatch(text):
            raise ValueError(f"metadata {key!r:.100}: not printable ASCII; use a name in -bin")
        checked.append((key, text))
    return tuple(checked)


def metadata_size(metadata: Metadata) -> int:
    """Bytes that metadata takes of a header list."""
    return sum(_entry_size(key, value) for key, value in metadata)


def _entry_size(key: str, value: str | bytes) -> int:
    size = len(value) if isinstance(value, str) else len(value) * 4 // 3 + 2
    return size + len(key) + _PER_HEADER


def bounded(metadata: Metadata, header_list: int) -> Metadata:
    """What of the metadata goes into so long a ``header_list``: half of it is the message's.

    One that does not fit is left out, and smaller ones behind it are not.
    """
    kept: list[tuple[str, str | bytes]] = []
    left = header_list // 2
    for key, value in metadata:
        size = _entry_size(key, value)
        if size <= left:
            left -= size
            kept.append((key, value))
    return tuple(kept)


def truncate_message(message: str, room: int) -> str:
    """A status message, cut to at most so many bytes once it is percent-encoded."""
    encoded = encode_message(message)
    if len(encoded) <= room:
        return message
    # The encoded text is cut, which is what has to fit: each character outside ASCII takes six
    # bytes or more of it. What is left of an escape, or of a character, at the cut goes too.
    cut = encoded[: room - len(encode_message("..."))]
    return unquote(_CUT_ESCAPE.sub("", cut), errors="ignore") + "..."


def _is_applications(key: str) -> bool:
    if not _LEGAL_KEY.fullmatch(key) or key in _OF_THE_TRANSPORT:
        return False
    return not key.startswith("grpc-") or key == _STATUS_DETAILS


def _legal_value(key: str, text: str) -> str | bytes | None:
    if key.endswith("-bin"):
        return _decode_binary(text)
    return text.strip(" ") if _LEGAL_VALUE.fullmatch(text) else None


def _encode_binary(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii").rstrip("=")


def _decode_binary(text: str) -> bytes | None:
    # gRPC asks to send it unpadded, and to take both.
    unpadded = text.rstrip("=")
    try:
        return base64.b64decode(unpadded + "=" * (-len(unpadded) % 4), validate=True)
    except ValueError:  # binascii.Error, or text that is not ASCII
        return None
