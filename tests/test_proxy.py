from __future__ import annotations

import base64

import pytest

from revconn import ConfigurationError, Connector
from revconn.settings.proxy import Proxy, proxy_for
from revconn.settings.target import Target

GATEWAY = Target.parse("gateway.example.com:443")
SECRET = "s3cret-w0rd"


@pytest.fixture(autouse=True)
def no_proxy_around_us(monkeypatch) -> None:
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://proxy.example.com:3128", "proxy.example.com", 3128),
        ("proxy.example.com:3128", "proxy.example.com", 3128),
        ("http://proxy.example.com", "proxy.example.com", 80),
        ("http://[::1]:3128/", "::1", 3128),
        ("http://user:pass@proxy:1", "proxy", 1),
    ],
)
def test_a_proxy_is_an_http_url(url: str, host: str, port: int) -> None:
    proxy = Proxy.parse(url)
    assert (proxy.host, proxy.port) == (host, port)
    assert str(proxy) in (f"{host}:{port}", f"[{host}]:{port}")


@pytest.mark.parametrize(
    ("userinfo", "credentials"),
    [
        ("user:pass", "user:pass"),
        ("user", "user:"),
        ("domain%5Cuser:p%40ss%3Aw%C3%B6rd", "domain\\user:p@ss:wörd"),
    ],
)
def test_credentials_are_taken_from_the_url(userinfo: str, credentials: str) -> None:
    expected = base64.b64encode(credentials.encode()).decode()
    assert Proxy.parse(f"http://{userinfo}@proxy:1").authorization == f"Basic {expected}"
    assert Proxy.parse("http://proxy:1").authorization is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "https://user:{}@proxy:1",
        "socks5://user:{}@proxy:1",
        "http://user:{}@:3128",
        "http://user:{}@proxy:port",
        "http://user:{}@proxy:99999",
        "http://user:{}@[::1",
        "http://user:{}@pro\u2100xy:1",
        "http://user:{}@ ",
        "http://user:{}@,",
        "http://user:{}@a b:1",
        "http://user:{}@proxy:0",
    ],
)
def test_anything_else_is_refused_without_showing_the_credentials(url: str) -> None:
    with pytest.raises(
        ConfigurationError, match="proxy: not an HTTP proxy; write http://"
    ) as caught:
        Proxy.parse(url.format(SECRET))
    shown: BaseException | None = caught.value
    while shown is not None:
        assert SECRET not in repr(shown)
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)


def test_a_proxy_never_shows_its_credentials() -> None:
    proxy = Proxy.parse(f"http://user:{SECRET}@proxy:1")
    connector = Connector(
        "gateway:1", api_key="k", services=["a.B"], proxy=f"http://user:{SECRET}@proxy:1"
    )
    for shown in (repr(proxy), str(proxy), repr(connector), repr(connector._options)):
        assert SECRET not in shown
        assert (proxy.authorization or "")[6:] not in shown


# Which one


def test_a_given_proxy_is_used_even_for_this_machine() -> None:
    proxy = proxy_for(Target.parse("localhost:1"), "http://proxy:3128")
    assert proxy is not None
    assert proxy.port == 3128


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_the_environments_proxy_is_used(monkeypatch, name: str) -> None:
    monkeypatch.setenv(name, "http://proxy:3128")
    proxy = proxy_for(GATEWAY, None)
    assert proxy is not None
    assert proxy.host == "proxy"


def test_without_any_there_is_none() -> None:
    assert proxy_for(GATEWAY, None) is None


def test_false_means_none(monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert proxy_for(GATEWAY, False) is None


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/run/x"])
def test_this_machine_itself_needs_none(monkeypatch, address: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert proxy_for(Target.parse(address), None) is None


NAME = "gateway.example.com:443"
V4, V6 = "192.0.2.1:443", "[2001:db8::1]:443"

NO_PROXY = [
    # names, and what is under them
    ("gateway.example.com", NAME, False),
    ("GATEWAY.example.com", NAME, False),
    (".example.com", NAME, False),
    ("example.com", NAME, False),
    (".gateway.example.com", NAME, False),
    ("*.example.com", NAME, False),
    ("*.gateway.example.com", NAME, True),
    ("ample.com", NAME, True),
    ("*ample.com", NAME, True),
    ("other.org", NAME, True),
    ("bücher.example", "xn--bcher-kva.example:443", False),
    ("*.example", "bücher.example:443", False),
    # a final dot, on either side
    ("gateway.example.com.", NAME, False),
    ("example.com.", "gateway.example.com.:443", False),
    ("gateway.example.com", "gateway.example.com.:443", False),
    ("*.example.com.", NAME, False),
    # ports
    ("gateway.example.com:443", NAME, False),
    ("gateway.example.com:444", NAME, True),
    ("*.example.com:443", NAME, False),
    ("192.0.2.1:443", V4, False),
    ("192.0.2.1:444", V4, True),
    ("[2001:db8::1]:443", V6, False),
    ("[2001:db8::1]:444", V6, True),
    # addresses, however they are spelt
    ("192.0.2.1", V4, False),
    ("192.0.2.10", V4, True),
    ("2001:db8::1", V6, False),
    ("[2001:db8::1]", V6, False),
    ("2001:DB8:0:0:0:0:0:1", V6, False),
    ("2001:db8::1", "[2001:0db8:0::0001]:443", False),
    ("2001:db8::2", V6, True),
    ("fe80::1", "[fe80::1%eth0]:443", False),
    ("fe80::1%eth0", "[fe80::1%eth0]:443", False),
    ("192.0.2.1", "[::ffff:192.0.2.1]:443", False),
    ("2.1", V4, True),
    # blocks
    ("192.0.2.0/24", V4, False),
    ("192.0.2.77/24", V4, False),
    ("192.0.3.0/24", V4, True),
    ("2001:db8::/32", V6, False),
    ("[2001:db8::]/32", V6, False),
    ("2001:db9::/32", V6, True),
    ("fe80::/10", "[fe80::1%eth0]:443", False),
    ("0.0.0.0/0", V6, True),
    ("192.0.2.0/24", NAME, True),
    ("192.0.2.0/99", V4, True),
    # lists
    ("*", NAME, False),
    ("*", V6, False),
    ("other.org, gateway.example.com:443", NAME, False),
    ("other.org gateway.example.com", NAME, False),
    ("", NAME, True),
    (" , .,*.", NAME, True),
]
"""``NO_PROXY``, an address, and whether the environment's proxy is used for it."""


@pytest.mark.parametrize(("exceptions", "address", "used"), NO_PROXY)
def test_no_proxy_names_exceptions(monkeypatch, exceptions: str, address: str, used: bool) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", exceptions)
    assert (proxy_for(Target.parse(address), None) is not None) is used


def test_without_settings_in_the_environment_the_systems_are_asked(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://system:3128"})
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: asked.append(host))
    proxy = proxy_for(GATEWAY, None)
    assert proxy is not None
    assert proxy.host == "system"
    assert asked == ["gateway.example.com"]


def test_an_unusable_proxy_in_the_environment_is_named_as_such(monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"socks5://user:{SECRET}@proxy:1")
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY: not an HTTP proxy") as caught:
        proxy_for(GATEWAY, None)
    assert SECRET not in str(caught.value)
