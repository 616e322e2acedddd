"""Reading a socket: memory in proportion to what arrives."""

from __future__ import annotations

from revconn.transport.wire import READ_BYTES, Wire


class Socket:
    """Has so many bytes for each read, and remembers how many were asked for."""

    def __init__(self, *arrived: int) -> None:
        self._arrived = list(arrived)
        self.asked: list[int] = []

    def recv(self, size: int) -> bytes:
        self.asked.append(size)
        return bytes(min(size, self._arrived.pop(0)))


def test_much_is_asked_for_only_while_much_arrives() -> None:
    socket = Socket(100, 1 << 20, 1 << 20, 100, 100)
    wire = Wire(socket)
    sizes = [len(wire.read()) for _ in range(5)]
    usual = socket.asked[0]
    assert usual < READ_BYTES
    assert socket.asked == [usual, usual, READ_BYTES, READ_BYTES, usual]
    assert sizes == [100, usual, READ_BYTES, 100, 100]
