"""``python -m tests.gateway.attacks.attacking MODULE.ATTACK ADDRESS OPTIONS``: one attack.

It goes on until stdin ends. On stdout are "ready", once it is at its worst, and at the end what
came of it, as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import sys
import threading
import time
from collections import Counter
from typing import Any

from tests.gateway.attacks.wire import Client

__all__ = ["Attack"]

_CALM = 11  # ENHANCE_YOUR_CALM
_RETRY = 0.01  # seconds after an address could not be connected to
# It is about the gateway, not about how two cores are shared: with as much of them as the attacker
# would take, everybody else is slow, whatever the gateway does.
_NICE = 10


class Attack:
    """One attack under way: the attacker's connections, and what came of them.

    :ivar report: ``sent`` counts what the attack consists of; ``connections`` how many there were,
        ``ended`` those that the gateway ended, ``calmed`` those of them with ENHANCE_YOUR_CALM.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.report: Counter[str] = Counter()
        self._clients: list[Client] = []
        self._over = threading.Event()
        self._began = time.monotonic()
        self._is_ready = False
        threading.Thread(target=self._listen, name="attack-stdin", daemon=True).start()

    def _listen(self) -> None:
        sys.stdin.read()
        self._over.set()

    def going(self) -> bool:
        """Whether it is to go on."""
        return not self._over.is_set()

    def ready(self) -> None:
        """It is at its worst."""
        if not self._is_ready:
            self._is_ready = True
            print("ready", flush=True)

    def count(self, number: int = 1) -> None:
        """So much of the attack was sent."""
        self.report["sent"] += number

    def pace(self, per_second: float) -> None:
        """Wait until no more than that has been sent since it began."""
        ahead = self.report["sent"] / per_second - (time.monotonic() - self._began)
        if ahead > 0:
            self._over.wait(ahead)

    def connect(self, kind: type[Client] = Client, **options: Any) -> Client | None:
        """A new connection; ``None`` if there is none to be had, after a moment."""
        try:
            client = kind(self.address, self.going, **options)
        except OSError:
            self.report["unconnected"] += 1
            self._over.wait(_RETRY)
            return None
        self.report["connections"] += 1
        self._clients.append(client)
        return client

    def connections(self, count: int, kind: type[Client] = Client, **options: Any) -> list[Any]:
        """So many new ones, or as many as there are to be had."""
        made = [self.connect(kind, **options) for _ in range(count) if self.going()]
        return [client for client in made if client is not None]

    def hold(self, *, seconds: float | None = None) -> None:
        """Do nothing but read, for so long or until the end."""
        self.ready()
        end = None if seconds is None else time.monotonic() + seconds
        while self.going() and (end is None or time.monotonic() < end):
            self.read_all(0.02)

    def read_all(self, wait: float = 0.0) -> None:
        """Take in what came on any connection."""
        poll = select.poll()  # of descriptors beyond 1,024, too
        by_descriptor = {}
        for client in self._clients:
            if not client.is_over and client.reads:
                by_descriptor[client.socket.fileno()] = client
                poll.register(client.socket, select.POLLIN)
        for descriptor, _ in poll.poll(1000 * wait):
            by_descriptor[descriptor].read()

    def finish(self, client: Client) -> None:
        """That connection has had its turn: note what came of it."""
        if client in self._clients:
            self._clients.remove(client)
            self.report["ended"] += client.is_over
            self.report["calmed"] += client.goaway == _CALM
            self.report["resets"] += sum(client.resets.values())
        client.close()

    def end(self) -> None:
        """Say what came of it all."""
        for client in list(self._clients):
            if client.reads:
                client.read()  # why it was over
            self.finish(client)
        print(json.dumps(self.report), flush=True)


def main() -> None:
    name, address, options = sys.argv[1:]
    module, _, function = name.partition(".")
    os.nice(_NICE)
    attack = Attack(address)
    begin = getattr(importlib.import_module(f"tests.gateway.attacks.{module}"), function)
    begin(attack, **json.loads(options))
    attack.end()


if __name__ == "__main__":
    main()
