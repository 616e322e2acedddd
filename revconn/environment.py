"""A connector's options from environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from revconn.config import TLS, parse_services
from revconn.exceptions import ConfigurationError
from revconn.target import parse_targets
from revconn.validation import refuse, require_api_key

__all__ = ["KeyFile", "environment_options"]

_SWITCH = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
_TLS_FIELDS = ("ca", "cert", "key", "server_name")
_VARIABLES = {
    "targets": "TARGET",
    "services": "SERVICES",
    "api_key": "API_KEY",
    **{f"TLS({name}=)": f"TLS_{name.upper()}" for name in _TLS_FIELDS},
}


def environment_options(prefix: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of a ``Connector`` from ``PREFIX_TARGET``, ``PREFIX_API_KEY`` and so on.

    Raises :class:`ConfigurationError` naming the variable that is missing or malformed.
    """
    try:
        return _options(prefix, environ)
    except ConfigurationError as error:
        if error.name not in _VARIABLES:
            raise
        variable = prefix + _VARIABLES[error.name]
        raise ConfigurationError(variable, error.value, error.problem, error.remedy) from None


def _options(prefix: str, environ: Mapping[str, str]) -> dict[str, Any]:
    target = environ.get(prefix + "TARGET")
    if not target:
        _missing(prefix + "TARGET", "such as gateway.example.com:443")
    options: dict[str, Any] = {
        "targets": _split(target),
        "services": _split(environ.get(prefix + "SERVICES", "")),
        "api_key": _api_key(prefix, environ),
        "tls": _tls(prefix, environ),
    }
    parse_targets(options["targets"])
    parse_services(options["services"])
    return options


def _api_key(prefix: str, environ: Mapping[str, str]) -> str | KeyFile:
    path = environ.get(prefix + "API_KEY_FILE")
    if path:
        key_file = KeyFile(prefix + "API_KEY_FILE", path)
        key_file()
        return key_file
    key = environ.get(prefix + "API_KEY")
    if not key:
        _missing(prefix + "API_KEY", f"or {prefix}API_KEY_FILE to the path of a file that holds it")
    return require_api_key(key)


def _tls(prefix: str, environ: Mapping[str, str]) -> TLS | bool | None:
    switch = environ.get(prefix + "TLS", "").strip().lower()
    if switch and switch not in _SWITCH:
        refuse(prefix + "TLS", switch, "neither on nor off", "set it to on or off, or leave it out")
    chosen = _SWITCH.get(switch)
    fields: dict[str, Any] = {
        name: environ.get(f"{prefix}TLS_{name.upper()}") or None for name in _TLS_FIELDS
    }
    if not any(fields.values()):
        return chosen
    if chosen is False:
        refuse(
            prefix + "TLS", switch, "is off while TLS settings are given", "leave out one of both"
        )
    return TLS(**fields)


def _missing(variable: str, example: str) -> NoReturn:
    refuse(variable, None, "is not set", f"set it, {example}")


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


class KeyFile:
    """An API key in a file, which may change at any time: the one to show is what it holds then."""

    def __init__(self, name: str, path: str) -> None:
        self._name = name
        self._path = path

    def __call__(self) -> str:
        """The key as the file holds it now, without surrounding white space.

        Raises :class:`ConfigurationError`, in which the key is never shown.
        """
        try:
            # Bytes that are no UTF-8 become characters that no key may hold.
            with open(self._path, encoding="utf-8", errors="surrogateescape") as file:
                key = file.read()
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            reason = getattr(error, "strerror", error)
            refuse(self._name, self._path, f"cannot be read: {reason}", "give a readable text file")
        return require_api_key(key.strip(), self._name)
