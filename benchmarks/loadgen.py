"""The load generator for machines without Go: slower, with the same flags and output.

See go/loadgen/main.go for what it prints. Against the faster peers this one is the bottleneck:
they wait for it, and pay for a wake-up per message where they would take many at once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
)

METHOD_PATH = "/echo.Echo/Say"
CALLING_SERVICE = "benchmark.Caller"  # which nobody calls
CONNECTION_ID = "6f0f1f9e-3c59-4f0c-9d6e-2b1a7c5d8e43"
HEADERS = {"content-type": "application/grpc", "te": "trailers", "user-agent": "grpc-python"}
CONNECT_TIMEOUT = 10.0
DRAIN_TIMEOUT = 5.0
STATIC_WINDOW = 1 << 20
READING_TIME = 0.2  # a peer may end with its stream: it is looked at before


class Meter:
    """The measured window, and what was seen in it. List appends are the only shared writes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.measuring = False
        self.over = False
        self.latencies: list[float] = []
        self.errors: list[str] = []
        self.heartbeats = 0
        self.lateness = 0.0

    def run(self) -> None:
        time.sleep(self._options.warmup)
        emit({"event": "window-start"})
        started, cpu = time.perf_counter(), time.process_time()
        self.measuring = True
        time.sleep(self._options.seconds)
        self.measuring, self.over = False, True
        self._seconds = time.perf_counter() - started
        self._cpu = time.process_time() - cpu
        emit({"event": "window-end"})
        time.sleep(READING_TIME)

    def answered(self, latency: float) -> None:
        if self.measuring:
            self.latencies.append(latency)

    def result(self) -> dict[str, object]:
        latencies = sorted(self.latencies) or [0.0]
        return {
            "event": "result",
            "requests": len(self.latencies),
            "seconds": self._seconds,
            "requests_per_second": len(self.latencies) / self._seconds,
            "p50_seconds": latencies[int(0.50 * (len(latencies) - 1))],
            "p99_seconds": latencies[int(0.99 * (len(latencies) - 1))],
            "errors": len(self.errors),
            "first_error": self.errors[0] if self.errors else "",
            "cpu_seconds": self._cpu,
            "heartbeats": self.heartbeats,
            "heartbeat_lateness_seconds": self.lateness,
        }


class Driver:
    """Requests in flight on one reverse connection; its stream's two threads share ``_pending``."""

    def __init__(self, options: argparse.Namespace, payload: bytes, meter: Meter) -> None:
        self._options = options
        self._payload = payload
        self._meter = meter
        self._pending: dict[str, float] = {}
        self._ids = str(uuid.uuid4())[8:]  # no other process's: ids are to be unique everywhere
        self._free: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.connected = threading.Event()
        self.drained = threading.Event()

    def establish(
        self, messages: Iterator[ConnectionMessage], context: grpc.ServicerContext
    ) -> Iterator[ConnectionMessage]:
        if not next(messages).register.services:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "register first, with a service")
        status = ConnectionStatus(
            status=ConnectionStatus.CONNECTED, connection_id=CONNECTION_ID, message="welcome"
        )
        yield ConnectionMessage(status=status)
        yield from self._requests(messages)

    def call_through(
        self, establish: grpc.StreamStreamMultiCallable[ConnectionMessage, ConnectionMessage]
    ) -> None:
        """Be a connector, which calls another one. It sends no heartbeat."""
        ready = threading.Event()
        messages: Iterator[ConnectionMessage]

        def outgoing() -> Iterator[ConnectionMessage]:
            register = ConnectionRegister(api_key="benchmark", services=[CALLING_SERVICE])
            yield ConnectionMessage(register=register)
            ready.wait()
            yield from self._requests(messages)

        messages = establish(outgoing(), wait_for_ready=True)
        if not next(messages).status.connection_id:
            raise SystemExit("the gateway gave no connection id")
        ready.set()

    def _requests(self, messages: Iterator[ConnectionMessage]) -> Iterator[ConnectionMessage]:
        threading.Thread(target=self._receive, args=(messages,), daemon=True).start()
        self.connected.set()
        for number in itertools.count():
            if number >= self._options.in_flight:
                self._free.get()
            request = ForwardRequest(
                request_id=f"{number:08x}{self._ids}",
                method_path=METHOD_PATH,
                headers=HEADERS,
                payload=self._payload,
                timeout_seconds=30,
            )
            self._pending[request.request_id] = time.perf_counter()
            yield ConnectionMessage(request=request)

    def _receive(self, messages: Iterator[ConnectionMessage]) -> None:
        last_beat = time.monotonic()
        try:
            for message in messages:
                kind = message.WhichOneof("message_type")
                if kind == "response":
                    self._check(message.response)
                elif kind == "heartbeat" and message.heartbeat.connection_id == CONNECTION_ID:
                    last_beat = self._beat(last_beat)
                    self._meter.heartbeats += 1
                else:
                    self._meter.errors.append(f"unexpected {kind}")
                if self._meter.over and not self._pending:
                    break
        except grpc.RpcError as error:
            self._meter.errors.append(f"the peer's stream ended: {error!r}")
        self._meter.errors.extend("never answered" for _ in self._pending)
        self._beat(last_beat)
        self.drained.set()

    def _check(self, response: ForwardResponse) -> None:
        sent_at = self._pending.pop(response.request_id, None)
        if sent_at is None:
            self._meter.errors.append(f"unknown request id {response.request_id!r}")
            return
        self._meter.answered(time.perf_counter() - sent_at)
        if response.status_code != 200 or response.payload != self._payload:
            self._meter.errors.append(f"status {response.status_code}: {response.error_message}")
        if not self._meter.over:
            self._free.put(True)

    def _beat(self, last_beat: float) -> float:
        now = time.monotonic()
        late = now - last_beat - self._options.heartbeat_interval
        self._meter.lateness = max(self._meter.lateness, late)
        return now


def drive_connector(options: argparse.Namespace, payload: bytes, meter: Meter) -> None:
    driver = Driver(options, payload, meter)
    server = grpc.server(ThreadPoolExecutor(max_workers=2), options=_windows(options))
    handler = grpc.stream_stream_rpc_method_handler(
        driver.establish,
        request_deserializer=ConnectionMessage.FromString,
        response_serializer=ConnectionMessage.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "registry.RegistryService", {"EstablishConnection": handler}
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    emit({"event": "listening", "address": f"127.0.0.1:{port}"})
    _measure(driver, meter, lambda: server.stop(grace=None))


def call_connector(options: argparse.Namespace, payload: bytes, meter: Meter) -> None:
    driver = Driver(options, payload, meter)
    with grpc.insecure_channel(options.through, options=_windows(options)) as channel:
        driver.call_through(
            channel.stream_stream(
                "/registry.RegistryService/EstablishConnection",
                request_serializer=ConnectionMessage.SerializeToString,
                response_deserializer=ConnectionMessage.FromString,
            )
        )
        _measure(driver, meter, channel.close)


def _measure(driver: Driver, meter: Meter, give_up: Callable[[], object]) -> None:
    if not driver.connected.wait(CONNECT_TIMEOUT):
        raise SystemExit(f"no connector registered within {CONNECT_TIMEOUT} s")
    meter.run()
    if not driver.drained.wait(DRAIN_TIMEOUT):
        give_up()
        driver.drained.wait()


def call_server(options: argparse.Namespace, payload: bytes, meter: Meter) -> None:
    def repeat() -> None:
        while not meter.over:
            started = time.perf_counter()
            try:
                answer = say(payload, timeout=CONNECT_TIMEOUT, wait_for_ready=True)
            except grpc.RpcError as error:
                meter.errors.append(repr(error))
                return
            meter.answered(time.perf_counter() - started)
            if answer != payload:
                meter.errors.append("wrong payload")

    with _channel(options) as channel:
        say: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD_PATH)
        callers = [threading.Thread(target=repeat) for _ in range(options.in_flight)]
        for caller in callers:
            caller.start()
        meter.run()
        for caller in callers:
            caller.join()


def _channel(options: argparse.Namespace) -> grpc.Channel:
    if not options.ca:
        return grpc.insecure_channel(options.connect, options=_windows(options))
    credentials = grpc.ssl_channel_credentials(pathlib.Path(options.ca).read_bytes())
    return grpc.secure_channel(options.connect, credentials, options=_windows(options))


def _windows(options: argparse.Namespace) -> list[tuple[str, int]]:
    """grpc's own windows, which it adapts with pings, or one that stays as it is."""
    if options.dynamic_windows:
        return []
    return [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", STATIC_WINDOW)]


def emit(event: dict[str, object]) -> None:
    print(json.dumps(event), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connect", default="")
    parser.add_argument("--through", default="")
    parser.add_argument("--ca", default="")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--payload", type=int, default=64)
    parser.add_argument("--warmup", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--heartbeat-interval", type=float, default=1.0)
    parser.add_argument("--dynamic-windows", action="store_true")
    options = parser.parse_args()
    # Begins like a protobuf: 0x00 or 0x01 would be taken for gRPC's prefix.
    payload = (b"\x0a" + b"x" * options.payload)[: options.payload]
    meter = Meter(options)
    if options.connect:
        drive = call_server
    else:
        drive = call_connector if options.through else drive_connector
    drive(options, payload, meter)
    emit(meter.result())


if __name__ == "__main__":
    main()
