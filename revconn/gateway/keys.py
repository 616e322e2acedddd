"""The API keys a gateway accepts, and what each may be used for."""

from __future__ import annotations

import hmac
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Union

from revconn._proto.registry_pb2 import ConnectionRegister
from revconn.core.routing import LONGEST_SERVICE
from revconn.core.status import StatusCode
from revconn.gateway.refusals import Refused
from revconn.logger import Mask
from revconn.settings.checks import refuse, require_api_key

__all__ = [
    "PATTERN_REMEDY",
    "UNCHECKED",
    "ApiKeys",
    "ApiKeysGiven",
    "Registration",
    "check_registration",
    "is_pattern",
]

ApiKeysGiven = Union[str, Iterable[str], Mapping[str, Union[Iterable[str], None]], None]

UNCHECKED = 0  # the number of whatever key is shown to a gateway that checks none
PATTERN_REMEDY = (
    "write echo.Echo for one service, echo.* for all below echo, * for all;"
    " publish:orders.* and subscribe:orders.* for events"
)

_MOST_SERVICES = 10_000  # looking at more would hold up everybody else
_MOST_STREAMING = 10_000  # methods of one connector
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_PATTERN = re.compile(rf"(?:{_NAME}\.)*(?:{_NAME}|\*)")
# A type of events may be any text. One with a space or a comma in it could not be written in a file
# or a variable, and a star that is no last part means nothing.
_EVENT_PATTERN = re.compile(r"(?:[^\s,*]+\.)?\*|[^\s,*]+")
_PUBLISH, _SUBSCRIBE = "publish", "subscribe"

# What callers are told by the gateway itself: whether a service is there, and what there is. A
# connector that answered in its place could send them anywhere. A call of a.B.C finds a.B and a, so
# what is above these names is the gateway's too.
INTROSPECTION = frozenset(
    {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
)
"""Services by which a connector tells of itself: it serves them, and registers none."""

_OWN = frozenset({"registry", "grpc", "grpc.health", "grpc.reflection"})
_BELOW_OWN = ("registry.", "grpc.health.", "grpc.reflection.")


@dataclass(frozen=True)
class _Key:
    text: bytes
    patterns: _Patterns | None  # None: everything
    mask: Mask


class _Patterns(NamedTuple):
    """What a key may register and call, publish, and subscribe to."""

    services: tuple[str, ...]
    published: tuple[str, ...]
    subscribed: tuple[str, ...]


class ApiKeys:
    """A set of keys, compared in constant time and never shown. Safe from any thread.

    A key has a number, from 1 in the order given, by which everybody else knows it. It keeps that
    number for as long as it stays, and nobody gets it afterwards.

    :param given: a key; several; keys with the patterns of the services that each may register
        and call, and of the types of events that it may publish (``publish:orders.*``) and
        subscribe to (``subscribe:orders.*``), ``None`` being everything; ``None``: no key is
        checked.
    """

    def __init__(self, given: ApiKeysGiven) -> None:
        self._lock = threading.Lock()  # guards _highest, and who replaces _keys
        self._highest = UNCHECKED
        # Replaced, never changed: any thread may read it without a lock.
        self._keys: Mapping[int, _Key] | None = None
        self.replace(given)

    @property
    def are_checked(self) -> bool:
        """Whether a connector has to show a key at all."""
        return self._keys is not None

    def replace(self, given: ApiKeysGiven) -> None:
        """Accept these keys from now on.

        Raises :class:`ConfigurationError`, and goes on with the old ones, for keys that cannot
        be used.
        """
        keys = None if given is None else _parse(given)
        with self._lock:
            # One assignment: the gateway's thread reads either all of the old keys or all of the
            # new.
            self._keys = None if keys is None else self._number(keys)

    def _number(self, keys: list[_Key]) -> dict[int, _Key]:
        assert self._lock.locked()
        numbers = {key.text: number for number, key in (self._keys or {}).items()}
        numbered = {}
        for key in keys:
            # A key that stays keeps its number, by which its connections are known; one that went
            # and comes back gets another, so that it does not own what it had registered before.
            if key.text not in numbers:
                self._highest += 1
                numbers[key.text] = self._highest
            numbered[numbers[key.text]] = key
        return numbered

    def identify(self, offered: str) -> int | None:
        """The number of the key that was offered; ``None`` for no such key.

        Every key is compared, and each in constant time: how long it takes says nothing.
        """
        keys = self._keys
        if keys is None:
            return UNCHECKED
        found = None
        # All keys, whether or not one matched: the time says neither how many there are before it,
        # nor how much of one was right.
        candidate = offered.encode()
        for number, key in keys.items():
            if hmac.compare_digest(key.text, candidate):
                found = number
        return found

    def accepts(self, number: int) -> bool:
        """Whether the key of that number is accepted still."""
        keys = self._keys
        return keys is None or number in keys

    def allows(self, number: int, service: str) -> bool:
        """Whether the key of that number may register and call ``service``."""
        return self._permits(number, "services", service)

    def may_publish(self, number: int, event_type: str) -> bool:
        """Whether the key of that number may publish events of that type."""
        return self._permits(number, "published", event_type)

    def may_subscribe(self, number: int, event_type: str) -> bool:
        """Whether the key of that number may be sent events of that type."""
        return self._permits(number, "subscribed", event_type)

    def _permits(self, number: int, what: str, name: str) -> bool:
        keys = self._keys
        if keys is None:
            return True
        key = keys.get(number)
        if key is None:
            return False
        if key.patterns is None:
            return True
        return any(_matches(each, name) for each in getattr(key.patterns, what))

    def check_services(self, number: int, names: Sequence[str]) -> tuple[str, ...]:
        """The services' names, each once, which the key of that number may register.

        Raises :class:`Refused`.
        """
        # Counted first, then sorted out: that is itself the work that is to be bounded.
        if len(names) > _MOST_SERVICES:
            problem = f"{len(names):,} services; register {_MOST_SERVICES:,} at most"
            raise Refused(StatusCode.INVALID_ARGUMENT, problem)
        services = tuple(dict.fromkeys(names))
        # All names are looked at before any permission: a name that is none is the connector's
        # mistake whatever its key may do, and is told as such.
        for name in services:
            if not _is_service_name(name):
                problem = f"{name[:200]!r} is not a service name; register package.Service"
                raise Refused(StatusCode.INVALID_ARGUMENT, problem)
            if name in _OWN or name.startswith(_BELOW_OWN):
                problem = f"{name[:200]!r} is the gateway's own; no connector can register it"
                raise Refused(StatusCode.INVALID_ARGUMENT, problem)
        for name in services:
            if not self.allows(number, name):
                problem = f"the API key may not register {name[:200]!r}"
                raise Refused(StatusCode.PERMISSION_DENIED, problem)
        return services

    def mask(self, text: str) -> str:
        """``text``, which a peer chose, without any of the keys in it.

        Keys of a few characters are left in: they are found in words by chance.
        """
        for key in (self._keys or {}).values():
            text = key.mask(text)
        return text

    def __repr__(self) -> str:
        keys = self._keys
        return "ApiKeys(unchecked)" if keys is None else f"ApiKeys({len(keys)} keys)"


def _is_service_name(name: str) -> bool:
    if not 0 < len(name) <= LONGEST_SERVICE:
        return False
    return name.isprintable() and "/" not in name and " " not in name


def is_pattern(text: str) -> bool:
    """Whether ``text`` says what a key may do.

    That is a service's name, a name followed by ``.*``, or ``*``; or the same for a type of events,
    behind ``publish:`` or ``subscribe:``.
    """
    prefix, separator, event_type = text.partition(":")
    if not separator:
        return _PATTERN.fullmatch(text) is not None
    is_of_events = prefix in (_PUBLISH, _SUBSCRIBE)
    return is_of_events and _EVENT_PATTERN.fullmatch(event_type) is not None


def _matches(pattern: str, name: str) -> bool:
    # The dot before the star stays: "echo.*" is no pattern for "echoes.Echo".
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name == pattern


def _parse(given: str | Iterable[str] | Mapping[str, Iterable[str] | None]) -> list[_Key]:
    if isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        try:
            texts = [given] if isinstance(given, str) else list(given)
        except TypeError:
            problem = f"is {type(given).__name__}"
            refuse("api_keys", None, problem, "give a str, several, or a dict of keys and patterns")
        for text in texts:
            require_api_key(text, "api_keys")
        if len(set(texts)) < len(texts):
            refuse("api_keys", None, "holds a key twice", "give each key once")
        pairs = [(text, None) for text in texts]
    if not pairs:
        refuse("api_keys", None, "holds no key", "give at least one, or None to check no key")
    return [
        _Key(require_api_key(text, "api_keys").encode(), _patterns(patterns, position), Mask(text))
        for position, (text, patterns) in enumerate(pairs, 1)
    ]


def _patterns(patterns: Any, position: int) -> _Patterns | None:
    # No pattern is shown: it may be part of a key, by a slip of whoever wrote it.
    if patterns is None:
        return None
    of_which = f"of key {position} "
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        problem = f"the patterns {of_which}are {type(patterns).__name__}, not a list"
        refuse("api_keys", None, problem, 'write {"key": ["echo.*"]}')
    listed = tuple(patterns)
    if not listed:
        remedy = "give at least one, or None for everything"
        refuse("api_keys", None, f"the patterns {of_which}are none", remedy)
    for number, pattern in enumerate(listed, 1):
        if not isinstance(pattern, str) or not is_pattern(pattern):
            problem = f"pattern {number} {of_which}is not one"
            refuse("api_keys", None, problem, PATTERN_REMEDY)
    return _sorted_out(listed)


def _sorted_out(patterns: tuple[str, ...]) -> _Patterns:
    # Whoever has patterns has those rights alone: a key for a service gets to no events by it.
    behind: dict[str, list[str]] = {"": [], _PUBLISH: [], _SUBSCRIBE: []}
    for pattern in patterns:
        prefix, separator, rest = pattern.partition(":")
        behind[prefix if separator else ""].append(rest if separator else pattern)
    return _Patterns(*(tuple(each) for each in behind.values()))


class Registration(NamedTuple):
    """Who registered what: the number of the API key, and the services' names, each once.

    Then the paths of methods that stream, the services of whose methods that is not known, and
    those by which a connector tells of itself.
    """

    key: int
    services: tuple[str, ...]
    streaming: frozenset[str] = frozenset()
    mixed: frozenset[str] = frozenset()
    introspection: frozenset[str] = frozenset()


def check_registration(register: ConnectionRegister, keys: ApiKeys) -> Registration:
    """Check a ``register``: its key, and what that may register. Raises :class:`Refused`."""
    key = keys.identify(register.api_key)
    if key is None:
        raise Refused(StatusCode.UNAUTHENTICATED, "Invalid token")
    services = keys.check_services(key, register.services)
    served = frozenset(services)
    # What it does not serve changes nothing; and each name takes some memory.
    streaming = frozenset(
        path
        for path in register.streaming_methods[:_MOST_STREAMING]
        if path[1:].rpartition("/")[0] in served
    )
    mixed = served.intersection(register.mixed_services)
    own = INTROSPECTION.intersection(register.mixed_services)
    return Registration(key, services, streaming, mixed, own)
