"""The schema, against golden encodings made by an independent compilation of it."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from google.protobuf import json_format

from revconn._proto import registry_pb2

DATA = pathlib.Path(__file__).with_name("data") / "wire-vectors.json"
VECTORS = json.loads(DATA.read_text(encoding="utf-8"))["vectors"]
FIRST_EXTENSION = 100  # the number of the first field that the published schema does not have
UNKNOWN_TYPE = [vector for vector in VECTORS if vector["json"] is None]
KNOWN = [vector for vector in VECTORS if vector["json"] is not None]


def named(vectors: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("vector", vectors, ids=lambda vector: vector["name"])


def message_class(vector: dict[str, Any]) -> Any:
    package, name = vector["type"].split(".")
    assert package == registry_pb2.DESCRIPTOR.package
    return getattr(registry_pb2, name)


@named(KNOWN)
def test_golden_bytes_decode_to_their_json(vector: dict[str, Any]) -> None:
    message = message_class(vector).FromString(bytes.fromhex(vector["hex"]))
    decoded = json_format.MessageToDict(message, preserving_proto_field_name=True)
    assert decoded == vector["json"]


@named(KNOWN)
def test_golden_json_encodes_to_its_bytes(vector: dict[str, Any]) -> None:
    message = message_class(vector)()
    json_format.ParseDict(vector["json"], message)
    assert message.SerializeToString(deterministic=True).hex() == vector["hex"]


@named(UNKNOWN_TYPE)
def test_a_newer_message_type_decodes_to_an_unset_oneof(vector: dict[str, Any]) -> None:
    message = message_class(vector).FromString(bytes.fromhex(vector["hex"]))
    assert message.WhichOneof("message_type") is None
    assert message.SerializeToString().hex() == vector["hex"], "unknown fields are kept"


def test_the_vectors_cover_every_published_message_type() -> None:
    seen = {kind for vector in KNOWN for kind in vector["json"]}
    oneof = registry_pb2.ConnectionMessage.DESCRIPTOR.oneofs_by_name["message_type"]
    assert UNKNOWN_TYPE
    assert {field.name for field in oneof.fields if field.number < FIRST_EXTENSION} <= seen


def test_a_cancel_is_encoded_as_the_protocol_says() -> None:
    # Worked out by hand: field 100 holds a message of fields 1 and 2, both text.
    golden = bytes.fromhex("a206 09 0a03 723439 1202 6e6f")
    message = registry_pb2.ConnectionMessage.FromString(golden)
    assert message.WhichOneof("message_type") == "cancel"
    assert message.cancel == registry_pb2.CancelRequest(request_id="r49", reason="no")
    assert message.SerializeToString() == golden
