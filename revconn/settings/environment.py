"""A connector's options from environment variables."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Callable, NoReturn

from revconn.exceptions import ConfigurationError
from revconn.logger import get_logger
from revconn.settings.checks import closest, refuse, require_api_key, warn_of_readers
from revconn.settings.options import TLS, Backoff, Options, parse_services
from revconn.settings.target import parse_targets

__all__ = ["PREFIX", "VARIABLES", "KeyFile", "environment_options", "named_by_variable"]

logger = get_logger("revconn.environment")  # as users have it in their logging's configuration

PREFIX = "REVCONN_"
_KEYS_OF_A_GATEWAY = f"{PREFIX}API_KEYS"  # what `revconn gateway` reads

_SWITCH = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
_TLS_FIELDS = ("ca", "cert", "key", "server_name")
# Python itself reads more than anybody means: nan, infinity, 1_000, other scripts' digits; and
# raises a ValueError of its own for 5,000 digits.
_WHOLE = re.compile(r"[0-9]{1,18}")  # what fits into 64 bits
_DECIMAL = re.compile(r"[0-9]+(?:\.[0-9]+)?")
# By the type that a field of Options or Backoff is annotated with: what its text may be, how it is
# read, and what to say of any other. A new number is known here as soon as it is an option.
_NUMBERS: Mapping[str, tuple[re.Pattern[str], type, str]] = {
    "int": (_WHOLE, int, "write a whole number, such as 16"),
    "float": (_DECIMAL, float, "write a number, such as 30 or 0.5"),
    "int | None": (_WHOLE, int, "write a whole number, such as 16, or none"),
    "float | None": (_DECIMAL, float, "write a number, such as 30 or 0.5, or none"),
}


def _numbers_of(settings: type) -> dict[str, str]:
    fields = dataclasses.fields(settings)
    return {field.name: str(field.type) for field in fields if field.type in _NUMBERS}


_OPTION_NUMBERS = _numbers_of(Options)
_BACKOFF_NUMBERS = _numbers_of(Backoff)

# What each argument's variable is called, after the prefix.
VARIABLES: Mapping[str, str] = {
    "targets": "TARGET",
    "every_address": "EVERY_ADDRESS",
    "api_key": "API_KEY",
    "services": "SERVICES",
    "tls": "TLS",
    **{f"TLS({name}=)": f"TLS_{name.upper()}" for name in _TLS_FIELDS},
    "transport": "TRANSPORT",
    "proxy": "PROXY",
    **{name: name.upper() for name in _OPTION_NUMBERS},
    **{f"Backoff({name}=)": f"BACKOFF_{name.upper()}" for name in _BACKOFF_NUMBERS},
}
_KNOWN = (*VARIABLES.values(), "API_KEY_FILE")
# What Kubernetes sets, as NAME=VALUE, for a service that is called revconn, or revconn-gateway.
_OF_KUBERNETES = re.compile(
    r"(?:\w+_)?(?:SERVICE_HOST=|SERVICE_PORT(?:_\w+)?=|PORT=\w+://"
    r"|PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?=)"
)
_LIKENESS = 0.9  # of a name to an option's, from which on it is taken for a misspelt one


def environment_options(
    prefix: str, environ: Mapping[str, str], given: Iterable[str] = ()
) -> dict[str, Any]:
    """The arguments of a ``Connector`` from ``PREFIX_TARGET``, ``PREFIX_API_KEY`` and so on.

    The variables of those that are ``given`` otherwise are not looked at. Raises
    :class:`ConfigurationError` naming the variable that is missing, blank, malformed or unknown.
    """
    if not isinstance(prefix, str) or not prefix.strip():
        refuse("prefix", prefix, "is blank", f'give what the names begin with, such as "{PREFIX}"')
    # A misspelt name has to be noticed: what it was to set would have its default, silently.
    if prefix == PREFIX:
        _refuse_unknown(environ)
    else:
        _warn_of_misspelt(prefix, environ)
    variables = _Variables(prefix, environ)
    wanted = {name: kind for name, kind in _OPTION_NUMBERS.items() if name not in given}
    try:
        read = {name: read(variables) for name, read in _READ.items() if name not in given}
        numbers = variables.numbers(wanted)
    except ConfigurationError as error:
        raise named_by_variable(error, prefix, given) from None
    return {**{name: value for name, value in read.items() if value is not None}, **numbers}


def named_by_variable(
    error: ConfigurationError, prefix: str, given: Iterable[str] = ()
) -> ConfigurationError:
    """The error of an argument, about the variable that it came from unless it was ``given``."""
    argument = error.name.partition("(")[0].lower()  # Backoff(initial=) is in backoff
    if error.name not in VARIABLES or argument in given:
        return error
    variable = prefix + VARIABLES[error.name]
    return ConfigurationError(variable, error.value, error.problem, error.remedy)


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    """Refuse every name that is no option's: under ``REVCONN_`` nobody else reads any."""
    for rest in _unread(PREFIX, environ):
        if PREFIX + rest != _KEYS_OF_A_GATEWAY:
            nearest = closest(rest.upper(), _KNOWN)
            remedy = "unset it" if nearest is None else f"did you mean {PREFIX}{nearest}?"
            refuse(PREFIX + rest, None, "is no option of a connector", remedy)


def _warn_of_misspelt(prefix: str, environ: Mapping[str, str]) -> None:
    """Warn of names that are nearly an option's. The prefix is the user's, who may have others."""
    for rest in _unread(prefix, environ):
        if nearest := closest(rest.upper(), _KNOWN, _LIKENESS):
            logger.warning("%s%s is not used: did you mean %s%s?", prefix, rest, prefix, nearest)


def _unread(prefix: str, environ: Mapping[str, str]) -> Iterator[str]:
    """The names, after the prefix, that are no option's and not set by Kubernetes."""
    for name in sorted(environ):
        rest = name[len(prefix) :]
        if not name.startswith(prefix) or rest in _KNOWN:
            continue
        if not _OF_KUBERNETES.match(f"{rest}={environ[name]}"):
            yield rest


@dataclass(frozen=True)
class _Variables:
    prefix: str
    environ: Mapping[str, str]

    def text(self, name: str) -> str | None:
        """What ``PREFIX_name`` holds, without white space around it; ``None`` if not set."""
        value = self.environ.get(self.prefix + name)
        if value is None:
            return None
        # Blank is not unset: a template that filled in nothing, say, opened a gateway to every key.
        if not value.replace(",", "").strip():
            refuse(self.prefix + name, value, "is set but blank", "unset it, or give it a value")
        return value.strip()

    def several(self, name: str) -> tuple[str, ...] | None:
        """What ``PREFIX_name`` holds, separated by commas."""
        text = self.text(name)
        if text is None:
            return None
        return tuple(part.strip() for part in text.split(",") if part.strip())

    def numbers(self, kinds: Mapping[str, str], lead: str = "") -> dict[str, Any]:
        """The numbers that are set, by their names in ``kinds``, which says what each may be."""
        texts = {name: self.text(lead + name.upper()) for name in kinds}
        return {
            name: self._number(lead + name.upper(), text, kinds[name])
            for name, text in texts.items()
            if text is not None
        }

    def _number(self, name: str, text: str, kind: str) -> float | None:
        if kind.endswith("None") and text.lower() == "none":
            return None
        pattern, read, remedy = _NUMBERS[kind]
        if not pattern.fullmatch(text):
            refuse(self.prefix + name, text, "not a number", remedy)
        value: float = read(text)
        return value

    def switch(self, name: str) -> bool | None:
        """Whether ``PREFIX_name`` says on or off."""
        text = self.text(name)
        if text is None:
            return None
        if text.lower() not in _SWITCH:
            refuse(
                self.prefix + name, text, "neither on nor off", "set it to on or off, or unset it"
            )
        return _SWITCH[text.lower()]

    def missing(self, name: str, problem: str, example: str) -> NoReturn:
        refuse(self.prefix + name, None, problem, f"set it, {example}")


def _targets(variables: _Variables) -> tuple[str, ...]:
    targets = variables.several("TARGET")
    if targets is None:
        variables.missing("TARGET", "is not set", "such as gateway.example.com:443")
    parse_targets(targets)  # for what it raises, which is about this variable
    return targets


def _every_address(variables: _Variables) -> bool | None:
    return variables.switch("EVERY_ADDRESS")


def _api_key(variables: _Variables) -> str | KeyFile:
    path, key = variables.text("API_KEY_FILE"), variables.text("API_KEY")
    name = variables.prefix + "API_KEY"
    if path is not None:
        if key is not None:
            refuse(name, None, f"is set, and so is {name}_FILE", "unset one of them")
        key_file = KeyFile(f"{name}_FILE", path)
        key_file()  # a wrong path is told of at once, and not by a handshake that fails
        return key_file
    if key is None:
        of_a_gateway = _KEYS_OF_A_GATEWAY in variables.environ
        hint = f" ({_KEYS_OF_A_GATEWAY} is for a gateway)" if of_a_gateway else ""
        example = f"or {name}_FILE to the path of a file that holds it"
        variables.missing("API_KEY", f"is not set{hint}", example)
    # As it stands there, not stripped: white space may be part of a key, and a newline is refused
    # with what to do about it.
    return require_api_key(variables.environ[name])


def _services(variables: _Variables) -> tuple[str, ...] | None:
    services = variables.several("SERVICES")
    return None if services is None else parse_services(services)


def _tls(variables: _Variables) -> TLS | bool | None:
    chosen = variables.switch("TLS")
    fields: dict[str, Any] = {name: variables.text(f"TLS_{name.upper()}") for name in _TLS_FIELDS}
    if not any(fields.values()):
        return chosen
    # Neither is obeyed: somebody means the connection to be encrypted, and somebody does not.
    if chosen is False:
        problem = "is off while TLS settings are given"
        refuse(variables.prefix + "TLS", "off", problem, "leave out one of both")
    return TLS(**fields)


def _transport(variables: _Variables) -> str | None:
    return variables.text("TRANSPORT")


def _proxy(variables: _Variables) -> str | bool | None:
    proxy = variables.text("PROXY")
    return None if proxy is None else _SWITCH.get(proxy.lower(), proxy)


def _backoff(variables: _Variables) -> Backoff | None:
    numbers = variables.numbers(_BACKOFF_NUMBERS, "BACKOFF_")
    return Backoff(**numbers) if numbers else None


# The arguments that are more than a number; each is read as None where nothing is set.
_READ: Mapping[str, Callable[[_Variables], Any]] = {
    "targets": _targets,
    "every_address": _every_address,
    "services": _services,
    "api_key": _api_key,
    "tls": _tls,
    "transport": _transport,
    "proxy": _proxy,
    "backoff": _backoff,
}


class KeyFile:
    """An API key in a file, which may change at any time: the one to show is what it holds then."""

    def __init__(self, name: str, path: str) -> None:
        self._name = name
        self._path = path

    def __call__(self) -> str:
        """The key as the file holds it now, without surrounding white space.

        Raises :class:`ConfigurationError`, in which the key is never shown.
        """
        # By its path each time: a key that is rotated is another file there, most often.
        try:
            # Bytes that are no UTF-8 become characters that no key may hold.
            with open(self._path, encoding="utf-8", errors="surrogateescape") as file:
                warn_of_readers(self._name, self._path, file.fileno())
                key = file.read()
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            reason = getattr(error, "strerror", error)
            refuse(self._name, self._path, f"cannot be read: {reason}", "give a readable text file")
        return require_api_key(key.strip(), self._name)
