"""The two Go programs, built on demand into .build/."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

__all__ = ["GUIDE_CLIENT", "LOADGEN", "build"]

_HERE = pathlib.Path(__file__).resolve().parent
_BUILD = _HERE / ".build"
LOADGEN = _BUILD / "loadgen"
GUIDE_CLIENT = _BUILD / "guideclient"


def build() -> str:
    """Build both programs; return why that was not possible, or an empty string."""
    go = shutil.which("go")
    if go is None:
        return "no `go` on PATH"
    command = [go, "build", "-o", f"{_BUILD}/", "./loadgen", "./guideclient"]
    built = subprocess.run(command, cwd=_HERE / "go", capture_output=True, text=True, check=False)
    return f"go build failed: {built.stderr.strip()}" if built.returncode else ""
