"""What a caller says in HTTP/1.1: good requests mostly, and what passes for one elsewhere."""

from __future__ import annotations

from tests.fuzz.tape import Tape

__all__ = ["SaidHttp1"]

_METHODS = (b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE")
_TARGETS = (b"/", b"/a?b=%00", b"*", b"http://a/x", b"/" + b"x" * 3_000)
_HEADERS = (
    b"X-A: 1", b"Cookie: a=b", b"Accept: */*", b"X-Empty:", b"Connection: x-a", b"Te: trailers",
    b"Upgrade: websocket\r\nConnection: upgrade", b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
    b"Content-Type: application/grpc", b"Content-Type: application/grpc-web+proto",
    b"X-Large: " + b"y" * 5_000, b"grpc-timeout: 1S", b"Connection: keep-alive",
)  # fmt: skip
_BAD_LINES = (
    b"Content-Length: 5", b"Content-Length: 0, 5", b"Content-Length: +5", b"Content-Length: 1e1",
    b"Content-Length: " + b"9" * 30, b"Content-Length:", b"Content-Length : 5",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: x",
    b"Transfer-Encoding:\x0bchunked", b"Host: b", b"Host: user@a/b", b" folded: line", b"\tfolded",
    b"no colon", b"X: a\0b", b"X: a\rb", b": nameless", b"X\xff: 1", b"X: \xff", b"Expect: x",
    b"X-Huge: " + b"z" * 40_000, b"X: 1\r\n" * 300 + b"Y: 2", b"Connection: close",
    b"Expect: 100-continue", b"grpc-timeout: x", b"Proxy: http://a",
)  # fmt: skip
_FIRST_LINES = (
    b"GET / HTTP/1.0", b"GET / HTTP/2.0", b"GET / HTTP/3", b"GET /", b"PRI * HTTP/2.0", b"GET  /",
    b"CONNECT a:1 HTTP/1.1", b"GE(T / HTTP/1.1", b"GET /a b HTTP/1.1", b"GET http://[a/ HTTP/1.1",
    b"GET http:// HTTP/1.1", b"GET x HTTP/1.1", b"G" * 20_000, b"\x16\x03\x01\x02\0\1", b"",
    b"GET /\xff HTTP/1.1", b"get / http/1.1", b"GET\t/\tHTTP/1.1",
)  # fmt: skip
_CHUNKS = (
    b"zz\r\nab\r\n", b"-1\r\na\r\n", b"0x1\r\na\r\n", b"1\r\nabc\r\n", b"f" * 30 + b"\r\na",
    b"1;" + b"e" * 9_000 + b"\r\na\r\n", b"1\na\n", b"0\n\n", b"1 \r\na\r\n", b"\r\n",
    b"ffffff\r\n",
    b"0\r\nX: trailer\r\n\r\n", b"0\r\nContent-Length: 9\r\n\r\n", b"1;\0\r\na\r\n",
)  # fmt: skip
_SPLICES = (b"\0", b"\n", b"\r", b"\r\n", b"\r\n ", b"\r\n\r\n", b" ", b"\xff", b":", b"")
_SIZES = (0, 1, 5, 1_000, 70_000)


class SaidHttp1:
    """One caller's words, request by request.

    :ivar good: requests that were whole and right, before anything else was said.
    """

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self.good = 0
        self._is_good = True

    def next(self) -> bytes:
        """A request, some of them at once, or something else."""
        tape = self._tape
        choice = tape.number(31)
        if choice < 14:
            return self._good()
        if choice < 18:
            return b"".join(self._good() for _ in range(tape.of((2, 3, 20))))
        if choice < 20:
            return self._continued()
        self._is_good = False
        if choice < 28:
            return self._nearly()
        if choice == 28:
            return tape.bytes(60)
        if choice == 29:
            return tape.of((b"\r\n", b"\n", b"a", b"\r")) * tape.of((1, 100, 200_000))
        if choice == 30:
            return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n" + bytes(300_000)
        return self._chunked_without_end()

    def _good(self) -> bytes:
        tape = self._tape
        lines = [self._first_line(), b"Host: a"]
        lines += [tape.of(_HEADERS) for _ in range(tape.number(2))]
        body = self._framed(lines)
        self.good += self._is_good
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    def _first_line(self) -> bytes:
        return b"%b %b HTTP/1.1" % (self._tape.of(_METHODS), self._tape.of(_TARGETS))

    def _framed(self, lines: list[bytes]) -> bytes:
        tape = self._tape
        choice = tape.number(3)
        if choice < 2:
            return b""
        body = b"b" * tape.of(_SIZES)
        if choice == 2:
            lines.append(b"Content-Length: %d" % len(body))
            return body
        lines.append(b"Transfer-Encoding: chunked")
        size = max(tape.of((1, 7, 1_000)), len(body) // 100)
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n"

    def _continued(self) -> bytes:
        """A body that is sent whether it was asked for or not: the connection may end with it."""
        self._is_good = False
        head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        return head + self._tape.of((b"", b"hello", b"he"))

    def _nearly(self) -> bytes:
        """A request with something wrong in it, and one behind it that nobody may take for one."""
        tape = self._tape
        lines = [self._first_line(), b"Host: a"]
        body = self._framed(lines)
        for _ in range(tape.number(2)):
            lines.insert(1 + tape.number(len(lines) - 1), tape.of(_BAD_LINES))
        if tape.one_in(6):
            lines[0] = tape.of(_FIRST_LINES)
        if tape.one_in(6):
            body = tape.of(_CHUNKS) + body
        end = tape.of((b"\r\n", b"\r\n", b"\r\n", b"\n"))
        said = end.join(lines) + end + end + body
        if tape.one_in(3):
            at = tape.number(max(0, len(said) - 1))
            said = said[:at] + tape.of(_SPLICES) + said[at + tape.number(2) :]
        if tape.one_in(4):
            said = said[: tape.number(max(0, len(said) - 1))]
        return said

    def _chunked_without_end(self) -> bytes:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head + self._tape.of((b"1\r\na\r\n", b"1;e=f\r\na\r\n")) * self._tape.of((1, 20_000))
