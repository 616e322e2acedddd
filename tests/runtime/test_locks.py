"""How many locks one connector has: what is guarded by few is understood, and cannot deadlock."""

from __future__ import annotations

import threading
from types import MethodType, ModuleType
from typing import Any

from revconn import Connector

_LOCKS = (type(threading.Lock()), type(threading.RLock()))
_ITS_OWN = (threading.Thread, threading.Condition, threading.Event, ModuleType, type)


def locks_of(connector: Connector) -> dict[int, set[str]]:
    """The locks that are attributes of the connector's objects, with the names that they go by."""
    found: dict[int, set[str]] = {}
    seen: set[int] = set()
    waiting: list[Any] = [connector]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, _ITS_OWN):
            continue
        seen.add(id(thing))
        if isinstance(thing, MethodType):
            waiting.append(thing.__self__)
        elif isinstance(thing, dict):
            waiting += [*thing.keys(), *thing.values()]
        elif isinstance(thing, (list, tuple, set, frozenset)):
            waiting += thing
        elif type(thing).__module__.startswith("revconn"):
            for name, value in attributes(thing).items():
                if isinstance(value, _LOCKS):
                    found.setdefault(id(value), set()).add(f"{type(thing).__name__}.{name}")
                else:
                    waiting.append(value)
    return found


def attributes(thing: object) -> dict[str, object]:
    slots = {slot for kind in type(thing).__mro__ for slot in getattr(kind, "__slots__", ())}
    named = {slot: getattr(thing, slot) for slot in slots if hasattr(thing, slot)}
    return {**named, **getattr(thing, "__dict__", {})}


def test_a_connector_over_http2_has_no_more_than_eight(gateway) -> None:
    connector = Connector(gateway.address, api_key="key", transport="http2")
    connector.add_method("/echo.Echo/Say", lambda request: request.payload)
    with connector:
        peer = gateway.accept_ready()
        peer.requests("r1")
        peer.answers(1)
        names = {min(each) for each in locks_of(connector).values()}
        peer.end()
    own = names - {"DaemonExecutor._shutdown_lock"}  # the standard executor's
    assert {"Calls._lock", "Connector._lock", "Session._lock", "_Http2Stream._turn"} <= own
    assert len(own) <= 8, own
