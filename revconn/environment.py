"""A connector's options from environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, NoReturn

from revconn.config import TLS
from revconn.validation import refuse, require_api_key

__all__ = ["KeyFile", "environment_options"]

_SWITCH = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


def environment_options(prefix: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of a ``Connector`` from ``PREFIX_TARGET``, ``PREFIX_API_KEY`` and so on."""

    def variable(name: str) -> str | None:
        return environ.get(prefix + name) or None

    def missing(name: str, example: str) -> NoReturn:
        refuse(prefix + name, None, "is not set", f"set it, such as {prefix}{name}={example}")

    target = variable("TARGET") or missing("TARGET", "gateway.example.com:443")
    options: dict[str, Any] = {
        "targets": [part.strip() for part in target.split(",") if part.strip()],
        "services": tuple(
            part.strip() for part in (variable("SERVICES") or "").split(",") if part.strip()
        ),
    }
    key_file = variable("API_KEY_FILE")
    if key_file:
        options["api_key"] = KeyFile(prefix + "API_KEY_FILE", key_file)
        options["api_key"]()
    else:
        options["api_key"] = variable("API_KEY") or missing("API_KEY", "… (or API_KEY_FILE)")
    options["tls"] = _environment_tls(prefix, variable("TLS"), variable)
    return options


def _environment_tls(
    prefix: str, switch: str | None, variable: Callable[[str], str | None]
) -> TLS | bool | None:
    fields = {
        name: variable(f"TLS_{name.upper()}") for name in ("ca", "cert", "key", "server_name")
    }
    if switch is not None and switch.lower() not in _SWITCH:
        refuse(prefix + "TLS", switch, "neither on nor off", "set it to on or off, or leave it out")
    chosen = None if switch is None else _SWITCH[switch.lower()]
    if not any(fields.values()):
        return chosen
    if chosen is False:
        refuse(
            prefix + "TLS", switch, "is off while TLS settings are given", "leave out one of both"
        )
    return TLS(**fields)


class KeyFile:
    """An API key in a file, read again before every handshake, so that it can be rotated."""

    def __init__(self, name: str, path: str) -> None:
        self._name = name
        self._path = path

    def __call__(self) -> str:
        """The key as the file holds it now, without surrounding white space."""
        try:
            with open(self._path, encoding="utf-8") as file:
                return require_api_key(file.read().strip(), self._name)
        except (OSError, UnicodeDecodeError) as error:
            refuse(self._name, self._path, f"cannot be read: {error}", "give a readable text file")
