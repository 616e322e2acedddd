"""A second host, as far as the network is concerned: its cable can be pulled. Linux, root."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
import sys

__all__ = ["NetworkNamespace"]

_TEST_NETWORK = ipaddress.ip_network("198.18.0.0/15")  # reserved for that: RFC 2544


class NetworkNamespace:
    """A network namespace with one cable to this one.

    Raises :class:`OSError` where the system does not allow it.

    :ivar address: what programs in it listen on.
    """

    PREFIX = "rv"  # of the cable's ends

    def __init__(self) -> None:
        near, far = _subnet_of_this_process().hosts()
        self.address = str(far)
        self._near_address = str(near)
        self._name = f"revconn-{os.getpid()}"
        self._near, self._far = f"{self.PREFIX}{os.getpid()}a", f"{self.PREFIX}{os.getpid()}b"
        if sys.platform != "linux" or os.geteuid() != 0:
            raise PermissionError("network namespaces need Linux and root")
        _ip("netns", "add", self._name)
        try:
            self._lay_cable()
        except OSError:
            self.close()
            raise

    def _lay_cable(self) -> None:
        _ip("link", "add", self._near, "type", "veth", "peer", self._far, "netns", self._name)
        _ip("address", "add", f"{self._near_address}/30", "dev", self._near)
        _ip("link", "set", self._near, "up")
        _ip("-netns", self._name, "address", "add", f"{self.address}/30", "dev", self._far)
        _ip("-netns", self._name, "link", "set", "lo", "up")
        self.plug_in()

    def command(self, *command: str) -> list[str]:
        """The same command, run in the namespace."""
        return ["ip", "netns", "exec", self._name, *command]

    def pull_the_cable(self) -> None:
        """Drop every packet, both ways, and tell nobody."""
        _ip("-netns", self._name, "link", "set", self._far, "down")

    def plug_in(self) -> None:
        """Let packets through."""
        _ip("-netns", self._name, "link", "set", self._far, "up")

    def close(self) -> None:
        """Remove it, and the cable with it."""
        with contextlib.suppress(OSError):
            _ip("link", "delete", self._near)
        _ip("netns", "delete", self._name)

    def __enter__(self) -> NetworkNamespace:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _subnet_of_this_process() -> ipaddress.IPv4Network:
    offset = 4 * os.getpid() % _TEST_NETWORK.num_addresses
    return ipaddress.ip_network((int(_TEST_NETWORK.network_address) + offset, 30))


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
