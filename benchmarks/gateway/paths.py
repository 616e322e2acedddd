"""The ways of a call: directly to a server, or through a gateway to a connector."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from benchmarks.golang import GUIDE_CLIENT, THIN_GATEWAY
from benchmarks.measure import line

__all__ = ["OURS", "THIN", "Path", "Programs", "Site", "stand"]

_METHOD = "/echo.Echo/Say"
_CONNECT_TIMEOUT = 10.0

OURS, THIN = "ours", "thin"


@dataclass(frozen=True)
class Path:
    """The way of a call, from outside or (``between``) from a connector of the same gateway.

    ``gateway`` is the one it goes through, ``OURS`` or ``THIN``; empty: none, it goes directly to
    a ``grpc.aio`` server. The ``connector`` that answers gets the gateway's address appended. From
    outside the calls come over so many ``channels``, each an HTTP/2 connection.
    """

    name: str
    gateway: str = ""
    connector: tuple[str, ...] = ()
    between: bool = False
    tls: bool = False
    channels: int = 1


@dataclass(frozen=True)
class Programs:
    """What a run starts. A ``gateway`` gets ``--port=N`` appended, and prints its address.

    ``replaced`` says that the gateway is none of this library's: it is given nothing but a port.
    ``go`` says that the Go programs were built. ``certificates`` is where ``cert.pem`` and
    ``key.pem`` are; ``None``: no TLS.
    """

    loadgen: tuple[str, ...]
    gateway: tuple[str, ...]
    replaced: bool = False
    go: bool = True
    certificates: pathlib.Path | None = None

    def missing(self, path: Path) -> str:
        """Why a path cannot be measured; empty where it can."""
        if not self.go and (path.gateway == THIN or path.connector[:1] == (str(GUIDE_CLIENT),)):
            return "its programs are written in Go"
        if not self.go and path.channels > 1:
            return "the load generator in Python has one channel"
        if path.tls and (self.replaced or self.certificates is None):
            return "the gateway was replaced" if self.replaced else "no certificate without Go"
        return ""

    def ours(self, *arguments: str, port: int = 0) -> tuple[str, ...]:
        """The command of the gateway; ``arguments`` are for this library's own alone."""
        own = () if self.replaced else arguments
        return (*self.gateway, *own, f"--port={port}")


@dataclass(frozen=True)
class Site:
    """A path that can be called, and the processes whose CPU time counts; the server's first."""

    path: Path
    address: str
    pids: tuple[int, ...]
    ca: pathlib.Path | None = None

    def flags(self) -> list[str]:
        """Of the load generator."""
        if self.path.between:
            return [f"--through={self.address}"]
        flags = [f"--connect={self.address}"]
        if self.path.channels > 1:
            flags.append(f"--channels={self.path.channels}")
        if self.ca is not None:
            flags.append(f"--ca={self.ca}")
        return flags


def stand(path: Path, programs: Programs, start: Callable[..., subprocess.Popen[str]]) -> Site:
    """Start what a path needs, and wait until it answers. Raises :class:`EOFError`."""
    if not path.gateway:
        server = start(sys.executable, "-m", "benchmarks.peers.aio")
        return Site(path, line(server), (server.pid,))
    ca: pathlib.Path | None = None
    tls: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()
    if path.tls:
        assert programs.certificates is not None
        ca, key = programs.certificates / "cert.pem", programs.certificates / "key.pem"
        tls, trust = (f"--certificate={ca}", f"--key={key}"), (f"--ca={ca}",)
    server = start(str(THIN_GATEWAY)) if path.gateway == THIN else start(*programs.ours(*tls))
    address = line(server)
    connected = start(*path.connector, *trust, address)
    site = Site(path, address, (server.pid, connected.pid), ca)
    _await_answer(site)
    return site


def _await_answer(site: Site) -> None:
    give_up = time.monotonic() + _CONNECT_TIMEOUT
    with _channel(site) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
        while error := _failure(call):
            if time.monotonic() > give_up:
                raise EOFError(f"{site.path.name}: no connector answers: {error}")
            time.sleep(0.02)


def _failure(call: grpc.UnaryUnaryMultiCallable[bytes, bytes]) -> str:
    """Why a call failed; empty when it was answered."""
    try:
        call(b"\x0a\x00", timeout=_CONNECT_TIMEOUT, wait_for_ready=True)
    except grpc.RpcError as error:
        return str(error)
    return ""


def _channel(site: Site) -> grpc.Channel:
    if site.ca is None:
        return grpc.insecure_channel(site.address)
    credentials = grpc.ssl_channel_credentials(site.ca.read_bytes())
    return grpc.secure_channel(site.address, credentials)
