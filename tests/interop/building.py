"""The programs that are not written in Python: built into build/interop when a source changes.

Run as a program, it builds all whose tools are here.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "BUILD",
    "GO",
    "GO_PROGRAMS",
    "GRPCURL",
    "GRPC_INTEROP_GO",
    "GRPC_INTEROP_JAVA",
    "H2SPEC",
    "JAVA",
    "JAVA_PROGRAMS",
    "NODE",
    "PROTOS",
    "TOOLS",
    "Sources",
    "build",
]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROTOS = ROOT / "protos"
BUILD = ROOT / "build" / "interop"
BENCHMARKS = ROOT / "benchmarks" / "go"
XDS = "google.golang.org/grpc/xds"


@dataclass(frozen=True)
class Sources:
    """What one language's programs are made of: their tools, their sources, and how."""

    name: str
    tools: tuple[str, ...]
    sources: tuple[Path, ...]
    make: Callable[[], None]

    def missing(self) -> str:
        """Why it cannot be built here, or an empty string."""
        absent = [tool for tool in self.tools if shutil.which(tool) is None]
        return f"no {' or '.join(absent)} on PATH" if absent else ""


def build(what: Sources) -> None:
    """Build ``what`` unless it is built already. Raises :class:`subprocess.CalledProcessError`."""
    stamp = BUILD / f"{what.name}.stamp"
    wanted = _digest(what.sources)
    with _alone(what.name):
        if not stamp.exists() or stamp.read_text() != wanted:
            stamp.unlink(missing_ok=True)
            what.make()
            stamp.write_text(wanted)


def _make_go() -> None:
    for program in ("client", "streamclient", "streamconnector"):
        _go_build(program, f"./{program}", HERE / "go")
    _go_build("connector", "./guideclient", BENCHMARKS)
    _go_build("thingateway", "./thingateway", BENCHMARKS)


def _make_grpcurl() -> None:
    """As it is published, but without xDS: nobody needs it, and it takes a minute to compile."""
    module, command = HERE / "go", "github.com/fullstorydev/grpcurl/cmd/grpcurl"
    said = _run(["go", "list", "-f", "{{.Dir}}", command], module)
    published = Path(said.splitlines()[-1])  # after what was downloaded
    ours = BUILD / "grpcurl"
    shutil.rmtree(ours, ignore_errors=True)
    ours.mkdir(parents=True)
    for name in ("go.mod", "go.sum"):
        shutil.copyfile(module / name, ours / name)
    for source in published.glob("*.go"):
        if not source.name.endswith("_test.go"):
            text = source.read_text(encoding="utf-8")
            ours.joinpath(source.name).write_text(text.replace(f'_ "{XDS}"', ""), encoding="utf-8")
    _go_build("grpcurl", ".", ours)


def _make_tools() -> None:
    _go_build("ghz", "github.com/bojand/ghz/cmd/ghz", HERE / "go")
    _go_build("grpc-health-probe", "github.com/grpc-ecosystem/grpc-health-probe", HERE / "go")


def _make_h2spec() -> None:
    _go_build("h2spec", "github.com/summerwind/h2spec/cmd/h2spec", HERE / "go")


def _make_grpc_interop_go() -> None:
    _go_build("grpc-interop", "google.golang.org/grpc/interop/client", HERE / "go")


def _go_build(name: str, package: str, directory: Path) -> None:
    # Neither optimized nor to be debugged nor with C: that takes half as long, and nobody measures.
    flags = ["-gcflags=all=-N -l -dwarf=false", "-ldflags=-s -w", "-o", f"{BUILD}/go/{name}"]
    _run(["go", "build", *flags, package], directory, CGO_ENABLED="0")


def _make_node() -> None:
    shutil.copytree(HERE / "node", BUILD / "node", dirs_exist_ok=True)
    _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], BUILD / "node")


def _make_java() -> None:
    _maven(HERE / "java")


def _make_grpc_interop_java() -> None:
    _maven(HERE / "java-grpc-interop")


def _maven(directory: Path) -> None:
    given = os.environ.get("MAVEN_OPTS", "")
    soon_ready = f"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC {given}"
    _run(["mvn", "--quiet", "--batch-mode", "compile"], directory, MAVEN_OPTS=soon_ready)


def _run(command: list[str], directory: Path, **environment: str) -> str:
    """What a command says."""
    return subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=True,
    ).stdout


def _digest(sources: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(_files(sources)):
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files(sources: Iterable[Path]) -> Iterator[Path]:
    for source in sources:
        if source.is_dir():
            yield from (path for path in source.rglob("*") if path.is_file())
        else:
            yield source


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """No other run of the tests builds the same at the same time."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


_GO_MODULE = (HERE / "go" / "go.mod", HERE / "go" / "go.sum")
GO = Sources("go", ("go",), (HERE / "go", BENCHMARKS), _make_go)
GRPCURL = Sources("grpcurl", ("go",), _GO_MODULE, _make_grpcurl)
TOOLS = Sources("tools", ("go",), _GO_MODULE, _make_tools)
H2SPEC = Sources("h2spec", ("go",), _GO_MODULE, _make_h2spec)
GRPC_INTEROP_GO = Sources("grpc-interop-go", ("go",), _GO_MODULE, _make_grpc_interop_go)
NODE = Sources("node", ("node", "npm"), (HERE / "node", PROTOS), _make_node)
JAVA = Sources("java", ("java", "javac", "mvn"), (HERE / "java", PROTOS), _make_java)
GRPC_INTEROP_JAVA = Sources(
    "grpc-interop-java",
    ("java", "javac", "mvn"),
    (HERE / "java-grpc-interop",),
    _make_grpc_interop_java,
)

# What is built one after the other: what all of Go's import is compiled by the first.
GO_PROGRAMS = (GO, GRPCURL, TOOLS, H2SPEC, GRPC_INTEROP_GO)
JAVA_PROGRAMS = (JAVA, GRPC_INTEROP_JAVA)


if __name__ == "__main__":
    for each in (*GO_PROGRAMS, NODE, *JAVA_PROGRAMS):
        if not each.missing():
            build(each)
