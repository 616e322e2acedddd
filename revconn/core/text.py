"""Words that are passed on: a peer's for a log, and anybody's for a message."""

from __future__ import annotations

from urllib.parse import quote

__all__ = ["Mask", "encodable", "presentable"]

_LONGEST_DETAILS = 1000
_SHORTEST_SECRET = 6  # characters; less hides nothing, and is part of other words
_SHORTEST_BEGINNING = 16  # of a secret, inside a text: less may be part of other words there
_HIDDEN = "***"


def presentable(text: str) -> str:
    """``text`` as part of one line: shortened, control characters replaced by spaces."""
    text = text[:_LONGEST_DETAILS]
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def encodable(text: str) -> str:
    """``text`` as UTF-8 can hold it: with escapes in the place of lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class Mask:
    """Hides a secret in a peer's words, which may be an echo of ours. Immutable."""

    __slots__ = ("_forms",)

    def __init__(self, secret: str) -> None:
        forms = {secret, repr(secret)[1:-1], quote(secret, safe="")}
        self._forms = tuple(forms) if len(secret) >= _SHORTEST_SECRET else ()

    def __call__(self, text: str) -> str:
        """``text`` without the secret, nor the beginning of it where what was quoted is cut."""
        for form in self._forms:
            text = _without_beginnings(text.replace(form, _HIDDEN), form)
            for size in range(len(form) - 1, _SHORTEST_SECRET - 1, -1):
                if text.endswith(form[:size]):
                    text = text[:-size] + _HIDDEN
        return text


def _without_beginnings(text: str, form: str) -> str:
    """``text`` without the longer beginnings of ``form`` in it."""
    if len(form) <= _SHORTEST_BEGINNING:
        return text
    first, *others = text.split(form[:_SHORTEST_BEGINNING])
    rest = form[_SHORTEST_BEGINNING:]
    return first + "".join(_HIDDEN + other[_common(other, rest) :] for other in others)


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    differing = (at for at, (a, b) in enumerate(zip(one, other)) if a != b)
    return next(differing, min(len(one), len(other)))
