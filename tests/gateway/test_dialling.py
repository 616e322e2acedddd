"""Which addresses a gateway dials for whoever holds a key, and what that one is told."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import grpc
import pytest

from revconn.gateway import dialling
from revconn.gateway.addresses import Address, is_private, lookup
from tests.gateway.test_backends import PATIENCE, SAY, register
from tests.support.backend import Backend
from tests.support.black_hole import BlackHole
from tests.support.certificates import Authority
from tests.support.waiting import eventually

PRIVATE = [
    "127.0.0.1",
    "127.255.0.9",
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "169.254.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
    "fd00:ec2::254",
    "fd00:ec2::254%1",
    "fd20:ce::254",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
]
PUBLIC = [
    "8.8.8.8",
    "10.0.0.1",
    "172.17.0.2",
    "192.168.1.1",
    "100.64.0.1",
    "2606:4700::1111",
    "fd00::1",
    "::ffff:10.0.0.1",
    "64:ff9b::808:808",
    "2002:808:808::",
]


@pytest.mark.parametrize("text", PRIVATE)
def test_what_only_the_machine_itself_should_reach_is_private(text) -> None:
    assert is_private(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_where_services_have_their_addresses_is_not_private(text) -> None:
    assert not is_private(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("127.0.0.1:1", True),
        ("https://[::1]:1", True),
        ("[::ffff:169.254.169.254]:80", True),
        ("http://localhost/", True),
        ("LOCALHOST.:1", True),
        ("a.localhost:1", True),
        ("10.0.0.1:1", False),
        ("bot-a:1", False),
        ("localhost.example:1", False),
    ],
)
def test_an_address_may_be_private_as_it_is_written(text, private) -> None:
    address = Address.parse(text)
    assert address is not None
    assert address.is_private is private


# What a name leads to


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names resolve to, for this process; all others as ever."""
    known: dict[str, list[str]] = {}

    def getaddrinfo(host: Any, port: int, *rest: Any, **more: Any) -> list[Any]:
        text = host.decode() if isinstance(host, bytes) else host
        if text not in known:
            return resolve(host, port, *rest, **more)
        if not known[text]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [info for ip in known[text] for info in resolve(ip, port, *rest, **more)]

    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def found(text: str, **options: bool) -> list[str]:
    address = Address.parse(text)
    assert address is not None
    return [str(ip) for ip in lookup(address, **{"dial_private": False, **options})]


def test_of_what_a_name_resolves_to_only_what_may_be_dialled_is_left(names) -> None:
    names["service.test"] = ["127.0.0.1", "192.0.2.1", "::1", "2001:db8::1", "192.0.2.1"]
    assert found("service.test:1") == ["192.0.2.1", "2001:db8::1"]
    assert found("service.test:1", dial_private=True)[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["127.1", "0x7f.1", "2130706433", "017700000001", "0"])
def test_a_spelling_that_only_the_resolver_knows_is_no_way_around(host) -> None:
    with pytest.raises(OSError, match="does not dial|not known"):
        found(f"{host}:1")


@pytest.mark.parametrize("host", ["a..b", "missing.test", f"{'a' * 64}.test"])
def test_a_name_that_is_none_is_not_found(host, names) -> None:
    names["missing.test"] = []
    with pytest.raises(OSError, match="not known|No address|failure"):
        found(f"{host}:1")


@pytest.mark.parametrize(
    ("ips", "order"),
    [
        (["192.0.2.1", "192.0.2.2"], ["192.0.2.1", "192.0.2.2"]),
        (["2001:db8::1", "2001:db8::2", "192.0.2.1"], ["2001:db8::1", "192.0.2.1", "2001:db8::2"]),
        (["192.0.2.1", "192.0.2.2", "2001:db8::1"], ["192.0.2.1", "2001:db8::1", "192.0.2.2"]),
    ],
)
def test_families_take_turns_behind_the_resolvers_first_choice(ips, order) -> None:
    assert [str(ip) for ip in dialling._in_order([*map(ipaddress.ip_address, ips)])] == order


@pytest.fixture
def new_backend(resources: ExitStack) -> Callable[..., Backend]:
    return lambda *args, **options: resources.enter_context(Backend(*args, **options))


def port_of(backend: Backend) -> str:
    return backend.address.rpartition(":")[2]


def test_a_private_address_is_registered_with_success_and_not_dialled(
    run_gateway, new_backend, call, caplog
) -> None:
    caplog.set_level("INFO", "revconn.gateway")
    gateway, backend = run_gateway(dial_private=False), new_backend()
    registered = register(gateway, backend.address)
    assert registered.success
    assert registered.message.startswith("registered, and not dialled")
    assert call(gateway, SAY).details() == "no connector serves echo.Echo"
    assert backend.calls.empty()
    assert f"not dialled: '{backend.address}' is a private address (dial_private)" in caplog.text


def test_a_name_that_leads_to_a_private_address_is_not_dialled(
    run_gateway, new_backend, call, names, caplog
) -> None:
    gateway, backend = run_gateway(dial_private=False), new_backend()
    names["rebound.test"] = ["127.0.0.1"]
    assert register(gateway, f"rebound.test:{port_of(backend)}").success
    failed = call(gateway, SAY)
    assert failed.code() is grpc.StatusCode.UNAVAILABLE
    assert failed.details() == "the backend of the service cannot be reached"
    assert "rebound.test is 127.0.0.1, which this gateway does not dial" in caplog.text
    assert backend.calls.empty()


def test_a_name_that_leads_elsewhere_later_is_looked_up_again_when_it_registers(
    gateway, new_backend, call, names, monkeypatch
) -> None:
    # Not by itself in the middle of this.
    monkeypatch.setattr(dialling, "_FIRST_DELAY", 60.0)
    address = f"moving.test:{port_of(new_backend())}"
    names["moving.test"] = ["127.0.0.2"]  # where nobody listens
    register(gateway, address)
    assert call(gateway, SAY).code() is grpc.StatusCode.UNAVAILABLE
    names["moving.test"] = ["127.0.0.1"]
    assert call(gateway, SAY).code() is grpc.StatusCode.UNAVAILABLE
    register(gateway, address)
    assert call(gateway, SAY, b"x").result() == b"x"


def test_a_name_that_leads_elsewhere_later_is_looked_up_again_when_its_connection_is_gone(
    gateway, new_backend, call, names
) -> None:
    first, second = new_backend(lambda *_: b"first"), "127.0.0.2"
    port = port_of(first)
    names["moving.test"] = ["127.0.0.1"]
    register(gateway, f"moving.test:{port}")
    assert call(gateway, SAY).result() == b"first"
    new_backend(lambda *_: b"second", f"{second}:{port}")
    names["moving.test"] = [second]
    assert call(gateway, SAY).result() == b"first"
    first.stop()

    def answers() -> bool:
        done = call(gateway, SAY)
        return done.code() is grpc.StatusCode.OK and done.result() == b"second"

    eventually(answers)


def test_a_name_that_is_not_found_is_looked_up_again_by_the_next_call(
    gateway, new_backend, call, names
) -> None:
    backend = new_backend()
    names["later.test"] = []
    register(gateway, f"later.test:{port_of(backend)}")
    assert call(gateway, SAY).code() is grpc.StatusCode.UNAVAILABLE
    names["later.test"] = ["127.0.0.1"]
    assert call(gateway, SAY, b"x").result() == b"x"


def test_a_backend_that_is_back_is_dialled_without_a_call_or_a_registration(
    gateway, new_backend, call, names, monkeypatch
) -> None:
    monkeypatch.setattr(dialling, "_FIRST_DELAY", 0.05)
    address = new_backend().address
    register(gateway, "127.0.0.2:" + address.rpartition(":")[2])
    register(gateway, address)
    backends = gateway._thread.shared.backends
    gone = next(each for each in backends._backends.values() if each.address.host == "127.0.0.2")
    eventually(lambda: call(gateway, SAY) and not gone.is_ready)
    new_backend(address=f"127.0.0.2:{address.rpartition(':')[2]}")
    eventually(lambda: gone.is_ready)


def test_a_backend_is_called_by_its_name_and_known_by_it_in_its_certificate(
    gateway, new_backend, call, names, monkeypatch, tmp_path, caplog
) -> None:
    authority = Authority()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path / "ca.pem")))
    backend = new_backend(credentials=authority.server())
    names["localhost"] = ["127.0.0.1"]
    register(gateway, f"https://localhost:{port_of(backend)}")
    assert call(gateway, SAY, b"x").result() == b"x"
    names["stranger.test"] = ["127.0.0.1"]
    register(gateway, f"https://stranger.test:{port_of(backend)}", "stranger.Stranger")
    assert call(gateway, "/stranger.Stranger/Say").code() is grpc.StatusCode.UNAVAILABLE
    assert "Hostname mismatch, certificate is not valid for 'stranger.test'" in caplog.text


@pytest.mark.parametrize("first", ["refuses", "does not answer"])
def test_an_address_that_is_out_of_reach_leaves_time_for_the_next(
    gateway, resources, call, names, monkeypatch, first
) -> None:
    monkeypatch.setattr(dialling, "_CONNECT_TIMEOUT", 2.0)
    if first == "refuses":
        backend = resources.enter_context(Backend(address="127.0.0.2:0"))
        port = backend.address.rpartition(":")[2]
    else:
        port = str(resources.enter_context(BlackHole()).port)
        resources.enter_context(Backend(address=f"127.0.0.2:{port}"))
    names["several.test"] = ["127.0.0.1", "127.0.0.2"]
    register(gateway, f"several.test:{port}")
    assert call(gateway, SAY, b"x").result() == b"x"


# What listens there is nobody's business


@pytest.fixture(params=["closed", "silent", "not HTTP/2", "not gRPC", "not found"])
def unreachable(request, resources: ExitStack, names) -> Iterator[str]:
    """An address at which there is no backend."""
    names["missing.test"] = []
    if request.param == "not found":
        return "missing.test:1"
    listening = resources.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
    address = f"127.0.0.1:{listening.getsockname()[1]}"
    if request.param == "closed":
        listening.close()
    elif request.param != "silent":
        # Settings and a 404; or what another protocol begins with.
        words = b"SSH-2.0-OpenSSH_9.0\r\n"
        if request.param == "not gRPC":
            settings = b"\0\0\0\4\0\0\0\0\0"
            words = settings + b"\0\0\1\1\5\0\0\0\1\x8d"  # :status 404, the end of stream 1
        thread = threading.Thread(target=serve, args=(listening, words, resources), daemon=True)
        thread.start()
    return address


def serve(listening: socket.socket, words: bytes, resources: ExitStack) -> None:
    begins, answers = (words[:9], words[9:]) if words.startswith(b"\0") else (words, b"")
    with suppress(OSError):  # the test is over
        while True:
            connection, _ = listening.accept()
            resources.callback(connection.close)
            connection.sendall(begins)
            heard = b""
            # The header that every request has, which gRPC's C core writes as it is.
            while answers and b"te\x08trailers" not in heard:
                received = connection.recv(65536)
                if not received:
                    break
                heard += received
            connection.sendall(answers)


def test_whoever_calls_is_told_the_same_of_whatever_is_no_backend(
    gateway, call, unreachable, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(dialling, "_CONNECT_TIMEOUT", 0.3)
    assert register(gateway, unreachable).success
    failed = call(gateway, SAY, timeout=PATIENCE)
    assert failed.code() is grpc.StatusCode.UNAVAILABLE
    assert failed.details() == "the backend of the service cannot be reached"
    assert f"backend {unreachable} cannot be reached: " in caplog.text


def test_a_port_that_does_not_answer_costs_half_of_the_time_at_most(
    gateway, connect, resources
) -> None:
    silent = resources.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
    register(gateway, f"127.0.0.1:{silent.getsockname()[1]}")
    connector = connect(gateway)
    connector.ask("1", SAY, timeout_seconds=1)
    response = connector.receive_response()
    assert response.status_code == 503
    assert response.error_message == "the backend of the service cannot be reached"
