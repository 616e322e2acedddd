"""A real HTTP proxy, as a process of its own: proxy.py."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from tests.support.waiting import eventually

__all__ = ["ProxyProgram"]

_TIMEOUT = 60.0


class ProxyProgram:
    """Tunnels on loopback for whoever gives the credentials."""

    def __init__(self, directory: pathlib.Path, credentials: str) -> None:
        port_file = directory / "port"
        self._log_file = directory / "log"
        with open(directory / "output", "wb") as output:
            options = f"--hostname 127.0.0.1 --port 0 --port-file {port_file}"
            options += " --num-workers 1 --num-acceptors 1 --threaded"
            options += f" --basic-auth {credentials} --log-file {self._log_file}"
            self._process = subprocess.Popen(
                [sys.executable, "-m", "proxy", *options.split()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
            )
        port = eventually(lambda: self._look(port_file), _TIMEOUT)
        self.address = f"127.0.0.1:{port}"

    def _look(self, file: pathlib.Path) -> str:
        assert self._process.poll() is None, "the proxy did not start"
        return file.read_text().strip() if file.exists() else ""

    @property
    def log(self) -> str:
        return self._log_file.read_text() if self._log_file.exists() else ""

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(_TIMEOUT)

    def __enter__(self) -> ProxyProgram:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
