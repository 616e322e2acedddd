"""A connector: gRPC's own test service, written for ``grpc.server``, on a connector as it is.

usage: grpc_interop_connector.py GATEWAY-ADDRESS API-KEY TRANSPORT MAX-MESSAGE-BYTES

What the service has to do is said in grpc's doc/interop-test-descriptions.md. One thing no servicer
for grpcio can do: learn whether a message came compressed (``expect_compressed``).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Union

import grpc

# Generated beside this program, whose directory is the first that is searched.
import grpc_interop_pb2 as pb
import grpc_interop_pb2_grpc as pb_grpc

from revconn import Connector

ECHO_INITIAL = "x-grpc-test-echo-initial"
ECHO_TRAILING = "x-grpc-test-echo-trailing-bin"
ECHO_BOTH = "google.protobuf.stringvalue-bin"  # of grpc-java's tests
STATUSES = {status.value[0]: status for status in grpc.StatusCode}

WithStatus = Union[pb.SimpleRequest, pb.StreamingOutputCallRequest]


class TestService(pb_grpc.TestServiceServicer):
    """What gRPC's interop clients call."""

    def EmptyCall(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.Empty:
        echo_metadata(context)
        return pb.Empty()

    def UnaryCall(
        self, request: pb.SimpleRequest, context: grpc.ServicerContext
    ) -> pb.SimpleResponse:
        echo_metadata(context)
        end_as_asked(request, context)
        if request.HasField("response_compressed"):
            compress(request.response_compressed.value, context)
        response = pb.SimpleResponse(payload=payload(request.response_type, request.response_size))
        if request.fill_server_id:
            response.server_id = f"connector {os.getpid()}"
        return response

    def StreamingOutputCall(
        self, request: pb.StreamingOutputCallRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamingOutputCallResponse]:
        echo_metadata(context)
        end_as_asked(request, context)
        yield from answers(request, context)

    def StreamingInputCall(
        self,
        request_iterator: Iterable[pb.StreamingInputCallRequest],
        context: grpc.ServicerContext,
    ) -> pb.StreamingInputCallResponse:
        size = sum(len(request.payload.body) for request in request_iterator)
        return pb.StreamingInputCallResponse(aggregated_payload_size=size)

    def FullDuplexCall(
        self,
        request_iterator: Iterable[pb.StreamingOutputCallRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.StreamingOutputCallResponse]:
        echo_metadata(context)
        for request in request_iterator:
            end_as_asked(request, context)
            yield from answers(request, context)

    def HalfDuplexCall(
        self,
        request_iterator: Iterable[pb.StreamingOutputCallRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.StreamingOutputCallResponse]:
        for request in list(request_iterator):
            yield from answers(request, context)


def echo_metadata(context: grpc.ServicerContext) -> None:
    came = context.invocation_metadata()
    initial = tuple((name, value) for name, value in came if name in (ECHO_INITIAL, ECHO_BOTH))
    trailing = tuple((name, value) for name, value in came if name in (ECHO_TRAILING, ECHO_BOTH))
    if initial:
        context.send_initial_metadata(initial)
    if trailing:
        context.set_trailing_metadata(trailing)


def end_as_asked(request: WithStatus, context: grpc.ServicerContext) -> None:
    if request.response_status.code:
        context.abort(STATUSES[request.response_status.code], request.response_status.message)


def answers(
    request: pb.StreamingOutputCallRequest, context: grpc.ServicerContext
) -> Iterator[pb.StreamingOutputCallResponse]:
    for wanted in request.response_parameters:
        time.sleep(wanted.interval_us / 1e6)
        if wanted.HasField("compressed"):
            compress(wanted.compressed.value, context)
        yield pb.StreamingOutputCallResponse(payload=payload(request.response_type, wanted.size))


def compress(wanted: bool, context: grpc.ServicerContext) -> None:
    if wanted:
        context.set_compression(grpc.Compression.Gzip)
    else:
        context.disable_next_message_compression()


def payload(kind: pb.PayloadType, size: int) -> pb.Payload:
    return pb.Payload(type=kind, body=bytes(size))


def main() -> None:
    address, api_key, transport, limit = sys.argv[1:]
    connector = Connector(
        address, api_key=api_key, transport=transport, max_message_bytes=int(limit)
    )
    pb_grpc.add_TestServiceServicer_to_server(TestService(), connector)
    connector.start()


if __name__ == "__main__":
    main()
