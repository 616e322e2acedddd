"""Backends: services that listen themselves, register their address, and are dialled."""

from __future__ import annotations

import threading
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from revconn._proto.registry_pb2 import (
    CancelRequest,
    ForwardRequest,
    RegisterRequest,
    RegisterResponse,
)
from revconn.core.framing import frame, unframe
from revconn.gateway import Gateway, backends
from revconn.gateway.addresses import Address
from tests.support.backend import Backend
from tests.support.certificates import Authority
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"
PATIENCE = 60.0
SOON = 20.0  # less than the gateway itself waits for a backend


def ask(gateway: Gateway, message: bytes) -> bytes:
    with grpc.insecure_channel(gateway.address) as channel:
        method = channel.unary_unary("/registry.RegistryService/Register")
        return method(message, timeout=PATIENCE)


def register(
    gateway: Gateway, address: str, *services: str, api_key: str = "key"
) -> RegisterResponse:
    names = services or ("echo.Echo",)
    request = RegisterRequest(api_key=api_key, address=address, services=names)
    return RegisterResponse.FromString(ask(gateway, request.SerializeToString()))


def refusal(gateway: Gateway, address: str, *services: str, **options: str) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as raised:
        register(gateway, address, *services, **options)
    return raised.value


@pytest.fixture
def new_backend(resources):
    return lambda *args, **options: resources.enter_context(Backend(*args, **options))


@pytest.fixture
def released(resources):
    """Set when the test is over, before backends are stopped: for those that wait."""
    event = threading.Event()
    resources.callback(event.set)
    return event


# Where calls go


def test_calls_go_to_a_registered_backend(gateway, new_backend, call) -> None:
    response = register(gateway, new_backend().address)
    assert response.success
    assert "repeat this within 120 seconds" in response.message
    assert call(gateway, SAY, b"hello").result() == b"hello"


def test_a_backend_serves_the_children_of_its_service(gateway, new_backend, call) -> None:
    register(gateway, new_backend().address)
    assert call(gateway, "/echo.Echo.Child/Say", b"x").result() == b"x"


def test_connectors_come_first(gateway, new_backend, connect, call) -> None:
    backend = new_backend()
    register(gateway, backend.address)
    connector = connect(gateway, "echo.Echo")
    pending = call(gateway, SAY)
    connector.respond(connector.receive_request().request_id, b"from the connector")
    assert pending.result() == b"from the connector"
    assert backend.calls.empty()
    connector.close()
    eventually(lambda: not gateway.connections())
    assert call(gateway, SAY, b"from the backend").result() == b"from the backend"


def test_backends_of_a_service_take_turns(gateway, new_backend, call) -> None:
    for name in (b"one", b"two"):
        register(gateway, new_backend(lambda _payload, _context, name=name: name).address)
    answers = [call(gateway, SAY).result() for _ in range(4)]
    assert sorted(answers) == [b"one", b"one", b"two", b"two"]
    assert answers[0] != answers[1]


def test_a_backend_out_of_reach_is_passed_over(gateway, new_backend, call, caplog) -> None:
    gone = new_backend()
    register(gateway, gone.address)
    gone.stop()
    failed = call(gateway, SAY)
    assert failed.code() is grpc.StatusCode.UNAVAILABLE
    assert failed.details() == "the backend of the service cannot be reached"
    assert failed.code() is call(gateway, SAY).code()
    register(gateway, new_backend().address)
    assert [call(gateway, SAY, b"x").result() for _ in range(3)] == [b"x"] * 3
    said = [text for text in caplog.messages if "cannot be reached" in text]
    assert len(said) == 1
    assert said[0].startswith(f"backend {gone.address} cannot be reached: ")


def test_what_is_registered_last_counts(gateway, new_backend, call) -> None:
    backend = new_backend()
    register(gateway, backend.address, "echo.Echo", "old.One")
    register(gateway, backend.address, "echo.Echo", "new.One")
    assert call(gateway, SAY).code() is grpc.StatusCode.OK
    assert call(gateway, "/new.One/Say").code() is grpc.StatusCode.OK
    assert call(gateway, "/old.One/Say").details() == "no connector serves old.One"


def test_a_backends_service_is_healthy(gateway, new_backend, resources) -> None:
    channel = resources.enter_context(grpc.insecure_channel(gateway.address))
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="echo.Echo")
    watch = health.Watch(request, timeout=PATIENCE)
    resources.callback(watch.cancel)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    register(gateway, new_backend().address)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING


# A call and its answer, as they are


def test_metadata_passes_both_ways_as_it_is(gateway, new_backend, call) -> None:
    def answer(payload, context):
        context.send_initial_metadata([("first", "1"), ("first", "2"), ("first-bin", b"\0\1")])
        context.set_trailing_metadata([("last", "a,b"), ("last-bin", b"\2"), ("last-bin", b"\3")])
        return payload

    backend = new_backend(answer)
    register(gateway, backend.address)
    sent = [("authorization", "Bearer x"), ("a", "1"), ("a", "2"), ("trace-bin", b"\x00\xff")]
    pending = call(gateway, SAY, metadata=sent)
    pending.result()
    first = [pair for pair in pending.initial_metadata() if pair[0].startswith("first")]
    assert first == [("first", "1"), ("first", "2"), ("first-bin", b"\0\1")]
    last = [pair for pair in pending.trailing_metadata() if pair[0].startswith("last")]
    assert last == [("last", "a,b"), ("last-bin", b"\2"), ("last-bin", b"\3")]
    came = backend.calls.get(timeout=PATIENCE).invocation_metadata()
    assert [tuple(pair) for pair in came if pair[0] in dict(sent)] == sent


def test_a_failure_passes_as_it_is(gateway, new_backend, call) -> None:
    def answer(_payload, context):
        context.set_trailing_metadata([("grpc-status-details-bin", b"\x08\x09"), ("hint", "x")])
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not größer than 50 %\n")

    register(gateway, new_backend(answer).address)
    failed = call(gateway, SAY)
    assert failed.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert failed.details() == "not größer than 50 %\n"
    trailers = dict(failed.trailing_metadata())
    assert (trailers["grpc-status-details-bin"], trailers["hint"]) == (b"\x08\x09", "x")


def test_the_callers_deadline_is_carried_over(gateway, new_backend, call) -> None:
    backend = new_backend()
    register(gateway, backend.address)
    call(gateway, SAY, timeout=7.0).result()
    assert 5.0 < backend.calls.get(timeout=PATIENCE).time_remaining() < 7.5  # rounded up


def test_a_backend_that_does_not_answer_is_given_up(
    run_gateway, new_backend, released, call
) -> None:
    gateway = run_gateway(request_timeout=0.2)
    register(gateway, new_backend(lambda *_: released.wait(PATIENCE) and b"").address)
    assert call(gateway, SAY).code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_caller_that_gives_up_cancels_the_call_at_the_backend(
    gateway, new_backend, released, call
) -> None:
    backend = new_backend(lambda *_: released.wait(PATIENCE) and b"")
    register(gateway, backend.address)
    pending = call(gateway, SAY)
    handling = backend.calls.get(timeout=PATIENCE)
    pending.cancel()
    eventually(lambda: not handling.is_active(), SOON)


def test_a_stopping_gateway_lets_a_call_be_answered(gateway, new_backend, released, call) -> None:
    backend = new_backend(lambda *_: released.wait(PATIENCE) and b"done")
    register(gateway, backend.address)
    pending = call(gateway, SAY)
    backend.calls.get(timeout=PATIENCE)
    stopping = threading.Thread(target=gateway.stop, kwargs={"grace": PATIENCE})
    stopping.start()
    released.set()
    assert pending.result() == b"done"
    stopping.join(PATIENCE)
    assert not stopping.is_alive()


# Calls of connectors


def test_a_connectors_call_reaches_a_backend(gateway, new_backend, connect) -> None:
    def answer(payload, context):
        context.set_trailing_metadata([("seen", dict(context.invocation_metadata())["note"])])
        return payload

    register(gateway, new_backend(answer).address)
    connector = connect(gateway)
    for payload in (b"\0cut", b"\x0a\x01x", frame(b"\x0a\x01x")):
        connector.send(
            request=ForwardRequest(
                request_id="1", method_path=SAY, payload=payload, headers={"note": "y"}
            )
        )
        response = connector.receive().response
        assert (response.request_id, response.status_code) == ("1", 200)
        assert response.payload == payload
        assert response.headers["seen"] == "y"
        assert response.headers["grpc-status"] == "0"
    assert unframe(response.payload) == b"\x0a\x01x"


def test_a_backends_failure_reaches_a_connector(gateway, new_backend, connect) -> None:
    def answer(_payload, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "größer")

    register(gateway, new_backend(answer).address)
    connector = connect(gateway)
    connector.send(request=ForwardRequest(request_id="1", method_path=SAY))
    response = connector.receive().response
    assert (response.status_code, response.error_message) == (404, "größer")
    assert response.headers["grpc-status"] == "5"


def test_a_payload_that_does_not_inflate_is_refused(gateway, new_backend, connect) -> None:
    register(gateway, new_backend().address)
    connector = connect(gateway)
    connector.ask("1", SAY, b"\x01" + frame(b"x")[1:])
    response = connector.receive().response
    assert (response.status_code, response.headers["grpc-status"]) == (400, "3")


@pytest.mark.parametrize("service", ["echo.Echo", "of.AConnector"])
def test_an_id_that_waits_for_a_backend_is_not_taken_twice(
    gateway, new_backend, released, connect, service
) -> None:
    register(gateway, new_backend(lambda *_: released.wait(PATIENCE) and b"").address)
    connect(gateway, "of.AConnector")
    connector = connect(gateway)
    connector.ask("1", SAY)
    connector.ask("1", f"/{service}/Say")
    response = connector.receive().response
    assert (response.status_code, response.headers["grpc-status"]) == (409, "6")
    released.set()
    assert connector.receive().response.status_code == 200


def test_a_connector_can_cancel_its_call(gateway, new_backend, released, dial) -> None:
    backend = new_backend(lambda *_: released.wait(PATIENCE) and b"")
    register(gateway, backend.address)
    connector = dial(gateway, metadata=[("revconn-features", "cancel")])
    connector.register()
    connector.send(request=ForwardRequest(request_id="1", method_path=SAY))
    handling = backend.calls.get(timeout=PATIENCE)
    connector.send(cancel=CancelRequest(request_id="1"))
    eventually(lambda: not handling.is_active(), SOON)
    eventually(lambda: gateway.connections()[0].asked == 0)


def test_a_connector_that_is_gone_gives_up_its_calls(
    gateway, new_backend, released, connect
) -> None:
    backend = new_backend(lambda *_: released.wait(PATIENCE) and b"")
    register(gateway, backend.address)
    connector = connect(gateway)
    connector.send(request=ForwardRequest(request_id="1", method_path=SAY))
    handling = backend.calls.get(timeout=PATIENCE)
    connector.close()
    eventually(lambda: not handling.is_active(), SOON)


def test_a_leaving_connector_still_gets_its_answer(gateway, new_backend, released, connect) -> None:
    backend = new_backend(lambda *_: released.wait(PATIENCE) and b"late")
    register(gateway, backend.address)
    connector = connect(gateway)
    connector.send(request=ForwardRequest(request_id="1", method_path=SAY))
    backend.calls.get(timeout=PATIENCE)
    connector.disconnect()
    released.set()
    assert connector.receive().response.payload == b"late"
    assert connector.ended()[0] is grpc.StatusCode.OK


# Who may register what, and for how long


@pytest.fixture
def backend_clock(clock, monkeypatch):
    monkeypatch.setattr(backends, "time", clock)
    return clock


def test_a_backend_that_does_not_register_again_is_forgotten(
    backend_clock, run_gateway, new_backend, call, caplog
) -> None:
    caplog.set_level("INFO", "revconn.gateway")
    gateway, backend = run_gateway(heartbeat_timeout=10.0), new_backend()
    register(gateway, backend.address)
    backend_clock.advance(9.0)
    register(gateway, backend.address)
    backend_clock.advance(9.0)
    assert call(gateway, SAY).code() is grpc.StatusCode.OK
    backend_clock.advance(1.0)
    said = f"backend {backend.address} forgotten: not registered again for 10 seconds"
    eventually(lambda: said in caplog.messages)
    assert call(gateway, SAY).code() is grpc.StatusCode.UNAVAILABLE
    assert caplog.messages.count(f"backend {backend.address} registered echo.Echo") == 1


def test_a_forgotten_backend_answers_what_it_was_asked(
    backend_clock, run_gateway, new_backend, released, call, caplog
) -> None:
    caplog.set_level("INFO", "revconn.gateway")
    gateway = run_gateway(heartbeat_timeout=10.0)
    backend = new_backend(lambda *_: released.wait(PATIENCE) and b"late")
    register(gateway, backend.address)
    pending = call(gateway, SAY)
    backend.calls.get(timeout=PATIENCE)
    backend_clock.advance(10.0)
    eventually(lambda: "forgotten" in caplog.text)
    released.set()
    assert pending.result() == b"late"


def test_a_withdrawn_keys_backends_are_forgotten(
    backend_clock, gateway, new_backend, call, caplog
) -> None:
    caplog.set_level("INFO", "revconn.gateway")
    backend = new_backend()
    register(gateway, backend.address)
    gateway.replace_keys("another-key")
    eventually(lambda: f"backend {backend.address} forgotten: its API key was" in caplog.text)
    assert call(gateway, SAY).code() is grpc.StatusCode.UNAVAILABLE


def test_a_wrong_key_registers_nothing(gateway, new_backend, call, caplog) -> None:
    refused = refusal(gateway, new_backend().address, api_key="wrong-key")
    assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
    assert refused.details() == "Invalid token"
    assert call(gateway, SAY).code() is grpc.StatusCode.UNAVAILABLE
    assert "refused a backend at ipv4:127.0.0.1:" in caplog.text
    assert "wrong-key" not in caplog.text


def test_a_key_registers_only_the_services_it_may(run_gateway, new_backend) -> None:
    gateway = run_gateway(api_keys={"key": ["echo.*"]})
    refused = refusal(gateway, new_backend().address, "echo.Echo", "bank.Bank")
    assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "bank.Bank" in refused.details()


@pytest.mark.parametrize(
    ("address", "host_port", "is_tls"),
    [
        ("host:1", "host:1", False),
        ("[::1]:50051", "[::1]:50051", False),
        ("http://bot-a:50051", "bot-a:50051", False),
        ("HTTP://bot-a/", "bot-a:80", False),
        ("https://bot-a", "bot-a:443", True),
        ("https://bot-a:8443/", "bot-a:8443", True),
        ("http://bücher.example:1", "xn--bcher-kva.example:1", False),
    ],
)
def test_what_can_be_dialled(address, host_port, is_tls) -> None:
    assert Address.parse(address) == (host_port, is_tls)


UNDIALLED = [
    "",
    "bot-a",
    "host:0",
    " host:1",
    "host:1,other:2",
    "unix:/run/some.sock",
    "unix:1234",
    "dns:///host:1",
    "user@host:1",
    "http://user@host:1",
    "http://host:1/path",
    "http:///",
    "ftp://host:1",
    "[::1",
    f"{'a' * 300}:1",
    f"{'ü' * 64}:1",
]


@pytest.mark.parametrize("address", UNDIALLED)
def test_nothing_else_can(address) -> None:
    assert Address.parse(address) is None


def test_any_address_is_registered_with_success_and_told_of_once(gateway, call, caplog) -> None:
    caplog.set_level("INFO", "revconn.gateway")
    for address in [*UNDIALLED, *("bot-a" for _ in range(20))]:
        assert register(gateway, address).success
    assert call(gateway, SAY).details() == "no connector serves echo.Echo"
    (said,) = caplog.messages
    assert said.startswith("ipv4:127.0.0.1:")
    assert said.endswith(" registered, and is not dialled: '' is not host:port")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://me:hunter2@host", "'http://***@host'"),
        ("me:hunter2@host:1", "'***@host:1'"),
        ("me:hunter2/@hunter2\n@host:1", "'***@host:1'"),
        (f"https://me:{'hunter2' * 100}@host", "'https://***@host'"),
    ],
)
def test_a_password_in_an_address_is_not_logged(gateway, caplog, address, said) -> None:
    caplog.set_level("INFO", "revconn.gateway")
    assert register(gateway, address).success
    assert "hunter2" not in caplog.text
    assert f"is not dialled: {said} is not host:port" in caplog.text


def test_a_url_is_dialled_without_its_scheme(gateway, new_backend, call) -> None:
    assert register(gateway, f"http://{new_backend().address}/").success
    assert call(gateway, SAY, b"x").result() == b"x"


def test_a_url_of_https_is_dialled_over_tls(
    gateway, new_backend, call, monkeypatch, tmp_path: Path
) -> None:
    authority = Authority()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path / "ca.pem")))
    backend = new_backend(credentials=authority.server())
    assert register(gateway, f"https://{backend.address}").success
    assert call(gateway, SAY, b"x").result() == b"x"


def test_a_host_called_unix_is_not_taken_for_a_socket(
    gateway, new_backend, call, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    local = new_backend(address="unix:1234")
    register(gateway, "unix:1234")
    assert call(gateway, SAY).code() is grpc.StatusCode.UNAVAILABLE
    assert local.calls.empty()


@pytest.mark.parametrize("name", ["", "a b", "a/b"])
def test_a_backend_registers_names_of_services(gateway, name) -> None:
    assert refusal(gateway, "host:1", name).code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_backend_without_services_is_not_dialled(gateway) -> None:
    request = RegisterRequest(api_key="key", address="host:1")
    response = RegisterResponse.FromString(ask(gateway, request.SerializeToString()))
    assert response == RegisterResponse(
        success=True,
        message="registered, and not dialled: open EstablishConnection to be called",
    )


def test_garbage_is_no_registration(gateway) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        ask(gateway, b"\xff\xff")
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_registration_that_does_not_come_is_given_up(run_gateway) -> None:
    gateway = run_gateway(handshake_timeout=0.05)
    over = threading.Event()
    with grpc.insecure_channel(gateway.address) as channel:
        method = channel.stream_unary("/registry.RegistryService/Register")
        started = method.future(iter(over.wait, True), timeout=PATIENCE)
        assert started.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        over.set()
    assert "no request came within 0.05 seconds" in started.details()
    assert gateway.stats()["refused_handshake_timeout"] == 1


def test_a_gateway_that_does_not_dial_registers_all_the_same(
    run_gateway, new_backend, call, caplog
) -> None:
    caplog.set_level("INFO", "revconn.gateway")
    gateway, backend = run_gateway(dial_backends=False), new_backend()
    for _ in range(3):
        assert register(gateway, backend.address).success
    assert call(gateway, SAY).code() is grpc.StatusCode.UNAVAILABLE
    assert backend.calls.empty()
    assert caplog.text.count("is not dialled: this gateway dials nobody") == 1
    assert refusal(gateway, "host:1", api_key="wrong").code() is grpc.StatusCode.UNAUTHENTICATED


def test_refused_registrations_are_told_of_at_first_and_then_as_a_sum(
    clock, gateway, caplog
) -> None:
    def said() -> list[str]:
        return [text for text in caplog.messages if text.startswith("refused a backend")]

    for _ in range(31):
        refusal(gateway, "host:1", api_key="wrong")
    assert len(said()) == 1
    clock.advance(60.0)
    eventually(lambda: len(said()) == 2)
    assert said()[1].endswith(": Invalid token, and 29 more in 60 s, from one address")


# Streaming methods


@pytest.mark.parametrize("answers", [[], [b"1", b"2"], [b"1", None]])
def test_a_backends_streaming_method_is_unimplemented_for_connectors_at_once(
    gateway, new_backend, released, connect, monkeypatch, answers
) -> None:
    def answer(_payload, _context):
        for each in answers:
            if each is None:
                released.wait(PATIENCE)
                return
            yield each

    monkeypatch.setattr(backends, "_END_TIMEOUT", 0.2)
    register(gateway, new_backend(answer, streams=True).address)
    connector = connect(gateway)
    connector.ask("1", SAY)
    response = connector.receive_response()
    assert (response.status_code, response.headers["grpc-status"]) == (501, "12")
    assert "only unary calls" in response.error_message


def test_a_backends_own_cancelled_is_its_answer(gateway, new_backend, call) -> None:
    def answer(_payload, context):
        context.abort(grpc.StatusCode.CANCELLED, "not today")

    register(gateway, new_backend(answer).address)
    failed = call(gateway, SAY)
    assert (failed.code(), failed.details()) == (grpc.StatusCode.CANCELLED, "not today")


def test_calls_that_wait_for_a_backend_are_pending(gateway, new_backend, released, call) -> None:
    backend = new_backend(lambda *_: released.wait(PATIENCE) and b"")
    register(gateway, backend.address)
    waiting = call(gateway, SAY)
    backend.calls.get(timeout=PATIENCE)
    assert gateway.stats()["pending"] == 1
    released.set()
    waiting.result()
    assert gateway.stats()["pending"] == 0


# Limits


def test_backends_are_limited_in_number(run_gateway, new_backend) -> None:
    gateway = run_gateway(api_keys=["key", "other"], max_connections=2, max_connections_per_key=1)
    register(gateway, "host-a:1")
    refused = refusal(gateway, "host-b:1")
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "max_connections_per_key" in refused.details()
    register(gateway, "host-a:1")
    register(gateway, "host-a:1", api_key="other")


def test_backends_are_limited_in_all(run_gateway) -> None:
    gateway = run_gateway(max_connections=1)
    register(gateway, "host-a:1")
    refused = refusal(gateway, "host-b:1")
    assert refused.details() == "1 backends are registered (the gateway's max_connections)"


@pytest.mark.parametrize("limit", ["max_pending", "max_pending_per_connection"])
def test_calls_that_wait_for_backends_are_limited(
    run_gateway, new_backend, released, call, limit
) -> None:
    gateway = run_gateway(**{limit: 1})
    backend = new_backend(lambda *_: released.wait(PATIENCE) and b"")
    register(gateway, backend.address)
    waiting = call(gateway, SAY)
    backend.calls.get(timeout=PATIENCE)
    refused = call(gateway, SAY)
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"(the gateway's {limit})" in refused.details()
    released.set()
    assert waiting.code() is grpc.StatusCode.OK


def test_calls_of_one_connector_that_wait_for_backends_are_limited(
    run_gateway, new_backend, released, connect
) -> None:
    gateway = run_gateway(max_pending_per_connection=2)
    for service in "abc":
        backend = new_backend(lambda *_: released.wait(PATIENCE) and b"")
        register(gateway, backend.address, service)
    connector = connect(gateway)
    for service in "abc":
        connector.ask(service, f"/{service}/Say")
    response = connector.receive_response()
    assert (response.request_id, response.status_code) == ("c", 429)
    assert "2 calls of its own under way (the gateway's max_pend" in response.error_message
    released.set()
    assert {connector.receive_response().status_code for _ in "ab"} == {200}


def test_a_backend_that_leads_back_to_the_gateway_is_found_out(gateway, call) -> None:
    register(gateway, gateway.address)
    failed = call(gateway, SAY)
    assert failed.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert failed.details() == "a backend of echo.Echo leads back to this gateway"


def test_a_call_goes_through_several_gateways(run_gateway, new_backend, call) -> None:
    first, second = run_gateway(), run_gateway()
    register(second, new_backend().address)
    register(first, second.address)
    assert call(first, SAY, b"x").result() == b"x"


def test_a_message_too_large_for_the_gateway_fails_alone(run_gateway, new_backend, call) -> None:
    gateway = run_gateway(max_sent_message_bytes=1000)
    register(gateway, new_backend(lambda payload, _: payload * 2).address)
    failed = call(gateway, SAY, b"x" * 600)
    assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failed.details().startswith(f"{SAY}: ")
    assert call(gateway, SAY, b"x" * 400).result() == b"x" * 800
