"""Run the tests on every Python found, with the oldest and the newest declared dependencies.

    make matrix                            every row
    make matrix ARGS="3.9-oldest 3.13"     one row, and both rows of a Python
    make matrix ARGS=ends                  the first and the last row of those that can run,
                                           but for what `make test` runs in its own environment

Each row has an environment of its own under .matrix/. Only wheels are installed: no row may need
a compiler. Two rows run beside each other; what a row says is shown when it has ended.
"""

from __future__ import annotations

import argparse
import configparser
import pathlib
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.version import Version

from tests.interpreters import VERSIONS, find_interpreters

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".matrix"
SETS = ["oldest", "newest"]
ROWS_AT_ONCE = 2
WORKERS = 6  # of pytest, for all rows that run at once
LONGEST = 480  # seconds that a command may take: `.ci/run` is to end within ten minutes

# A row runs what a Python or a dependency can change. `make test` runs the rest: what is about
# this repository (docs, benchmarks, packaging, the tests' own tools), and what shows by other
# programs what the rooms themselves show. Of "costly" tests and of many examples likewise.
ELSEWHERE = [
    "benchmarks",
    "cli",
    "docs",
    "embedding/test_reloaders.py",
    "fuzz",
    "gateway/test_faults.py",
    "interop",
    "support",
    "test_packaging.py",
    "testing/test_plugin.py",
    "web/test_browser.py",
]


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


@dataclass(frozen=True)
class Result:
    """What became of a row; ``said`` is all that its commands wrote."""

    row: Row
    passed: bool
    outcome: str
    dependencies: str
    said: str
    seconds: float


def try_out(row: Row, only: str | None, workers: int, arguments: list[str]) -> Result:
    """Make or refresh the row's environment, and run the tests in it; or one of these."""
    started = time.monotonic()
    said: list[str] = []
    dependencies = ""
    passed, outcome = True, "prepared"
    try:
        if only != "test":
            prepare(row, said)
        dependencies = installed(row)
        if only != "prepare":
            passed, outcome = test(row, workers, arguments, said)
    except (OSError, subprocess.CalledProcessError) as error:
        passed, outcome = False, str(error)
    return Result(row, passed, outcome, dependencies, "".join(said), time.monotonic() - started)


def prepare(row: Row, said: list[str]) -> None:
    requirements = runtime_requirements(row.version)
    if not pathlib.Path(row.python).exists():
        need_success([row.interpreter, "-m", "venv", "--clear", row.environment], said)
    pip = [row.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--only-binary", ":all:", "--no-compile"]
    if row.dependencies == "oldest":
        pins = oldest_releases(requirements)
        constraints = row.environment / "constraints.txt"
        constraints.write_text("".join(f"{name}=={pins[name]}\n" for name in pins))
        pip += ["--constraint", str(constraints)]
    else:
        pip += ["--upgrade", *sorted({need.name for need in requirements})]
    need_success([*pip, "--editable", f"{ROOT}[test]"], said)
    # Compiles the tests and what they import: once, and not in every worker.
    need_success([*pytest(row), "--collect-only"], said)


def need_success(command: list[str | pathlib.Path], said: list[str]) -> None:
    """Run a command, of which nothing is shown unless it fails."""
    output: list[str] = []
    if run(command, output) != 0:
        said += output
        raise ChildProcessError(f"{command[0]} failed; see above")


def run(command: list[str | pathlib.Path], said: list[str]) -> int:
    """The exit code of a command; ``said`` gets what it wrote."""
    try:
        ran = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired as error:  # a worker that died, say, and pytest waits for it
        said.append(f"{(error.stdout or b'').decode()}\nkilled after {LONGEST} s")
        return -signal.SIGKILL
    said.append(ran.stdout.decode())
    return ran.returncode


def installed(row: Row) -> str:
    """The runtime dependencies that a row was tested with."""
    names = sorted({need.name for need in runtime_requirements(row.version)})
    script = (
        "import sys; from importlib.metadata import version\n"
        "print(', '.join(f'{name} {version(name)}' for name in sys.argv[1:]))"
    )
    return subprocess.check_output([row.python, "-c", script, *names], text=True).strip()


def pytest(row: Row) -> list[str | pathlib.Path]:
    """The command that is about what a row runs."""
    command: list[str | pathlib.Path] = [row.python, "-m", "pytest", "-p", "no:cacheprovider"]
    command += ["--color=no", "-m", "not alone and not costly"]
    return [*command, *(f"--ignore=tests/{other}" for other in ELSEWHERE)]


def test(row: Row, workers: int, arguments: list[str], said: list[str]) -> tuple[bool, str]:
    """Run the tests in the row's environment: whether they passed, and pytest's last line."""
    command = [*pytest(row), "-n", str(workers), "--hypothesis-profile=few"]
    status = run([*command, *arguments], said)
    last = said[-1].rstrip().rpartition("\n")[2].strip(" =")
    passed = status == 0 and re.search(r"\b[1-9]\d* passed\b", last) is not None
    return passed, last or f"pytest said nothing and ended with {status}"


def choose(rows: list[Row], wanted: list[str]) -> list[Row]:
    """The rows that were asked for, by name, by Python, by set, or ``ends``."""
    if not wanted:
        return rows
    if wanted == ["ends"]:
        ours = ("{}.{}".format(*sys.version_info), "newest")
        return [row for row in (rows[0], rows[-1]) if (row.version, row.dependencies) != ours]
    for name in wanted:
        if not any(name in (row.name, row.version, row.dependencies) for row in rows):
            known = " ".join(row.name for row in rows)
            raise SystemExit(f"make matrix: no row {name!r} can run here; there are: {known}")
    return [row for row in rows if {row.name, row.version, row.dependencies} & set(wanted)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make matrix", description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="such as 3.9-oldest, 3.9, oldest; or: ends")
    parser.add_argument("--only", choices=["prepare", "test"], help="a part of what is to be done")
    parser.add_argument("--pytest", default="", help="further arguments for pytest")
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

    results = {}
    chosen = choose(rows, arguments.rows)
    workers = WORKERS // min(ROWS_AT_ONCE, len(chosen))
    with ThreadPoolExecutor(ROWS_AT_ONCE) as executor:
        given = arguments.only, workers, arguments.pytest.split()
        running = [executor.submit(try_out, row, *given) for row in chosen]
        for ended in as_completed(running):
            result = ended.result()
            results[result.row] = result
            print(f"\n=== {result.row.name} ({result.row.interpreter})\n{result.said}", flush=True)

    print()
    for row in chosen:
        result = results[row]
        verdict = "ok  " if result.passed else "FAIL"
        facts = f"{result.seconds:5.0f} s  {result.dependencies}  {result.outcome}"
        print(f"{verdict} {row.name:12} {facts}")
    missing = [version for version in VERSIONS if version not in interpreters]
    if missing:
        print(f"not tested, no interpreter found: {', '.join(missing)}")
    return 0 if all(result.passed for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
