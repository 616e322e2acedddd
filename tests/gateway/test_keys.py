from __future__ import annotations

import hmac

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.exceptions import ConfigurationError
from revconn.gateway import Gateway
from revconn.gateway import keys as keys_module
from revconn.gateway.keys import UNCHECKED, ApiKeys
from tests.support.waiting import eventually


def test_a_single_key_may_be_given_as_it_is() -> None:
    assert ApiKeys("secret").identify("secret") == 1


def test_each_of_several_keys_is_told_apart() -> None:
    keys = ApiKeys(iter(["one", "two"]))
    assert (keys.identify("one"), keys.identify("two")) == (1, 2)


def test_a_key_given_twice_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigurationError, match="api_keys: holds a key twice") as refused:
        ApiKeys(["secret", "other", "secret"])
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("offered", ["", "secre", "secret ", "SECRET", "sécret", "x" * 10_000])
def test_any_other_key_is_refused(offered: str) -> None:
    assert ApiKeys(["secret", "other"]).identify(offered) is None


def test_a_key_outside_ascii_is_compared_byte_by_byte() -> None:
    assert ApiKeys("schlüssel").identify("schlüssel") == 1


def test_every_key_is_compared_in_constant_time_even_after_a_match(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []

    class Recorder:
        @staticmethod
        def compare_digest(left: bytes, right: bytes) -> bool:
            compared.append(left)
            return hmac.compare_digest(left, right)

    monkeypatch.setattr(keys_module, "hmac", Recorder)
    assert ApiKeys(["one", "two", "three"]).identify("one") == 1
    assert compared == [b"one", b"two", b"three"]


@pytest.mark.parametrize("keys", ["", " ", "a\nb", "key\r", [], {}, [""], ["key", "a\n"], [7], 7])
def test_keys_that_cannot_be_shown_are_refused_at_construction(keys: object) -> None:
    with pytest.raises(ConfigurationError, match="api_keys"):
        ApiKeys(keys)  # type: ignore[arg-type]


def test_a_key_is_never_shown() -> None:
    assert "secret" not in repr(ApiKeys("secret"))
    with pytest.raises(ConfigurationError) as refused:
        ApiKeys("secret\n")
    assert "secret" not in str(refused.value)


def test_where_no_key_is_checked_every_key_is_the_same() -> None:
    keys = ApiKeys(None)
    assert not keys.are_checked
    assert (keys.identify(""), keys.identify("any")) == (UNCHECKED, UNCHECKED)
    assert keys.allows(UNCHECKED, "echo.Echo")
    assert repr(keys) == "ApiKeys(unchecked)"


# Patterns


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        ("echo.Echo", ["echo.Echo"], ["echo", "echo.Echo.Sub", "echo.Echoes", "x.echo.Echo"]),
        ("echo.*", ["echo.Echo", "echo.v1.Echo"], ["echo", "echoes.Echo", "x.echo.Echo"]),
        ("Echo", ["Echo"], ["Echo.Sub", "x.Echo"]),
        ("*", ["Echo", "echo.Echo", "what-ever"], []),
    ],
)
def test_a_pattern_is_a_name_or_what_is_below_it(pattern, allowed, refused) -> None:
    keys = ApiKeys({"key": [pattern]})
    assert [name for name in [*allowed, *refused] if keys.allows(1, name)] == allowed


_names = st.lists(st.sampled_from(["a", "ab", "B"]), min_size=1, max_size=4).map(".".join)


@given(_names, _names)
def test_a_subtree_is_cut_at_dots(root: str, name: str) -> None:
    below = name.split(".")[: root.count(".") + 1] == root.split(".") and name != root
    assert ApiKeys({"key": [f"{root}.*"]}).allows(1, name) is below


def test_each_key_has_patterns_of_its_own_or_none() -> None:
    keys = ApiKeys({"one": ["a.A", "b.*"], "two": None})
    assert [keys.allows(1, name) for name in ("a.A", "b.B", "c.C")] == [True, True, False]
    assert keys.allows(2, "c.C")
    assert not keys.allows(3, "a.A")


@pytest.mark.parametrize(
    "patterns",
    ["echo.*", [], [""], [".*"], ["echo*"], ["*.Echo"], ["a.*.B"], ["a..B"], [7], 7, ["a b"]],
)
def test_patterns_that_are_none_are_refused_and_not_shown(patterns: object) -> None:
    with pytest.raises(ConfigurationError, match="api_keys: .*pattern.* of key 2") as refused:
        ApiKeys({"one": None, "two": patterns})  # type: ignore[dict-item]
    assert "echo*" not in str(refused.value)


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        ("orders.new", ["orders.new"], ["orders", "orders.new.x", ""]),
        ("orders.*", ["orders.new", "orders.a b"], ["orders", "orders-new", "x.orders.new"]),
        ("user:in/out-1.*", ["user:in/out-1.x"], ["user"]),
        ("größe", ["größe"], ["grösse"]),
        ("*", ["a", "", "a b,c"], []),
    ],
)
def test_a_pattern_of_events_is_a_type_or_what_is_below_it(pattern, allowed, refused) -> None:
    publishing = ApiKeys({"key": [f"publish:{pattern}"]})
    subscribing = ApiKeys({"key": [f"subscribe:{pattern}"]})
    types = [*allowed, *refused]
    assert [each for each in types if publishing.may_publish(1, each)] == allowed
    assert [each for each in types if subscribing.may_subscribe(1, each)] == allowed
    assert not any(publishing.may_subscribe(1, each) for each in types)
    assert not any(subscribing.may_publish(1, each) for each in types)
    assert not any(publishing.allows(1, each) for each in types)


def test_a_key_without_patterns_and_a_gateway_without_keys_allow_all_events() -> None:
    for keys, number in ((ApiKeys("key"), 1), (ApiKeys(None), UNCHECKED)):
        assert keys.may_publish(number, "a")
        assert keys.may_subscribe(number, "a")
    assert not ApiKeys("key").may_publish(2, "a")


@pytest.mark.parametrize(
    "pattern",
    ["publish:", "publsh:a", "publish:a*", "publish:a b", "subscribe:a,b", ":a", "publish:*.a"],
)
def test_patterns_of_events_that_are_none_are_refused(pattern) -> None:
    with pytest.raises(ConfigurationError, match=r"publish:orders\.\* and subscribe:orders\.\*"):
        ApiKeys({"key": [pattern]})


# Names that are the gateway's own


@pytest.mark.parametrize(
    "name",
    [
        "registry.RegistryService",
        "registry.Anything",
        "registry",
        "grpc",
        "grpc.health",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ],
)
def test_nobody_registers_what_is_the_gateways_own(gateway, connect, name) -> None:
    with pytest.raises(EOFError, match="INVALID_ARGUMENT: '.*' is the gateway's own; no connector"):
        connect(gateway, "echo.Echo", name)
    assert gateway.connections() == ()


@pytest.mark.parametrize("name", ["registry2.A", "my.registry.A", "grpc.Other", "grpc.healthy.A"])
def test_names_that_only_look_like_the_gateways_own_are_anybodys(gateway, connect, name) -> None:
    connect(gateway, name)


# Two keys that serve one service


def shared_lines(caplog) -> list[str]:
    return [text for text in caplog.messages if text.startswith("API keys number")]


def test_two_keys_that_serve_one_service_are_told_of_once_by_their_numbers(
    clock, run_gateway, connect, caplog
) -> None:
    gateway = run_gateway(api_keys=["one-secret", "two-secret", "three-secret"])
    connect(gateway, "a.A", "b.B", api_key="one-secret")
    connect(gateway, "a.A", api_key="one-secret")
    assert shared_lines(caplog) == []
    for _ in range(3):
        connect(gateway, "b.B", "a.A", "c.C", api_key="two-secret").close()
        eventually(lambda: len(gateway.connections()) == 2)
    (said,) = shared_lines(caplog)
    assert said.startswith("API keys number 1 and 2 both serve b.B, a.A: either may get")
    assert "secret" not in caplog.text
    connect(gateway, "a.A", api_key="three-secret")
    assert len(shared_lines(caplog)) == 2
    connect(gateway, "a.A", api_key="two-secret")
    assert len(shared_lines(caplog)) == 3  # with the third; with the first it was told
    assert shared_lines(caplog)[2].startswith("API keys number 3 and 2 both serve a.A:")


def test_two_keys_that_share_a_service_for_long_are_told_of_again(
    clock, run_gateway, connect, caplog
) -> None:
    gateway = run_gateway(api_keys=["one", "two"], heartbeat_timeout=600)
    connect(gateway, "a.A", api_key="one")
    for seconds in (0.0, 59.0, 1.0, 100.0):
        clock.advance(seconds)
        connect(gateway, "a.A", api_key="two").close()
        eventually(lambda: len(gateway.connections()) == 1)
    assert len(shared_lines(caplog)) == 2


def test_however_many_services_two_keys_share_it_is_one_line(run_gateway, connect, caplog) -> None:
    gateway = run_gateway(api_keys=["one", "two"])
    names = [f"a.Service{number}" for number in range(1000)]
    connect(gateway, *names, api_key="one")
    connect(gateway, *names, api_key="two")
    (said,) = shared_lines(caplog)
    assert "a.Service9 and 990 more: " in said


def test_one_after_the_other_two_keys_share_nothing(run_gateway, connect, caplog) -> None:
    gateway = run_gateway(api_keys=["one", "two"])
    for key in ("one", "two", "one"):
        connect(gateway, "a.A", api_key=key).close()
        eventually(lambda: not gateway.connections())
    assert shared_lines(caplog) == []


# Replacing


def test_a_key_that_stays_keeps_its_number_and_no_number_is_used_twice() -> None:
    keys = ApiKeys(["one", "two", "three"])
    keys.replace({"four": None, "three": ["a.A"], "one": None})
    numbers = [keys.identify(text) for text in ("one", "two", "three", "four")]
    assert numbers == [1, None, 3, 4]
    assert [keys.accepts(number) for number in (1, 2, 3, 4)] == [True, False, True, True]
    assert not keys.allows(3, "b.B")


def test_keys_that_cannot_be_used_leave_the_old_ones_in_force() -> None:
    keys = ApiKeys("one")
    with pytest.raises(ConfigurationError):
        keys.replace(["two", "\n"])
    assert (keys.identify("one"), keys.identify("two")) == (1, None)


def test_keys_may_come_to_be_checked_and_cease_to_be() -> None:
    keys = ApiKeys(None)
    keys.replace("one")
    assert not keys.accepts(UNCHECKED)
    keys.replace(None)
    assert keys.accepts(UNCHECKED)
    assert keys.accepts(1)


# The gateway


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.9.9.9:0", "localhost:0", "[::1]:0"])
def test_without_keys_it_serves_on_loopback(address: str) -> None:
    Gateway(address)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "gateway.test:0"])
def test_without_keys_it_refuses_every_other_address(address: str) -> None:
    with pytest.raises(ConfigurationError, match="api_keys: none given, and .* can be reached"):
        Gateway(address)
    gateway = Gateway(address, api_keys="key")
    with pytest.raises(ConfigurationError, match="api_keys: none given"):
        gateway.replace_keys(None)


def test_without_keys_whatever_key_is_shown_is_taken(run_gateway, connect) -> None:
    gateway = run_gateway(api_keys=None)
    connect(gateway, "a.A", api_key="")
    connect(gateway, "a.A", api_key="any")


def test_a_connector_registers_only_what_its_key_allows(run_gateway, connect) -> None:
    gateway = run_gateway(api_keys={"key": ["echo.*"]})
    connect(gateway, "echo.Echo", "echo.v1.Echo")
    with pytest.raises(EOFError, match=r"PERMISSION_DENIED: the API key may not register 'a\.A'"):
        connect(gateway, "echo.Echo", "a.A")


def test_callers_from_outside_need_no_key(run_gateway, connect, call) -> None:
    gateway = run_gateway(api_keys={"key": ["echo.*"]})
    connector = connect(gateway, "echo.Echo")
    pending = call(gateway, "/echo.Echo/Say")
    connector.respond(connector.receive_request().request_id, b"\x0a")
    assert pending.result() == b"\x0a"


def test_only_connections_whose_key_is_gone_are_ended(run_gateway, connect, call) -> None:
    gateway = run_gateway(api_keys=["old", "stays"])
    dropped = connect(gateway, "a.A", api_key="old")
    kept = connect(gateway, "b.B", api_key="stays")
    gateway.replace_keys({"new": None, "stays": ["c.C"]})
    assert dropped.ended() == (grpc.StatusCode.UNAUTHENTICATED, "the API key was withdrawn")
    eventually(lambda: [one.services for one in gateway.connections()] == [("b.B",)])
    pending = call(gateway, "/b.B/Say")
    kept.respond(kept.receive_request().request_id, b"\x0a")
    assert pending.result() == b"\x0a"
    connect(gateway, "a.A", api_key="new")
    with pytest.raises(EOFError, match="Invalid token"):
        connect(gateway, "a.A", api_key="old")


def test_keys_that_cannot_be_used_drop_nobody(gateway, connect) -> None:
    connector = connect(gateway, "a.A")
    with pytest.raises(ConfigurationError):
        gateway.replace_keys([])
    connector.heartbeat()
    connect(gateway, "a.A")
    assert len(gateway.connections()) == 2


def test_keys_may_be_replaced_while_it_is_stopped(connect) -> None:
    gateway = Gateway(api_keys="old")
    gateway.replace_keys("new")
    with gateway:
        connect(gateway, api_key="new")
    gateway.replace_keys("newer")
    with gateway:
        connect(gateway, api_key="newer")


def test_a_connection_that_registers_while_its_key_goes_is_ended_too(
    run_gateway, connect, monkeypatch
) -> None:
    gateway = run_gateway(api_keys=["old", "stays"])
    check_services = ApiKeys.check_services

    def check(keys: ApiKeys, key: int | None, services: list[str]) -> tuple[str, ...]:
        checked = check_services(keys, key, services)
        gateway.replace_keys("stays")  # the key was found good, and the connection is not known yet
        return checked

    monkeypatch.setattr(ApiKeys, "check_services", check)
    connector = connect(gateway, "a.A", api_key="old")
    assert connector.ended() == (grpc.StatusCode.UNAUTHENTICATED, "the API key was withdrawn")
