"""What every kind of grpcio-tools generates serves through a connector as it is."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import grpc
import pytest
from packaging.version import Version

from revconn import Connector
from revconn.gateway import Gateway
from tests.data.generated.generate import KINDS
from tests.support.connectors import TRANSPORTS

GENERATED = pathlib.Path(__file__).resolve().parents[1] / "data" / "generated"
CHECKS_GRPCIO = Version("1.63")
TIMEOUT = 30.0


@pytest.fixture(params=KINDS)
def generated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module with the servicer and the stub, as each kind of release wrote it."""
    release = Version(request.param)
    if release >= CHECKS_GRPCIO and Version(grpc.__version__) < release:
        pytest.skip(f"generated code of {release} refuses grpcio {grpc.__version__}")
    monkeypatch.syspath_prepend(GENERATED)
    path = GENERATED / request.param / "notes_pb2_grpc.py"
    spec = importlib.util.spec_from_file_location("notes_pb2_grpc", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def implement(generated: Any) -> tuple[Any, Any]:
    """A servicer that has all four methods, and the type of its messages."""
    note = importlib.import_module("notes_pb2").Note

    class Notes(generated.NotesServicer):  # type: ignore[misc]
        def Get(self, request: Any, context: Any) -> Any:
            if not request.text:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "of what?")
            context.set_trailing_metadata((("length", str(len(request.text))),))
            return note(text=request.text.upper())

        def Spell(self, request: Any, context: Any) -> Iterator[Any]:
            for letter in request.text:
                yield note(text=letter)
            if not request.text:
                context.abort(grpc.StatusCode.NOT_FOUND, "no letter")

        def Join(self, request_iterator: Iterator[Any], context: Any) -> Any:
            return note(text="+".join(each.text for each in request_iterator))

        def Echo(self, request_iterator: Iterator[Any], context: Any) -> Iterator[Any]:
            for each in request_iterator:
                yield note(text=f"{each.text}!")

    return Notes(), note


def call(stub: Any, name: str, argument: Any) -> tuple[Any, ...]:
    """What a caller of a method gets."""
    method = getattr(stub, name)
    answers = []
    outcome: Any
    try:
        if name in ("Spell", "Echo"):
            outcome = method(argument, timeout=TIMEOUT)
            answers.extend(each.text for each in outcome)
        else:
            answer, outcome = method.with_call(argument, timeout=TIMEOUT)
            answers.append(answer.text)
    except grpc.RpcError as error:
        outcome = error
    trailing = tuple(map(tuple, outcome.trailing_metadata()))
    return answers, outcome.code(), outcome.details() or "", trailing


def calls(stub: Any, note: Any) -> list[tuple[Any, ...]]:
    """What callers of all methods get, with words and without."""
    seen = []
    for text in ("abc", ""):
        seen += [call(stub, name, note(text=text)) for name in ("Get", "Spell")]
        many = [note(text=text), note(text="ü"), note(text=text)]
        seen += [call(stub, name, iter(many)) for name in ("Join", "Echo")]
    return seen


@pytest.mark.parametrize("transport", TRANSPORTS.values(), ids=TRANSPORTS)
@pytest.mark.parametrize("is_implemented", [True, False], ids=["implemented", "as generated"])
def test_a_generated_servicer_serves_as_it_does_behind_grpcs_own_server(
    generated: Any, transport: dict[str, Any], *, is_implemented: bool
) -> None:
    servicer, note = implement(generated)
    if not is_implemented:
        servicer = generated.NotesServicer()
    with ExitStack() as stack:
        server = grpc.server(ThreadPoolExecutor(4))
        generated.add_NotesServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        stack.callback(lambda: server.stop(0).wait())
        gateway = stack.enter_context(Gateway(api_keys="key"))
        connector = Connector(gateway.address, api_key="key", **transport)
        generated.add_NotesServicer_to_server(servicer, connector)
        stack.enter_context(connector)
        connector.wait_ready(TIMEOUT)
        direct, tunnelled = (
            calls(generated.NotesStub(stack.enter_context(grpc.insecure_channel(target))), note)
            for target in (f"127.0.0.1:{port}", gateway.address)
        )
    assert tunnelled == direct
    codes = {code for _, code, *_ in tunnelled}
    if is_implemented:
        ok, invalid, missing = (
            getattr(grpc.StatusCode, name) for name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND")
        )
        assert tunnelled[0] == (["ABC"], ok, "", (("length", "3"),))
        assert tunnelled[1:4] == [
            (["a", "b", "c"], ok, "", ()),
            (["abc+ü+abc"], ok, "", ()),
            (["abc!", "ü!", "abc!"], ok, "", ()),
        ]
        assert codes == {ok, invalid, missing}
    else:
        assert codes == {grpc.StatusCode.UNIMPLEMENTED}


def test_there_is_generated_code_of_every_kind() -> None:
    assert {path.parent.name for path in GENERATED.glob("*/notes_pb2_grpc.py")} == {*KINDS}
