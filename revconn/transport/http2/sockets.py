"""The sockets of this process, which a forked child must not keep open.

Its copies would keep a connection up after the parent died, and a gateway would go on sending
requests that nobody answers.
"""

from __future__ import annotations

import os
import socket
import weakref

__all__ = ["open_socket"]

_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def open_socket(family: int) -> socket.socket:
    """A stream socket that stays the parent's when the process forks."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    _sockets.add(sock)
    return sock


def _let_go() -> None:
    """In a forked child: put a dead end in the place of each connection.

    Closing would not do: green threads go on in the child with the number of the descriptor,
    which may be another file's by then.
    """
    descriptors = [sock.fileno() for sock in _sockets if sock.fileno() >= 0]
    if not descriptors:
        return
    dead_end, other_end = os.pipe()
    os.close(other_end)
    for descriptor in descriptors:
        os.dup2(dead_end, descriptor, inheritable=False)
    os.close(dead_end)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
