"""Compile the schemas into revconn/_proto. Run by `make proto`; the result is committed.

grpcio-tools 1.62 is the newest whose output loads on every protobuf that setup.cfg declares.
"""

import pathlib
import re

from grpc_tools import protoc

PROTOS = pathlib.Path(__file__).resolve().parent
OUTPUT = PROTOS.parent / "revconn" / "_proto"
PACKAGE = "revconn._proto"


def main():
    compile_messages("registry")
    compile_messages("web")
    compile_messages("demo")
    compile_stubs("demo")


def compile_messages(schema):
    run(schema, f"--python_out={OUTPUT}", f"--pyi_out={OUTPUT}")
    # An application may have compiled the same schema itself: stay out of the shared pool.
    patch(
        OUTPUT / f"{schema}_pb2.py",
        (r"_descriptor_pool\.Default\(\)", "_descriptor_pool.DescriptorPool()"),
        (f"'{schema}_pb2'", f"'{PACKAGE}.{schema}_pb2'"),
    )


def compile_stubs(schema):
    run(schema, f"--grpc_python_out={OUTPUT}")
    patch(
        OUTPUT / f"{schema}_pb2_grpc.py",
        (f"^import {schema}_pb2 as", f"from {PACKAGE} import {schema}_pb2 as"),
    )


def run(schema, *outputs):
    if protoc.main(["protoc", f"-I{PROTOS}", *outputs, f"{schema}.proto"]) != 0:
        raise SystemExit(f"{schema}.proto does not compile")


def patch(path, *replacements):
    """Replace each pattern, which must occur exactly once."""
    source = path.read_text()
    for pattern, replacement in replacements:
        source, count = re.subn(pattern, replacement, source, flags=re.MULTILINE)
        if count != 1:
            raise SystemExit(f"{path.name}: the generator's output has changed; adapt generate.py")
    path.write_text(source)


if __name__ == "__main__":
    main()
