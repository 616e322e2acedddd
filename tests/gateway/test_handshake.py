from __future__ import annotations

import pytest

from revconn._proto.registry_pb2 import ConnectionRegister
from revconn.core.status import StatusCode
from revconn.gateway.keys import ApiKeys, Registration, check_registration
from revconn.gateway.refusals import Refused

KEYS = ApiKeys(["first", "second"])


def register(*services: str, api_key: str = "first") -> ConnectionRegister:
    return ConnectionRegister(api_key=api_key, services=services)


@pytest.mark.parametrize("services", [(), ("echo.Echo",), ("a", "b.C"), ("测试.Сервис",)])
def test_services_are_registered_under_the_key_that_was_shown(services: tuple[str, ...]) -> None:
    message = register(*services, api_key="second")
    assert check_registration(message, KEYS) == Registration(2, services)


def test_a_service_named_twice_is_registered_once() -> None:
    assert check_registration(register("b", "a", "b"), KEYS).services == ("b", "a")


@pytest.mark.parametrize(
    "name", ["", "/echo.Echo", "a/b", "a b", "a\tb", "a\n", "\x00", "a\u2028b", "a" * 1025]
)
def test_what_is_no_service_name_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="not a service name") as refused:
        check_registration(register("echo.Echo", name), KEYS)
    assert refused.value.code is StatusCode.INVALID_ARGUMENT


def test_services_by_the_ten_thousand_are_refused_before_they_are_looked_at() -> None:
    names = [f"{number:x}" for number in range(10_000)]
    assert len(check_registration(register(*names), KEYS).services) == 10_000
    with pytest.raises(Refused, match="10,001 services; register 10,000 at most") as refused:
        check_registration(register(*names, ""), KEYS)
    assert refused.value.code is StatusCode.INVALID_ARGUMENT


def test_a_key_that_does_not_exist_is_refused_in_the_protocols_words() -> None:
    with pytest.raises(Refused, match="^Invalid token$") as refused:
        check_registration(register("echo.Echo", api_key="third"), KEYS)
    assert refused.value.code is StatusCode.UNAUTHENTICATED
