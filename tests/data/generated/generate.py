"""Compile notes.proto with each grpcio-tools whose servicers differ in kind from those before it.

    python tests/data/generated/generate.py              write what is here again (3.10 to 3.12)
    python tests/data/generated/generate.py 1.61 1.85    say which kind each of these writes

Every release is installed into a directory that is thrown away; wheels alone, so old releases need
an old Python. The messages are those of the oldest one: they load on every protobuf.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The first release of each kind, and what is new in it; what 1.62.0 writes all before it write.
KINDS = {
    "1.62.0": "the generic handlers alone",
    "1.63.0": "warns of an older grpcio; stubs give _registered_method",
    "1.64.0": "registers its methods by name, too",
    "1.66.0": "raises with an older grpcio",
    "1.81.0": "classes without (object)",
}


def compile_with(release: str, output: Path) -> None:
    """Have a release write the pair of modules."""
    with tempfile.TemporaryDirectory() as tools:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-compile", "--only-binary", ":all:", "--no-deps", "--target", tools]
        subprocess.run([*pip, f"grpcio-tools=={release}", "setuptools<81"], check=True)
        protoc = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{HERE}"]
        protoc += [f"--python_out={output}", f"--grpc_python_out={output}", "notes.proto"]
        subprocess.run(protoc, check=True, env={**os.environ, "PYTHONPATH": tools})


def kind_of(source: str) -> str:
    """What a release writes, without its number, its dates and how its messages are quoted."""
    source = re.sub(r"(?m)^(\w+_(?:VERSION|RELEASE|DATE)) = '.*'$", r"\1", source)
    return source.replace(" f' but the generated", " ' but the generated")


def write() -> None:
    for number, release in enumerate(KINDS):
        output = HERE / release
        output.mkdir(exist_ok=True)
        compile_with(release, output)
        messages = output / "notes_pb2.py"
        if number == 0:
            messages.replace(HERE / messages.name)
        else:
            messages.unlink()


def compare(releases: list[str]) -> None:
    kinds = {kind_of((HERE / each / "notes_pb2_grpc.py").read_text()): each for each in KINDS}
    for release in releases:
        with tempfile.TemporaryDirectory() as output:
            compile_with(f"{release}.*" if release.count(".") == 1 else release, Path(output))
            source = (Path(output) / "notes_pb2_grpc.py").read_text()
        kind = kinds.get(kind_of(source))
        print(f"{release}: {f'as {kind}, {KINDS[kind]}' if kind else 'of a kind of its own'}")


if __name__ == "__main__":
    if sys.argv[1:]:
        compare(sys.argv[1:])
    else:
        write()
