"""Calls interop connectors through gateways, as any program with grpcio would, and prints one line
of JSON for each try: its name, and what was wrong or an empty string.

usage: client.py GATEWAY-ADDRESS/CASE...
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc

from revconn._proto.demo_pb2 import HelloRequest
from revconn._proto.demo_pb2_grpc import GreeterStub

LARGEST_MESSAGE = 16 << 20
CALLS = 200
AT_ONCE = 50
FAILURE = "no such order: größer als 50 %"
TIMEOUT = 30.0

# A google.rpc.Status with nothing but its code and one detail, a StringValue "shop".
DETAILS = (
    b"\x08\x05\x1a\x39\x0a\x2ftype.googleapis.com/google.protobuf.StringValue\x12\x06\x0a\x04shop"
)


def echo(greeter: GreeterStub, name: str = "", padding: bytes = b"", **options: object) -> None:
    reply = greeter.Hello(HelloRequest(name=name, padding=padding), timeout=TIMEOUT, **options)
    assert (reply.greeting, reply.padding) == (name, padding), "something else came back"


def many_at_once(greeter: GreeterStub) -> None:
    with ThreadPoolExecutor(AT_ONCE) as callers:
        list(callers.map(partial(echo, greeter), map(str, range(CALLS))))


def trailers(greeter: GreeterStub, timeout: float, *metadata: tuple[str, str | bytes]) -> dict:
    _, call = greeter.Hello.with_call(HelloRequest(), timeout=timeout, metadata=metadata)
    return dict(call.trailing_metadata())


def in_both_directions(greeter: GreeterStub) -> None:
    trace = b"\x00\xff\x80 \n"
    came = trailers(greeter, TIMEOUT, ("echo-note", "a, b=c"), ("echo-trace-bin", trace))
    assert (came["note"], came["trace-bin"]) == ("a, b=c", trace), came


def fails(
    call: Callable[[], object], code: grpc.StatusCode, message: str | None = None
) -> grpc.RpcError:
    try:
        call()
    except grpc.RpcError as raised:
        error = raised
    else:
        raise AssertionError("it did not fail")
    assert error.code() is code, error
    assert message is None or error.details() == message, error
    return error


def failing(greeter: GreeterStub, *metadata: tuple[str, str | bytes]) -> grpc.RpcError:
    call = partial(trailers, greeter, TIMEOUT, ("interop", "fail"), *metadata)
    return fails(call, grpc.StatusCode.NOT_FOUND, FAILURE)


def details(greeter: GreeterStub) -> None:
    error = failing(greeter, ("echo-grpc-status-details-bin", DETAILS))
    came = dict(error.trailing_metadata())
    assert came["grpc-status-details-bin"] == DETAILS, came


def unknown_method(greeter: GreeterStub) -> None:
    call = partial(greeter.Goodbye, HelloRequest(), timeout=TIMEOUT)
    fails(call, grpc.StatusCode.UNIMPLEMENTED, "no such method: /demo.Greeter/Goodbye")


def unknown_service(channel: grpc.Channel) -> None:
    call = partial(channel.unary_unary("/no.Body/Home"), b"", timeout=TIMEOUT)
    fails(call, grpc.StatusCode.UNAVAILABLE, "no connector serves no.Body")


def deadline(greeter: GreeterStub) -> None:
    call = partial(trailers, greeter, 0.3, ("interop", "wait"))
    fails(call, grpc.StatusCode.DEADLINE_EXCEEDED)


def timeout_told(greeter: GreeterStub) -> None:
    seconds = trailers(greeter, 9.0, ("interop", "timeout"))["seen-timeout"]
    assert 5 <= int(seconds) <= 10, f"the connector was given {seconds} seconds of 9"


def cancel(greeter: GreeterStub) -> None:
    call = greeter.Hello.future(HelloRequest(), timeout=TIMEOUT, metadata=[("interop", "wait")])
    threading.Timer(0.2, call.cancel).start()
    try:
        call.result()
    except grpc.FutureCancelledError:
        assert call.code() is grpc.StatusCode.CANCELLED, call.code()
    else:
        raise AssertionError("it was not cancelled")


def run(address: str, case: str) -> None:
    options = [("grpc.max_receive_message_length", LARGEST_MESSAGE)]
    with grpc.insecure_channel(address, options) as channel:
        greeter = GreeterStub(channel)
        cases: dict[str, Callable[[], object]] = {
            "echo": partial(echo, greeter, "grüß dich", b"\x00\x01\xff"),
            "empty": partial(echo, greeter),
            "large": partial(echo, greeter, padding=b"x" * 10_000_000),
            "gzip": partial(echo, greeter, "y" * 1_000_000, compression=grpc.Compression.Gzip),
            "metadata": partial(in_both_directions, greeter),
            "many": partial(many_at_once, greeter),
            "error": partial(failing, greeter),
            "details": partial(details, greeter),
            "unknown method": partial(unknown_method, greeter),
            "unknown service": partial(unknown_service, channel),
            "deadline": partial(deadline, greeter),
            "timeout told": partial(timeout_told, greeter),
            "cancel": partial(cancel, greeter),
        }
        cases[case]()


def main() -> None:
    for one in sys.argv[1:]:
        problem = ""
        try:
            run(*one.split("/"))
        except Exception as error:  # noqa: BLE001 - reported
            problem = str(error) or repr(error)
        print(json.dumps({"try": one, "problem": problem}), flush=True)


if __name__ == "__main__":
    main()
