"""The Go programs, built on demand into .build/."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

__all__ = ["GUIDE_CLIENT", "LOADGEN", "STREAM_LOAD", "STREAM_SERVER", "THIN_GATEWAY", "build"]

_HERE = pathlib.Path(__file__).resolve().parent
_BUILD = _HERE / ".build"
LOADGEN = _BUILD / "loadgen"
GUIDE_CLIENT = _BUILD / "guideclient"
THIN_GATEWAY = _BUILD / "thingateway"
STREAM_LOAD = _BUILD / "streamload"
STREAM_SERVER = _BUILD / "streamserver"


def build() -> str:
    """Build them all; return why that was not possible, or an empty string."""
    go = shutil.which("go")
    if go is None:
        return "no `go` on PATH"
    all_of_them = LOADGEN, GUIDE_CLIENT, THIN_GATEWAY, STREAM_LOAD, STREAM_SERVER
    programs = [f"./{program.name}" for program in all_of_them]
    command = [go, "build", "-o", f"{_BUILD}/", *programs]
    built = subprocess.run(command, cwd=_HERE / "go", capture_output=True, text=True, check=False)
    return f"go build failed: {built.stderr.strip()}" if built.returncode else ""
