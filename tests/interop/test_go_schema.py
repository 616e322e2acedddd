"""The Go programs speak the protocol of protos/registry.proto, not of an older one.

Their generated code is committed, because not everybody who builds them has protoc.
"""

from __future__ import annotations

import ast
import re

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from revconn._proto import registry_pb2
from tests.interop.building import BENCHMARKS

GENERATED = BENCHMARKS / "registry"


def test_the_messages_compiled_into_them_are_ours() -> None:
    source = (GENERATED / "registry.pb.go").read_text(encoding="utf-8")
    literals = source.partition("const file_registry_proto_rawDesc = ")[2].partition("\n\n")[0]
    encoded = b"".join(ast.literal_eval(f"b{text}") for text in re.findall(r'".*"', literals))
    compiled = FileDescriptorProto.FromString(encoded)
    for message in compiled.message_type:
        forget_json_names(message)
    ours = FileDescriptorProto.FromString(registry_pb2.DESCRIPTOR.serialized_pb)
    assert compiled == ours, "benchmarks/README.md says how to generate benchmarks/go/registry"


def forget_json_names(message: DescriptorProto) -> None:
    """protoc writes them for every language but Python."""
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        forget_json_names(nested)


def test_the_rpcs_they_call_are_ours() -> None:
    source = (GENERATED / "registry_grpc.pb.go").read_text(encoding="utf-8")
    called = set(re.findall(r'_FullMethodName\s*= "(.*)"', source))
    (service,) = registry_pb2.DESCRIPTOR.services_by_name.values()
    assert called == {f"/{service.full_name}/{method.name}" for method in service.methods}
