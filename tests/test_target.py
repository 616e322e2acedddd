from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.exceptions import ConfigurationError
from revconn.settings.target import Target, parse_targets
from tests.support.texts import texts

PORTS = st.integers(min_value=1, max_value=65535)
HOST_NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,5}){0,3}", fullmatch=True)


@given(HOST_NAMES, PORTS)
def test_a_host_name_and_a_port_are_read(host: str, port: int) -> None:
    target = Target.parse(f"{host}:{port}")
    assert (target.host, target.port) == (host, port)
    assert str(target) == target.address == f"{host}:{port}"


@given(st.ip_addresses(v=6), PORTS)
def test_an_ipv6_address_is_read_from_its_brackets(
    address: ipaddress.IPv6Address, port: int
) -> None:
    target = Target.parse(f"[{address}]:{port}")
    assert (target.host, target.port) == (str(address), port)
    assert target.is_loopback == address.is_loopback


@given(st.ip_addresses(v=4), PORTS)
def test_an_ipv4_address_is_loopback_in_its_whole_block(
    address: ipaddress.IPv4Address, port: int
) -> None:
    target = Target.parse(f"{address}:{port}")
    assert target.is_loopback == str(address).startswith("127.")


@given(texts())
def test_any_text_is_a_target_or_a_configuration_error(text: str) -> None:
    try:
        target = Target.parse(text)
    except ConfigurationError:
        return
    assert target.address == text.strip()
    assert target.port is None or 1 <= target.port <= 65535
    assert isinstance(target.is_loopback, bool)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("gateway.example.com:443", "gateway.example.com", 443),
        ("  gateway:1 ", "gateway", 1),
        ("my_host:65535", "my_host", 65535),
        ("bücher.example:443", "bücher.example", 443),
        ("dns:///gateway:50051", "gateway", 50051),
        ("dns:///[2001:db8::1]:50051", "2001:db8::1", 50051),
        ("[fe80::1%eth0]:50051", "fe80::1%eth0", 50051),
        ("unix:/run/gateway.sock", "localhost", None),
        ("unix:gateway.sock", "localhost", None),
    ],
)
def test_every_form_of_an_address_is_read(text: str, host: str, port: int | None) -> None:
    target = Target.parse(text)
    assert (target.host, target.port) == (host, port)
    assert target.address == text.strip()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not an address"),
        ("   ", "not an address"),
        (None, "not an address"),
        (50051, "not an address"),
        (b"gateway:50051", "not an address"),
        ("gateway\n.example.com:443", "not an address"),
        ("unix:/run/\x00", "not an address"),
        ("gateway \udcff:443", "not an address"),
        ("https://gateway.example.com:443", "a URL, not an address"),
        ("gateway.example.com", "not host:port"),
        (":443", "not host:port"),
        ("gateway:", "not host:port"),
        ("gateway:https", "not host:port"),
        ("gateway:-1", "not host:port"),
        ("gateway:443/path", "not host:port"),
        ("gateway:４４３", "not host:port"),
        ("user@gateway:443", "not host:port"),
        ("one:443,two:443", "not host:port"),
        ("::1:50051", "not host:port"),
        ("unix:", "not host:port"),
        ("gateway:0", "port 0 does not exist"),
        ("gateway:65536", "port 65536 does not exist"),
        ("[127.0.0.1]:443", "127.0.0.1 is not an IPv6 address"),
        ("[gateway]:443", "gateway is not an IPv6 address"),
        ("[fe80::1%]:443", "fe80::1% is not an IPv6 address"),
    ],
)
def test_what_is_no_address_is_refused_with_its_problem_and_a_remedy(
    text: object, problem: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Target.parse(text)
    assert caught.value.name == "targets"
    assert caught.value.value is text
    assert problem in str(caught.value)
    assert text is None or repr(text) in str(caught.value)
    assert "host:port" in caught.value.remedy or "65535" in caught.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        "localhost:1",
        "LocalHost:1",
        "127.0.0.1:1",
        "127.8.9.10:1",
        "[::1]:1",
        "unix:/s",
        "dns:///localhost:1",
        "localhost.:1",
    ],
)
def test_an_address_that_cannot_leave_the_machine_is_loopback(text: str) -> None:
    assert Target.parse(text).is_loopback


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "localhost.example.com:1", "[fe80::1%lo]:1", "127.1:1"],
)
def test_any_other_address_is_not_loopback(text: str) -> None:
    assert not Target.parse(text).is_loopback


@pytest.mark.parametrize(
    ("text", "authority"),
    [
        ("gateway:443", "gateway:443"),
        ("[::1]:443", "[::1]:443"),
        ("dns:///gateway:443", "gateway:443"),
        ("Gateway.example.com.:443", "gateway.example.com:443"),
        ("[2001:DB8:0::1]:443", "[2001:db8::1]:443"),
        ("[fe80::1%eth0]:443", "[fe80::1]:443"),
        ("bücher.example:443", "xn--bcher-kva.example:443"),
        ("bücher..example:443", "bücher..example:443"),
        ("unix:/run/gateway.sock", "localhost"),
    ],
)
def test_the_authority_is_host_and_port_as_certificates_have_them_or_localhost_for_a_socket(
    text: str, authority: str
) -> None:
    assert Target.parse(text).authority == authority


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("Gateway.example.com.:443", "Gateway.example.com.:443"),
        ("dns:///gateway:443", "gateway:443"),
        ("[fe80::1%eth0]:443", "[fe80::1]:443"),
        ("Bücher.example.:443", "xn--bcher-kva.example.:443"),
    ],
)
def test_a_proxy_is_asked_for_what_was_given_without_the_zone(text: str, destination: str) -> None:
    assert Target.parse(text).destination == destination


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("unix:gateway.sock", "gateway.sock"),
        ("unix:/run/gateway.sock", "/run/gateway.sock"),
        ("unix:///run/gateway.sock", "/run/gateway.sock"),
    ],
)
def test_a_sockets_path_may_be_relative_absolute_or_a_url(text: str, path: str) -> None:
    assert Target.parse(text).unix_path == path


# One of several addresses


def test_at_one_of_its_addresses_a_gateway_is_the_same_but_for_where_it_is_dialled() -> None:
    target = Target.parse("gateway.example.com:443")
    one = target.at("192.0.2.1")
    assert one.ip == "192.0.2.1"
    assert str(one) == "gateway.example.com:443 (192.0.2.1)"
    assert (one.authority, one.host, one.place) == (target.authority, target.host, target.place)
    assert one != target


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("gateway:443", True),
        ("dns:///gateway:443", True),
        ("localhost:1", True),
        ("192.0.2.1:443", False),
        ("[2001:db8::1]:443", False),
        ("[fe80::1%eth0]:443", False),
        ("unix:/run/gateway.sock", False),
    ],
)
def test_a_name_is_what_has_to_be_looked_up(text: str, is_name: bool) -> None:
    assert Target.parse(text).is_name is is_name


# Several


def test_one_address_may_stand_alone() -> None:
    assert parse_targets("gateway:443") == (Target("gateway:443", "gateway", 443),)


def test_several_keep_their_order() -> None:
    assert [str(target) for target in parse_targets(["b:1", "a:2"])] == ["b:1", "a:2"]


@pytest.mark.parametrize(
    ("targets", "problem"),
    [
        ((), "names no gateway"),
        (["a:1", " a:1"], "names a gateway twice"),
        (["a:1", "dns:///A.:1"], "names a gateway twice"),
        (["[::1]:1", "[0:0::1]:1"], "names a gateway twice"),
        (["unix:/s", "unix:///s"], "names a gateway twice"),
        (None, "neither an address nor a list of them"),
        (443, "neither an address nor a list of them"),
        (["a:1", "b"], "not host:port"),
        (["a:1", None], "not an address"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(targets: object, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        parse_targets(targets)  # type: ignore[arg-type]
    assert caught.value.name == "targets"
