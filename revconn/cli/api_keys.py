"""API keys from the command line, from files and from the environment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Optional

from revconn.exceptions import ConfigurationError
from revconn.gateway.keys import PATTERN_REMEDY, is_pattern
from revconn.settings.checks import closest, refuse, require_api_key, warn_of_readers
from revconn.settings.environment import PREFIX, VARIABLES

__all__ = ["KEYS_VARIABLE", "KeySources", "keys_variable"]

KEYS_VARIABLE = "REVCONN_API_KEYS"
_OTHERS = tuple(PREFIX + name for name in (*VARIABLES.values(), "API_KEY_FILE"))  # a connector's
_LIKENESS = 0.8  # of a name to that of the keys, from which on it is taken for a misspelt one

_Keys = dict[str, Optional[tuple[str, ...]]]


def keys_variable(environ: Mapping[str, str]) -> str | None:
    """What REVCONN_API_KEYS holds; ``None`` if it is not set.

    Raises :class:`ConfigurationError` for a name that was meant to be it: without its keys the
    gateway would be open to everybody.
    """
    for name in sorted(environ):
        is_known = name == KEYS_VARIABLE or name in _OTHERS
        if name.startswith(PREFIX) and not is_known and closest(name, [KEYS_VARIABLE], _LIKENESS):
            refuse(name, None, "is not a variable of the gateway", f"did you mean {KEYS_VARIABLE}?")
    return environ.get(KEYS_VARIABLE)


class _Entry(NamedTuple):
    """``KEY [PATTERN …]``, and where it was written."""

    where: str
    text: str


@dataclass(frozen=True)
class KeySources:
    """Where keys are written, each as ``KEY [PATTERN …]``.

    ``arguments`` are entries, ``files`` the paths of files with one entry on a line, and
    ``environment`` is the value of REVCONN_API_KEYS (``None``: it is not set), entries separated
    by commas, which counts only without the others.
    """

    arguments: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    environment: str | None = None

    def read(self) -> _Keys | None:
        """The keys as they are written now; ``None`` when there is nowhere to look for one.

        Raises :class:`ConfigurationError`, in which no key is ever shown.
        """
        # Not added to the others: whoever writes --api-key means these keys, and no variable that
        # was left in the environment is to open the gateway beside them.
        if self.arguments or self.files:
            return _keys(self._given())
        if self.environment is None:
            return None
        entries = [text for text in self.environment.split(",") if text.strip()]
        if not entries:  # no keys at all would open the gateway to everybody
            refuse(KEYS_VARIABLE, None, "is set but blank", "unset it, or write a key in it")
        return _keys(_Entry(KEYS_VARIABLE, text) for text in entries)

    @property
    def ignores_environment(self) -> bool:
        """Whether keys are written in the environment, and do not count."""
        return bool(self.environment and (self.arguments or self.files))

    def _given(self) -> Iterator[_Entry]:
        for text in self.arguments:
            yield _Entry("--api-key", text)
        for path in self.files:
            yield from _entries_in_file(path)


def _entries_in_file(path: str) -> Iterator[_Entry]:
    try:
        with open(path, encoding="utf-8") as file:
            warn_of_readers("--api-key-file", path, file.fileno())
            lines = file.read().splitlines()
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a null byte in the path
        problem = f"cannot be read: {getattr(error, 'strerror', 'it is not text')}"
        refuse("--api-key-file", path, problem, "name a text file")
    entries = [
        _Entry(f"--api-key-file {path}, line {number}", line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not entries:
        refuse("--api-key-file", path, "holds no key", "write one key per line")
    yield from entries


def _keys(entries: Iterable[_Entry]) -> _Keys:
    keys: _Keys = {}
    for entry in entries:
        key, patterns = _parse(entry)
        # The second line's patterns would silently win, or lose.
        if key in keys:
            remedy = "write a key, and all its patterns, once"
            raise _refusal(entry, "gives a key again", remedy)
        keys[key] = patterns
    return keys


def _parse(entry: _Entry) -> tuple[str, tuple[str, ...] | None]:
    key, *rest = entry.text.split() or [""]
    try:
        require_api_key(key)
    except ConfigurationError as error:
        raise _refusal(entry, error.problem, error.remedy) from None
    patterns = []
    # A comment may follow a key, a "#" inside of one belongs to it.
    for word in rest:
        if word.startswith("#"):
            break
        if not is_pattern(word):  # not shown: it may be part of a key
            problem = "what follows the key is not a pattern"
            raise _refusal(entry, problem, PATTERN_REMEDY)
        patterns.append(word)
    return key, tuple(patterns) or None


def _refusal(entry: _Entry, problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(entry.where, None, problem, remedy)
