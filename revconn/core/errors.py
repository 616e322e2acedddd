"""The root of the error tree, and words fit to stand in an error or a log line: a peer's, too."""

from __future__ import annotations

import base64
import html
import json
import re
from urllib.parse import quote, quote_plus

__all__ = ["Mask", "ProtocolError", "RevconnError", "encodable", "presentable"]

_LONGEST_DETAILS = 1000
_SHORTEST_SECRET = 6  # characters; less hides nothing, and is part of other words
_SHORTEST_BEGINNING = 16  # of a secret, inside a text: less may be part of other words there
_HIDDEN = "***"


class RevconnError(Exception):
    """The base of every error that revconn raises on purpose."""


class ProtocolError(RevconnError):
    """A peer broke the wire protocol; the message says which rule, the attributes what it sent."""

    def __init__(self, reason: str, received: str = "") -> None:
        super().__init__(f"{reason} (received {received})" if received else reason)
        self.reason = reason
        self.received = received


def presentable(text: str) -> str:
    """``text`` as part of one line: shortened, control characters replaced by spaces."""
    # A line break of a peer's would begin a line of its own in the log, of whatever level it likes.
    text = text[:_LONGEST_DETAILS]
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def encodable(text: str) -> str:
    """``text`` as UTF-8 can hold it: with escapes in the place of lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class Mask:
    """Hides a secret in a peer's words, which may be an echo of ours. Immutable."""

    __slots__ = ("_forms",)

    def __init__(self, secret: str) -> None:
        # Worked out once for each session's key, and not with each text.
        forms = {form for form in _ways_to_write(secret) if len(form) >= _SHORTEST_SECRET}
        hides = len(secret) >= _SHORTEST_SECRET
        # Longest first: one may begin another.
        self._forms = tuple(sorted(forms, key=len, reverse=True)) if hides else ()

    def __call__(self, text: str) -> str:
        """``text`` without the secret, nor the beginning of it where what was quoted is cut."""
        for form in self._forms:
            text = text.replace(form, _HIDDEN)
        text = self._without_beginnings(text)
        for form in self._forms:
            if form[:_SHORTEST_SECRET] not in text:  # as a rule
                continue
            for size in range(min(len(form) - 1, len(text)), _SHORTEST_SECRET - 1, -1):
                if text.endswith(form[:size]):
                    text = text[:-size] + _HIDDEN
        return text

    def _without_beginnings(self, text: str) -> str:
        """``text`` without the longer beginnings of the secret in it."""
        forms = [form for form in self._forms if len(form) > _SHORTEST_BEGINNING]
        for beginning in {form[:_SHORTEST_BEGINNING] for form in forms}:
            first, *others = text.split(beginning)
            rests = [form[_SHORTEST_BEGINNING:] for form in forms if form.startswith(beginning)]
            text = first + "".join(
                _HIDDEN + other[max(_common(other, rest) for rest in rests) :] for other in others
            )
        return text


def _ways_to_write(secret: str) -> list[str]:
    """The secret as programs quote it. Most secrets look the same in nearly all of these ways."""
    data = encodable(secret).encode()
    encoded = [quote(secret, "", errors="replace"), quote(secret, errors="replace")]
    return [
        secret,
        data.decode("latin-1"),  # read in the wrong encoding
        *(written(secret)[1:-1] for written in (repr, ascii, json.dumps)),
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(data)[2:-1],
        html.escape(secret),
        quote_plus(secret, errors="replace"),
        *encoded,
        *(re.sub("%..", lambda found: found[0].lower(), each) for each in encoded),
        *(encode(data).decode().rstrip("=") for encode in _BASE64),
        data.hex(),
    ]


_BASE64 = (base64.b64encode, base64.urlsafe_b64encode)


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    differing = (at for at, (a, b) in enumerate(zip(one, other)) if a != b)
    return next(differing, min(len(one), len(other)))
