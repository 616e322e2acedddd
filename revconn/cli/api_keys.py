"""API keys from the command line, from files and from the environment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Optional

from revconn.exceptions import ConfigurationError
from revconn.gateway.keys import PATTERN_REMEDY, is_pattern
from revconn.validation import refuse, require_api_key

__all__ = ["KEYS_VARIABLE", "KeySources"]

KEYS_VARIABLE = "REVCONN_API_KEYS"

_Keys = dict[str, Optional[tuple[str, ...]]]


class _Entry(NamedTuple):
    """``KEY [PATTERN …]``, and where it was written."""

    where: str
    text: str


@dataclass(frozen=True)
class KeySources:
    """Where keys are written, each as ``KEY [PATTERN …]``.

    ``arguments`` are entries, ``files`` the paths of files with one entry on a line, and
    ``environment`` is the value of REVCONN_API_KEYS, entries separated by commas, which counts
    only without the others.
    """

    arguments: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    environment: str = ""

    def read(self) -> _Keys | None:
        """The keys as they are written now; ``None`` when there is nowhere to look for one.

        Raises :class:`ConfigurationError`, in which no key is ever shown.
        """
        if self.arguments or self.files:
            return _keys(self._given())
        entries = [text for text in self.environment.split(",") if text.strip()]
        return _keys(_Entry(KEYS_VARIABLE, text) for text in entries) if entries else None

    def _given(self) -> Iterator[_Entry]:
        for text in self.arguments:
            yield _Entry("--api-key", text)
        for path in self.files:
            yield from _entries_in_file(path)


def _entries_in_file(path: str) -> Iterator[_Entry]:
    try:
        with open(path, encoding="utf-8") as file:
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
        if key in keys and keys[key] != patterns:
            remedy = "write a key and all its patterns once"
            raise _refusal(entry, "gives a key again, with other patterns", remedy)
        keys[key] = patterns
    return keys


def _parse(entry: _Entry) -> tuple[str, tuple[str, ...] | None]:
    key, *rest = entry.text.split() or [""]
    try:
        require_api_key(key)
    except ConfigurationError as error:
        raise _refusal(entry, error.problem, error.remedy) from None
    patterns = []
    for word in rest:
        if word.startswith("#"):
            break
        if not is_pattern(word):  # not shown: it may be part of a key
            problem = "what follows the key is not a service pattern"
            raise _refusal(entry, problem, PATTERN_REMEDY)
        patterns.append(word)
    return key, tuple(patterns) or None


def _refusal(entry: _Entry, problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(entry.where, None, problem, remedy)
