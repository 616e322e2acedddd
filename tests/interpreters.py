"""The Python interpreters of this machine. Run as a program: the path of the newest.

They are looked for among pyenv's versions and on PATH.
"""

from __future__ import annotations

import os
import pathlib
import subprocess

VERSIONS = ["3.9", "3.10", "3.11", "3.12", "3.13"]


def find_interpreters() -> dict[str, pathlib.Path]:
    """The first working interpreter of each version."""
    on_path = [pathlib.Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep)]
    pyenv_roots = [pathlib.Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()]
    pyenv_roots += [directory.parent for directory in on_path if directory.name == "shims"]
    found = {}
    for version in VERSIONS:
        candidates = [
            candidate
            for root in pyenv_roots
            for candidate in sorted(root.glob(f"versions/{version}.*/bin/python"), reverse=True)
        ]
        candidates += [directory / f"python{version}" for directory in on_path]
        for candidate in candidates:
            if candidate.is_file() and runs(candidate, version):
                found[version] = candidate
                break
    return found


def runs(interpreter: pathlib.Path, version: str) -> bool:
    """Whether an interpreter is what its name says: a pyenv shim may lead nowhere."""
    script = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    answer = subprocess.run([interpreter, "-c", script], capture_output=True, text=True)
    return answer.returncode == 0 and answer.stdout.strip() == version


if __name__ == "__main__":
    newest = list(find_interpreters().values())[-1:]
    print(*newest)
