"""The API key, asked of the user before every handshake, and now and then in between."""

from __future__ import annotations

from typing import Callable

from revconn.exceptions import ConfigurationError, HandshakeError
from revconn.link import report
from revconn.settings.checks import require_api_key
from revconn.settings.environment import KeyFile
from revconn.settings.target import Target

__all__ = ["ApiKey"]


class ApiKey:
    """The key to show to ``target``, as ``ask`` gives it. Owned by the link's thread."""

    def __init__(self, ask: Callable[[], str], target: Target) -> None:
        self._ask = ask
        self._target = target
        self._shown = ""

    def show(self) -> str:
        """The key of now. Raises :class:`HandshakeError` when there is none."""
        try:
            self._shown = require_api_key(self._ask())
        except ConfigurationError as error:
            raise HandshakeError(str(self._target), f"no usable API key: {error}") from error
        except SystemExit:
            raise
        except BaseException as error:  # a green thread's timeout is no Exception
            report.api_key_failed(self._target)
            reason = f"the api_key callable raised {type(error).__name__}"
            raise HandshakeError(str(self._target), reason) from error
        return self._shown

    @property
    def is_watched(self) -> bool:
        """Whether to look for another one while a connection serves.

        Not where a function makes it: each of its keys may be another one.
        """
        return isinstance(self._ask, KeyFile)

    def is_another(self) -> bool:
        """Whether there is one other than was shown last; having none now is no reason to act."""
        try:
            return require_api_key(self._ask()) != self._shown
        except Exception:  # noqa: BLE001 - the next handshake will tell, if it is still so
            return False
