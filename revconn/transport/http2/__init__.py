"""Streams over a socket and h2: the fast transport."""

from revconn.transport.http2.stream import Http2Transport

__all__ = ["Http2Transport"]
