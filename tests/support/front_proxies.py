"""Real proxies that end TLS in front of a gateway, configured as the documentation says."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Callable, NamedTuple

from tests.docs.markdown import read_blocks
from tests.support.optional import needs_program, search_path
from tests.support.waiting import eventually

__all__ = ["FRONT_PROXIES", "FrontProxy"]

_TIMEOUT = 30.0
_PAGE = Path(__file__).parents[2] / "docs" / "howto" / "run-the-gateway.md"


class Place(NamedTuple):
    """Where a proxy listens, where the gateway does, and what it shows of itself."""

    directory: Path
    address: str
    gateway: str
    certificate: Path
    key: Path


def _documented(language: str, changes: dict[str, str]) -> str:
    """The page's one block in a language, but for addresses and paths."""
    (config,) = (block.text for block in read_blocks(_PAGE) if block.language == language)
    for there, here in changes.items():
        assert there in config, f"{_PAGE.name}: {language}: no {there!r}"
        config = config.replace(there, here)
    return config


def _nginx(place: Place) -> list[str]:
    directory = place.directory
    server = _documented(
        "nginx",
        {
            "listen 443": f"listen {place.address}",
            "127.0.0.1:50051": place.gateway,
            "/etc/ssl/gateway.pem": str(place.certificate),
            "/etc/ssl/gateway.key": str(place.key),
        },
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    config = directory / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log;\n"
        f"events {{ }}\nhttp {{ access_log off;\n{temporary}\n{server} }}\n"
    )
    return ["nginx", "-p", str(directory), "-c", str(config), "-e", str(directory / "error.log")]


def _haproxy(place: Place) -> list[str]:
    pair = place.directory / "gateway.pem"
    pair.write_bytes(place.certificate.read_bytes() + place.key.read_bytes())
    config = place.directory / "haproxy.cfg"
    changes = {
        "bind :443": f"bind {place.address}",
        "127.0.0.1:50051": place.gateway,
        "/etc/ssl/gateway.pem": str(pair),
    }
    config.write_text(_documented("haproxy", changes))
    return ["haproxy", "-db", "-f", str(config)]


def _caddy(place: Place) -> list[str]:
    tls = f"\n    bind 127.0.0.1\n    tls {place.certificate} {place.key}"
    changes = {
        "gateway.example.com {": f"https://{place.address} {{{tls}",
        "127.0.0.1:50051": place.gateway,
    }
    config = place.directory / "Caddyfile"
    config.write_text(f"{{\n    admin off\n}}\n{_documented('caddy', changes)}")
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(config)]


FRONT_PROXIES: dict[str, tuple[str, Callable[[Place], list[str]]]] = {
    "nginx": ("nginx-light", _nginx),
    "haproxy": ("haproxy", _haproxy),
    "caddy": ("caddy", _caddy),
}
"""Each program with the Debian package it is in, and how it is started."""


class FrontProxy:
    """One of them on loopback; it goes on when the gateway behind it does not."""

    def __init__(
        self, program: str, directory: Path, gateway: str, certificate: Path, key: Path
    ) -> None:
        package, configure = FRONT_PROXIES[program]
        needs_program(program, package)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port: int = free.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        name, *arguments = configure(Place(directory, self.address, gateway, certificate, key))
        executable = shutil.which(name, path=search_path())
        assert executable is not None
        self._output = directory / "output"
        with open(self._output, "wb") as output:
            self._process = subprocess.Popen(
                [executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**os.environ, "HOME": str(directory)},
            )
        try:
            eventually(self._listens, _TIMEOUT)
        except BaseException:
            self.close()
            raise

    def _listens(self) -> bool:
        assert self._process.poll() is None, self._output.read_text(errors="replace")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> FrontProxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
