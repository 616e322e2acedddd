"""What users get when they install revconn."""

from __future__ import annotations

import configparser
import email
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.message import Message

import pytest
from packaging.requirements import Requirement

import revconn
from revconn.cli import main

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGED = ["setup.py", "setup.cfg", "pyproject.toml", "LICENSE", "README.md"]
PLUGIN = "_revconn_pytest_plugin.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """A wheel, built from a copy so that nothing is left in the source tree."""
    source = tmp_path_factory.mktemp("source")
    for name in [*PACKAGED, PLUGIN]:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    for package in ("revconn", "tests"):
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"  # as pip does
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (path,) = source.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (path,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(path))


def test_the_wheel_is_pure_python_and_holds_revconn_and_its_pytest_plugin_alone(
    wheel: zipfile.ZipFile,
) -> None:
    assert str(wheel.filename).endswith("-py3-none-any.whl")
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"revconn", PLUGIN}


def test_every_module_of_the_source_tree_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "revconn").rglob("*.py")}
    assert modules | {PLUGIN} == {name for name in wheel.namelist() if name.endswith(".py")}


def test_the_types_are_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    assert {"revconn/py.typed", "revconn/_proto/registry_pb2.pyi"} <= set(wheel.namelist())


def test_the_wheel_installs_the_revconn_command(wheel: zipfile.ZipFile) -> None:
    (path,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "[console_scripts]\nrevconn = revconn.cli:main\n" in wheel.read(path).decode()


def test_the_wheel_gives_pytest_the_plugin(wheel: zipfile.ZipFile) -> None:
    (path,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "[pytest11]\nrevconn = _revconn_pytest_plugin\n" in wheel.read(path).decode()


def test_the_wheel_carries_the_license(wheel: zipfile.ZipFile, metadata: Message) -> None:
    assert "Apache-2.0" in (metadata["License"], metadata["License-Expression"])
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


def test_every_runtime_dependency_has_both_bounds(metadata: Message) -> None:
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    runtime = [need for need in requirements if "extra" not in str(need.marker)]
    bounds: dict[str, set[str]] = {}
    for need in runtime:
        bounds.setdefault(need.name, set()).update(spec.operator for spec in need.specifier)
    assert bounds == {name: {">=", "<"} for name in ("grpcio", "hpack", "protobuf", "tenacity")}


# An application that has a registry.proto of its own, in which the same names mean other things.
OTHER_SCHEMA = """
from google.protobuf import descriptor_pb2, descriptor_pool

file = descriptor_pb2.FileDescriptorProto(name="registry.proto", package="registry")
message = file.message_type.add(name="Heartbeat")
field = descriptor_pb2.FieldDescriptorProto
message.field.add(name="pulse", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
pool = descriptor_pool.Default()
pool.AddSerializedFile(file.SerializeToString())
fields = pool.FindMessageTypeByName("registry.Heartbeat").fields_by_name
assert "pulse" in fields and "timestamp" not in fields
"""
OURS = """
from revconn._proto.registry_pb2 import ConnectionMessage, Heartbeat

sent = ConnectionMessage(heartbeat=Heartbeat(timestamp=7, connection_id="id"))
received = ConnectionMessage.FromString(sent.SerializeToString())
assert received.heartbeat.timestamp == 7
"""


@pytest.mark.parametrize("script", [OTHER_SCHEMA + OURS, OURS + OTHER_SCHEMA + OURS])
def test_an_application_with_another_registry_proto_does_not_collide(script: str) -> None:
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


@pytest.mark.parametrize("script", ["import revconn", "from revconn.cli import main, serve"])
def test_neither_revconn_nor_a_serving_command_imports_what_few_need(script: str) -> None:
    script += (
        "; import sys; sys.exit(not {'grpc', 'revconn.gateway', 'multiprocessing', 'http.client'}"
        ".isdisjoint(sys.modules))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def declared_version() -> str:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup["metadata"]["version"]


def test_the_version_is_the_declared_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"revconn {revconn.__version__}\n"
    assert revconn.__version__ == declared_version()


def test_a_wheel_knows_its_version_by_what_was_installed(
    wheel: zipfile.ZipFile, tmp_path: pathlib.Path
) -> None:
    wheel.extractall(tmp_path)
    code = "import revconn; print(revconn.__version__, revconn.__file__)"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == [declared_version(), str(tmp_path / "revconn" / "__init__.py")]


def test_the_package_has_no_other_names_than_it_declares() -> None:
    with pytest.raises(AttributeError, match="module 'revconn' has no attribute 'Conector'"):
        _ = revconn.Conector
