"""Method paths, and which handler a path belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

__all__ = ["LONGEST_SERVICE", "Routes", "Wanted", "lookup_order", "split_method_path"]

LONGEST_SERVICE = 1024  # characters: a longer name is nobody's

T = TypeVar("T")


def split_method_path(path: str) -> tuple[str, str]:
    """``("package.Service", "Method")`` from a method path, with or without the first slash.

    Raises :class:`ValueError` for a path that names no service or no method.
    """
    # The reference gateway passes a method_path on as it came, with or without the first slash.
    service, slash, method = path.removeprefix("/").rpartition("/")
    if not slash or not service or not method or "/" in service:
        raise ValueError(f"not a method path: {path[:200]!r}; expected /package.Service/Method")
    return service, method


def lookup_order(service: str) -> Iterator[str]:
    """The names a service is looked up by: itself, then its dotted parents, nearest first.

    Names over ``LONGEST_SERVICE`` are left out: a peer's endless one, all dots, would keep the
    reader busy for minutes.
    """
    if len(service) > LONGEST_SERVICE:
        service = service[: LONGEST_SERVICE + 1].rpartition(".")[0]
    while service:
        yield service
        service = service.rpartition(".")[0]


class Wanted(NamedTuple):
    """A service that is called, and the names that it may have been registered by, best first."""

    service: str
    names: tuple[str, ...]

    @classmethod
    def by_connector(cls, service: str) -> Wanted:
        """Found as itself, else as a dotted parent.

        Not by its last part: a key that may call ``post.Post`` is none for ``Post``.
        """
        return cls(service, tuple(lookup_order(service)))

    @classmethod
    def by_outsider(cls, service: str) -> Wanted:
        """Found as by a connector, else by its last dotted part: ``post.Post`` finds ``Post``."""
        names = tuple(lookup_order(service))
        last = service.rpartition(".")[2]
        # As the reference gateway finds services that outside callers name. Last: a full name that
        # anybody registered goes before it.
        if last and last not in names and len(service) <= LONGEST_SERVICE:
            names += (last,)
        return cls(service, names)


class Routes(Generic[T]):
    """Handlers by method, and catch-alls by service.

    Changes need a lock of the owner's; :meth:`find` may be called by any thread meanwhile, and
    ``methods`` read, where a path as it is written finds all that have one of their own.
    """

    def __init__(self) -> None:
        self.methods: dict[str, T] = {}
        self._services: dict[str, T] = {}

    def add_method(self, path: str, handler: T, *, replace: bool = False) -> None:
        """Register one method. Raises :class:`ValueError` for a bad path.

        For a second handler too, unless it is to ``replace`` the first.
        """
        service, method = split_method_path(path)
        # With the slash, as gRPC writes a path.
        key = f"/{service}/{method}"
        if key in self.methods and not replace:
            raise ValueError(f"{path} already has a handler")
        self.methods[key] = handler

    def add_service(self, service: str, handler: T, *, replace: bool = False) -> None:
        """Register a catch-all. Raises :class:`ValueError` for a second one, as above."""
        if service in self._services and not replace:
            raise ValueError(f"{service} already has a handler")
        self._services[service] = handler

    def has_service(self, service: str) -> bool:
        """Whether it has a catch-all."""
        return service in self._services

    def discard_method(self, path: str) -> None:
        """Have one method no longer, if there is one of that path."""
        service, method = split_method_path(path)
        self.methods.pop(f"/{service}/{method}", None)

    def __bool__(self) -> bool:
        return bool(self.methods or self._services)

    def services(self) -> list[str]:
        """The names of all services that have a handler, sorted."""
        return sorted({split_method_path(path)[0] for path in self.methods} | set(self._services))

    def find(self, path: str) -> T | None:
        """The handler of a path.

        A gateway resolves a service by its dotted parents too, so a path may name a child of
        the service that was registered: the nearest parent's catch-all takes it.
        """
        # As it is written nearly always: one look-up in the hot path, and nothing is split.
        exact = self.methods.get(path)
        if exact is not None:
            return exact
        try:
            service, method = split_method_path(path)
        except ValueError:
            return None
        exact = self.methods.get(f"/{service}/{method}")
        if exact is not None:
            return exact
        for name in lookup_order(service):
            if name in self._services:
                return self._services[name]
        return None
