"""Run the tests on every Python found, with the oldest and the newest declared dependencies.

    make matrix                            every row
    make matrix ARGS="3.9-oldest 3.13"     one row, and both rows of a Python
    make matrix ARGS=ends                  the first and the last row of those that can run

Interpreters are looked for on PATH and among pyenv's versions. Each row has an environment of
its own under .matrix/. Only wheels are installed: no row may need a compiler.
"""

from __future__ import annotations

import argparse
import configparser
import os
import pathlib
import re
import subprocess
import sys
import time
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".matrix"
VERSIONS = ["3.9", "3.10", "3.11", "3.12", "3.13"]
SETS = ["oldest", "newest"]


@dataclass(frozen=True)
class Row:
    """One Python with one set of dependencies."""

    version: str
    dependencies: str
    interpreter: pathlib.Path

    @property
    def name(self) -> str:
        return f"{self.version}-{self.dependencies}"

    @property
    def environment(self) -> pathlib.Path:
        return ENVIRONMENTS / self.name

    @property
    def python(self) -> str:
        return str(self.environment / "bin" / "python")


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


def runtime_requirements(version: str) -> list[Requirement]:
    """What setup.cfg's install_requires asks for on a Python."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["options"]["install_requires"].strip().splitlines()
    requirements = [Requirement(line) for line in lines]
    python = {"python_version": version, "python_full_version": f"{version}.0"}
    return [need for need in requirements if need.marker is None or need.marker.evaluate(python)]


def oldest_releases(requirements: list[Requirement]) -> dict[str, Version]:
    """The lower bound of each requirement; the highest where several lines name one."""
    oldest: dict[str, Version] = {}
    for requirement in requirements:
        bounds = [Version(spec.version) for spec in requirement.specifier if spec.operator == ">="]
        if not bounds:
            raise SystemExit(f"setup.cfg: {requirement} has no lower bound (>=)")
        name = requirement.name
        oldest[name] = max([*bounds, oldest.get(name, bounds[0])])
    return oldest


def prepare(row: Row) -> None:
    """Make or refresh the row's environment."""
    requirements = runtime_requirements(row.version)
    if not pathlib.Path(row.python).exists():
        run([row.interpreter, "-m", "venv", "--clear", row.environment])
    install = [row.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install += ["--only-binary", ":all:"]
    if row.dependencies == "oldest":
        pins = oldest_releases(requirements)
        constraints = row.environment / "constraints.txt"
        constraints.write_text("".join(f"{name}=={pins[name]}\n" for name in pins))
        install += ["--constraint", str(constraints)]
    else:
        install += ["--upgrade", *sorted({need.name for need in requirements})]
    run([*install, "--editable", f"{ROOT}[test]"])


def run(command: list[str | pathlib.Path]) -> None:
    if subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode != 0:
        raise ChildProcessError(f"{command[0]} failed; see above")


def installed(row: Row) -> str:
    """The runtime dependencies that a row was tested with."""
    names = sorted({need.name for need in runtime_requirements(row.version)})
    script = (
        "import sys; from importlib.metadata import version\n"
        "print(', '.join(f'{name} {version(name)}' for name in sys.argv[1:]))"
    )
    return subprocess.check_output([row.python, "-c", script, *names], text=True).strip()


def test(row: Row, arguments: list[str]) -> tuple[bool, str]:
    """Run the tests in the row's environment: whether they passed, and pytest's last line."""
    command = [row.python, "-m", "pytest", "-p", "no:cacheprovider", "--color=no"]
    command += ["-n", "4", "--dist", "loadfile"]
    # These see little or nothing of what a row changes; `make test` runs them.
    for other in ("interop", "docs", "benchmarks", "gateway/test_faults.py"):
        command += ["--ignore", f"tests/{other}"]
    command += arguments
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip(" =\n") or last
    status = process.wait()
    passed = status == 0 and re.search(r"\b[1-9]\d* passed\b", last) is not None
    return passed, last or f"pytest said nothing and ended with {status}"


def choose(rows: list[Row], wanted: list[str]) -> list[Row]:
    """The rows that were asked for, by name, by Python, by set, or ``ends``."""
    if not wanted:
        return rows
    if wanted == ["ends"]:
        return [rows[0], rows[-1]]
    for name in wanted:
        if not any(name in (row.name, row.version, row.dependencies) for row in rows):
            known = " ".join(row.name for row in rows)
            raise SystemExit(f"make matrix: no row {name!r} can run here; there are: {known}")
    return [row for row in rows if {row.name, row.version, row.dependencies} & set(wanted)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make matrix", description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="such as 3.9-oldest, 3.9, oldest; or: ends")
    parser.add_argument("--pytest", default="-q", help="arguments for pytest (default: -q)")
    arguments = parser.parse_args()

    interpreters = find_interpreters()
    rows = [
        Row(version, dependencies, interpreters[version])
        for version in VERSIONS
        for dependencies in SETS
        if version in interpreters
    ]
    if not rows:
        raise SystemExit(f"make matrix: no Python of {', '.join(VERSIONS)} found")

    results = []
    for row in choose(rows, arguments.rows):
        print(f"\n=== {row.name} ({row.interpreter})", flush=True)
        started = time.monotonic()
        try:
            prepare(row)
            tested_with = installed(row)
            passed, outcome = test(row, arguments.pytest.split())
        except ChildProcessError as error:
            passed, outcome, tested_with = False, str(error), ""
        results.append((row, passed, outcome, tested_with, time.monotonic() - started))

    print()
    for row, passed, outcome, tested_with, seconds in results:
        verdict = "ok  " if passed else "FAIL"
        print(f"{verdict} {row.name:12} {seconds:5.0f} s  {tested_with}  {outcome}")
    missing = [version for version in VERSIONS if version not in interpreters]
    if missing:
        print(f"not tested, no interpreter found: {', '.join(missing)}")
    return 0 if all(passed for _, passed, *_ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
