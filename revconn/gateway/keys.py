"""The API keys a gateway accepts."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from revconn.validation import refuse, require_api_key

__all__ = ["ApiKeys"]


class ApiKeys:
    """A fixed set of keys, compared in constant time and never shown. Safe from any thread."""

    def __init__(self, keys: str | Iterable[str]) -> None:
        try:
            given = [keys] if isinstance(keys, str) else list(keys)
        except TypeError:
            refuse("api_keys", None, f"is {type(keys).__name__}", "give a str, or several")
        if not given:
            refuse("api_keys", None, "holds no key", "give at least one")
        self._keys = tuple(require_api_key(key, "api_keys").encode() for key in given)

    def identify(self, offered: str) -> int | None:
        """Which key was offered, as a number that reveals nothing of it; ``None`` for no such key.

        Every key is compared, and each in constant time: how long it takes says nothing.
        """
        found = None
        candidate = offered.encode()
        for number, key in enumerate(self._keys):
            if hmac.compare_digest(key, candidate):
                found = number
        return found

    def __repr__(self) -> str:
        return f"ApiKeys({len(self._keys)} keys)"
