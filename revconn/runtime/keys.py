"""The API key, asked of the user before every handshake."""

from __future__ import annotations

from typing import Callable

from revconn.exceptions import ConfigurationError, HandshakeError
from revconn.runtime import journal
from revconn.target import Target
from revconn.validation import require_api_key

__all__ = ["ask_api_key"]


def ask_api_key(ask: Callable[[], str], target: Target) -> str:
    """The key to show to ``target``. Raises :class:`HandshakeError` when there is none."""
    try:
        return require_api_key(ask())
    except ConfigurationError as error:
        raise HandshakeError(str(target), f"no usable API key: {error}") from error
    except Exception as error:
        journal.api_key_failed(target)
        reason = f"the api_key callable raised {type(error).__name__}"
        raise HandshakeError(str(target), reason) from error
