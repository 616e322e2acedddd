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
    "environment_of_go",
]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROTOS = ROOT / "protos"
BUILD = ROOT / "build" / "interop"
BENCHMARKS = ROOT / "benchmarks" / "go"
GO_MODULE = HERE / "go"
# Neither optimized nor to be debugged: that takes half as long, and nobody measures. And as if the
# sources were anywhere, so that what is the same is compiled once.
QUICKLY = ("-gcflags=all=-N -l -dwarf=false", "-ldflags=-s -w", "-trimpath", "-buildvcs=false")
GRPC_GO = "google.golang.org/grpc"
INSTEAD_OF_XDS = {
    "xds": "package xds\n",
    "xds/googledirectpath": """package googledirectpath

import "errors"

func SetUniverseDomain(string) error { return errors.New("built without xDS") }
""",
}


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


def environment_of_go() -> dict[str, str]:
    """In which others build as quickly, and share what is compiled."""
    quickly = " ".join(f"'{flag}'" for flag in QUICKLY)
    return {"GOFLAGS": f"{os.environ.get('GOFLAGS', '')} {quickly}", "CGO_ENABLED": "0"}


def _make_go() -> None:
    for program in ("client", "streamclient", "streamconnector"):
        _go_build(program, f"./{program}")
    _go_build("connector", "./guideclient", BENCHMARKS)
    _go_build("thingateway", "./thingateway", BENCHMARKS)


def _make_grpcurl() -> None:
    _go_build_without_xds("grpcurl", "github.com/fullstorydev/grpcurl/cmd/grpcurl")


def _make_tools() -> None:
    _go_build_without_xds("ghz", "github.com/bojand/ghz/cmd/ghz")
    _go_build("grpc-health-probe", "github.com/grpc-ecosystem/grpc-health-probe")


def _make_h2spec() -> None:
    _go_build("h2spec", "github.com/summerwind/h2spec/cmd/h2spec")


def _make_grpc_interop_go() -> None:
    _go_build_without_xds("grpc-interop", "google.golang.org/grpc/interop/client")


def _make_benchmarks() -> None:
    _go_build_into(f"{BENCHMARKS.parent}/.build/", "./...", BENCHMARKS)


def _go_build_without_xds(name: str, package: str) -> None:
    """As published, with a grpc-go that has no xDS: nobody needs it, and it is half of all."""
    ours = BUILD / f"{name}-grpc-go"
    said = _run(["go", "list", "-f", "{{.Module.Dir}}", GRPC_GO], GO_MODULE)
    _copy_grpc_go(Path(said.splitlines()[-1]), ours)  # after what was downloaded
    with_ours = ours.with_suffix(".mod")
    shutil.copyfile(GO_MODULE / "go.sum", ours.with_suffix(".sum"))
    replaced = f'replace {GRPC_GO} => "{ours}"'
    module = (GO_MODULE / "go.mod").read_text(encoding="utf-8")
    with_ours.write_text(f"{module}\n{replaced}\n", encoding="utf-8")
    _go_build(name, package, GO_MODULE, f"-modfile={with_ours}")


def _copy_grpc_go(published: Path, ours: Path) -> None:
    shutil.rmtree(ours, ignore_errors=True)
    for source in (published / "go.mod", *published.rglob("*.go")):
        copy = ours / source.relative_to(published)
        if not copy.is_relative_to(ours / "xds"):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    for package, source in INSTEAD_OF_XDS.items():
        (ours / package).mkdir(parents=True)
        (ours / package / "instead.go").write_text(source, encoding="utf-8")


def _go_build(name: str, package: str, directory: Path = GO_MODULE, *flags: str) -> None:
    _go_build_into(f"{BUILD}/go/{name}", package, directory, *flags)


def _go_build_into(target: str, packages: str, directory: Path, *flags: str) -> None:
    command = ["go", "build", *QUICKLY, *flags, "-o", target, packages]
    _run(command, directory, CGO_ENABLED="0")  # without C, for the same reason


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


_GO_MODULE = (GO_MODULE / "go.mod", GO_MODULE / "go.sum")
GO = Sources("go", ("go",), (GO_MODULE, BENCHMARKS), _make_go)
GRPCURL = Sources("grpcurl", ("go",), _GO_MODULE, _make_grpcurl)
TOOLS = Sources("tools", ("go",), _GO_MODULE, _make_tools)
H2SPEC = Sources("h2spec", ("go",), _GO_MODULE, _make_h2spec)
GRPC_INTEROP_GO = Sources("grpc-interop-go", ("go",), _GO_MODULE, _make_grpc_interop_go)
# What tests/benchmarks finds built; whoever measures builds it again, optimized.
BENCHMARK_PROGRAMS = Sources("benchmarks", ("go",), (BENCHMARKS,), _make_benchmarks)
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
    for each in (*GO_PROGRAMS, BENCHMARK_PROGRAMS, NODE, *JAVA_PROGRAMS):
        if not each.missing():
            build(each)
