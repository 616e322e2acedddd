"""Which handler serves which method, and whether in a worker or inline."""

from __future__ import annotations

from typing import Callable

from revconn.core.routing import Routes, split_method_path
from revconn.runtime.handlers import Handler
from revconn.validation import refuse, require_flag

__all__ = ["Handlers", "require_method_path"]


def require_method_path(path: str) -> tuple[str, str]:
    """The service, and the path as it is written. Raises :class:`ConfigurationError`."""
    try:
        service, method = split_method_path(path)
        named = method.isprintable() and not any(map(str.isspace, method))
    except (ValueError, AttributeError, TypeError):
        named = False
    if not named:
        refuse("path", path, "not a method path", "write /package.Service/Method")
    return service, f"/{service}/{method}"


class Handlers:
    """What a connector serves. A handler may be replaced, and its kind changed, while it serves.

    A request meets a handler of before or one of after a replacement, and an inline one only if it
    was inline when it came: ``inline`` tells whose requests run inline from now on, ``inline_ever``
    has a handler for those that are on their way there too. ``all`` are those that workers find:
    while a gateway does not read they run what inline handlers would have.

    Changes need a lock of the owner's; the routes are read by any thread meanwhile.
    """

    def __init__(self) -> None:
        self.all: Routes[Handler] = Routes()
        self.inline: Routes[Handler] = Routes()
        self.inline_ever: Routes[Handler] = Routes()

    def services(self) -> list[str]:
        """The names of all services that have a handler, sorted."""
        return self.all.services()

    def add_method(self, path: str, handler: Handler, *, inline: bool, replace: bool) -> None:
        """Serve a method. Raises :class:`ConfigurationError` for a second handler of it."""
        inline = require_flag("inline", inline)
        _add(self.all.add_method, path, handler, replace)
        if inline:
            self.inline_ever.add_method(path, handler, replace=True)
            self.inline.add_method(path, handler, replace=True)
        else:
            self.inline.discard_method(path)

    def add_service(self, name: str, handler: Handler, *, replace: bool) -> None:
        """Serve what else is called of a service. Raises as :meth:`add_method`."""
        _add(self.all.add_service, name, handler, replace)


def _add(add: Callable[..., None], name: str, handler: Handler, replace: bool) -> None:
    replace = require_flag("replace", replace)
    try:
        add(name, handler, replace=replace)
    except ValueError:
        remedy = "register each handler once, or let it take that one's place with replace=True"
        refuse("handler of", name, "there is one already", remedy)
