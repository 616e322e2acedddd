"""The head of a gRPC call as a server gets it, and the header blocks that a server answers with."""

from __future__ import annotations

from collections.abc import Iterable

from revconn.core.deadline import parse_grpc_timeout
from revconn.core.metadata import Metadata, encode_extension, encode_header
from revconn.core.status import StatusCode, encode_message
from revconn.http2.grpc import decode_pairs, encode_pairs, is_grpc_content
from revconn.http2.headers import Field, FieldKind, encode_fields

__all__ = [
    "OK_TRAILERS",
    "OPENING",
    "RequestHead",
    "RequestHeads",
    "closing_block",
    "not_grpc",
    "opening_block",
    "refusal_block",
]

_MOST_KNOWN = 64  # heads, of one connection
_LARGEST_KNOWN = 2 << 10  # bytes, of all its headers: whoever sends it once keeps it here for long
_PSEUDO = (b":method", b":scheme", b":path", b":authority")


class RequestHead:
    """What a caller says before its messages. Immutable, but for what is found out about it later.

    :ivar path: the method that it calls, as it was sent.
    :ivar scheme: ``http`` or ``https``, as it was sent.
    :ivar authority: the host that it names, and its port; empty if it does not.
    :ivar method_path: the same as text.
    :ivar fields: all headers but pseudo-headers, and but those that say how the message travels.
    :ivar size: of all headers, as HTTP/2 counts them, in bytes.
    :ivar timeout: the caller's ``grpc-timeout`` as it was sent.
    :ivar encoding: the caller's ``grpc-encoding``.
    :ivar content_length: bytes of DATA that it announced; -1 if it did not.
    :ivar is_grpc: whether it is a call, and not something else that HTTP/2 is used for.
    :ivar problem: why this is no request of HTTP/2's; the stream is to be reset.
    """

    __slots__ = (
        "_extension", "_forwarded", "authority", "content_length", "encoding", "fields", "is_grpc",
        "method", "method_path", "path", "problem", "scheme", "size", "timeout",
    )  # fmt: skip

    def __init__(self, fields: Iterable[Field], size: int) -> None:
        self.size = size
        self.fields: list[Field] = []
        self.encoding = self.timeout = b""
        self.content_length = -1
        self.problem = ""
        self._forwarded: bytes | None = None
        self._extension: list[bytes] = []  # of all that differ by their time alone
        pseudo: dict[bytes, bytes] = {}
        content_type = b""
        for each in fields:
            kind = each.kind
            if kind == FieldKind.ORDINARY:
                self.fields.append(each)
            elif kind == FieldKind.PSEUDO:
                # Each once, before all else, and none that HTTP/2 does not know (section 8.3).
                if self.fields or each.name in pseudo or each.name not in _PSEUDO:
                    self.problem = "a pseudo-header out of place"
                pseudo[each.name] = each.value
            elif kind == FieldKind.CONTENT_TYPE:
                self.fields.append(each)
                content_type = each.value
            elif kind == FieldKind.MALFORMED:
                self.problem = "a header that HTTP/2 does not allow"
            else:
                self._take_special(each.name, each.value)
        self.method = pseudo.get(b":method", b"")
        self.path = pseudo.get(b":path", b"")
        self.scheme = pseudo.get(b":scheme", b"")
        self.authority = pseudo.get(b":authority", b"")
        self.method_path = self.path.decode("utf-8", "replace")
        if not (self.method and self.path and b":scheme" in pseudo):
            self.problem = self.problem or "no :method, :scheme or :path"
        self.is_grpc = self.method == b"POST" and is_grpc_content(content_type.decode("latin-1"))

    def _take_special(self, name: bytes, value: bytes) -> None:
        if name == b"grpc-timeout":
            self.timeout = value
        elif name == b"grpc-encoding":
            self.encoding = value
        else:
            self.content_length = int(value) if value.isdigit() and len(value) < 20 else -1
            if self.content_length < 0:
                self.problem = "a content-length that is none"

    def with_timeout(self, timeout: bytes, size: int) -> RequestHead:
        """The same, but for the caller's time: what else callers say they mostly repeat."""
        # By hand: copy.copy() takes longer than all else that is done for a call's headers.
        head = RequestHead.__new__(RequestHead)
        head.fields = self.fields
        head.encoding = self.encoding
        head.content_length = self.content_length
        head.problem = self.problem
        head.method = self.method
        head.path = self.path
        head.scheme = self.scheme
        head.authority = self.authority
        head.method_path = self.method_path
        head.is_grpc = self.is_grpc
        head._forwarded = self.forwarded
        head._extension = self._extension
        head.timeout = timeout
        head.size = size
        return head

    @property
    def seconds(self) -> float | None:
        """How long the caller waits at most; ``None`` if it does not say, or in no known way."""
        if not self.timeout:
            return None
        try:
            return parse_grpc_timeout(self.timeout.decode("ascii", "replace"))
        except ValueError:
            return None

    @property
    def forwarded(self) -> bytes:
        """The headers as ``ForwardRequest.headers``, encoded; without the caller's time."""
        if self._forwarded is None:
            self._forwarded = _forwarded(self.fields)
        return self._forwarded

    def extension(self, peer: str) -> bytes:
        """What feature "metadata" adds to the request of such a call, encoded.

        :param peer: who calls; heads are one connection's, and so always the same.
        """
        if not self._extension:
            names = {each.name for each in self.fields}
            # Headers are a map, in which a name is once.
            repeats = len(names) < len(self.fields)
            metadata = self.metadata() if repeats else ()
            self._extension.append(encode_extension(metadata, peer.encode()))
        return self._extension[0]

    def metadata(self) -> Metadata:
        """The headers as gRPC's metadata, binary values decoded."""
        return tuple(decode_pairs((each.name, each.value) for each in self.fields))


def _forwarded(fields: list[Field]) -> bytes:
    names = {each.name for each in fields}
    if len(names) == len(fields):
        return b"".join([each.forwarded for each in fields])
    # In a map the last one counts: values of a repeated name are joined, as HTTP has it.
    joined: dict[bytes, bytes] = {}
    for each in fields:
        if each.forwarded:
            before = joined.get(each.name)
            joined[each.name] = each.value if before is None else before + b"," + each.value
    return b"".join(encode_header(name, value) for name, value in joined.items())


class RequestHeads:
    """The heads of one connection's requests: what was said before is not looked at again."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[Field, ...], RequestHead] | None = None

    def parse(self, fields: list[Field], size: int) -> RequestHead:
        """The head of a request with these headers."""
        # Told apart by their objects, which are the same as long as they are in the peer's table.
        key = tuple([each for each in fields if each.kind != FieldKind.TIMEOUT])
        known = self._known
        if known is None:  # most connections are a connector's, with one request
            self._known = {}
            return RequestHead(fields, size)
        head = known.get(key)
        if head is None:
            head = RequestHead(key, size)
            if size <= _LARGEST_KNOWN:
                if len(known) >= _MOST_KNOWN:
                    known.clear()
                known[key] = head
        if len(key) == len(fields):
            return head
        timeout = next(each.value for each in fields if each.kind == FieldKind.TIMEOUT)
        return head.with_timeout(timeout, size)


# What is answered

_OPENING = (
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity,deflate,gzip"),
)

OPENING = encode_fields(_OPENING)
"""The headers of an answer that has no metadata of its own."""

OK_TRAILERS = encode_fields([(b"grpc-status", b"0")])
"""The end of a call that went well, without metadata."""


def opening_block(metadata: Metadata) -> bytes:
    """The headers that an answer begins with."""
    return encode_fields([*_OPENING, *encode_pairs(metadata)]) if metadata else OPENING


def closing_block(code: StatusCode, message: str = "", metadata: Metadata = ()) -> bytes:
    """The trailers that a call ends with."""
    if not (code or metadata):
        return OK_TRAILERS
    return encode_fields(_closing(code, message, metadata))


def refusal_block(code: StatusCode, message: str, metadata: Metadata = ()) -> bytes:
    """Headers and trailers in one, of a call that ends without a message ("Trailers-Only")."""
    return encode_fields([*_OPENING, *_closing(code, message, metadata)])


def _closing(code: StatusCode, message: str, metadata: Metadata) -> list[tuple[bytes, bytes]]:
    fields = [(b"grpc-status", b"%d" % code)]
    if message:
        fields.append((b"grpc-message", encode_message(message).encode()))
    return [*fields, *encode_pairs(metadata)]


_WORDS = b"this port speaks gRPC: POST, with content-type application/grpc\n"


def not_grpc(head: RequestHead) -> tuple[bytes, bytes]:
    """The headers and the body of the answer to an HTTP request that is no call."""
    # As gRPC's PROTOCOL-HTTP2 has it; whoever looks with a browser or curl reads why.
    status = b"415" if head.method == b"POST" else b"405"
    fields = [
        (b":status", status),
        (b"content-type", b"text/plain"),
        (b"content-length", b"%d" % len(_WORDS)),
    ]
    if status == b"405":
        fields.append((b"allow", b"POST"))
    return encode_fields(fields), (b"" if head.method == b"HEAD" else _WORDS)
