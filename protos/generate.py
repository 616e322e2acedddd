"""Compile the schemas into revconn/_proto. Run by `make proto`; the result is committed.

grpcio-tools 1.62 is the newest whose output loads on every protobuf that setup.cfg declares.
"""

import pathlib
import re

from grpc_tools import protoc

PROTOS = pathlib.Path(__file__).resolve().parent
OUTPUT = PROTOS.parent / "revconn" / "_proto"
SCHEMAS = ["registry"]


def main():
    for schema in SCHEMAS:
        arguments = ["protoc", f"-I{PROTOS}", f"--python_out={OUTPUT}", f"--pyi_out={OUTPUT}"]
        if protoc.main([*arguments, f"{schema}.proto"]) != 0:
            raise SystemExit(f"{schema}.proto does not compile")
        use_own_pool(OUTPUT / f"{schema}_pb2.py", schema)


def use_own_pool(path, schema):
    """An application may have compiled the same schema itself: stay out of the shared pool."""
    source = path.read_text()
    source, pools = re.subn(
        r"_descriptor_pool\.Default\(\)", "_descriptor_pool.DescriptorPool()", source
    )
    source, names = re.subn(f"'{schema}_pb2'", f"'revconn._proto.{schema}_pb2'", source)
    if (pools, names) != (1, 1):
        raise SystemExit(f"{path.name}: the generator's output has changed; adapt generate.py")
    path.write_text(source)


if __name__ == "__main__":
    main()
