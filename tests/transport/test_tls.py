"""TLS with real certificates: who is trusted, and what the error says of who is not."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from revconn import TLS, Backoff, Connector, HandshakeError
from tests.support.certificates import Authority
from tests.support.scripted_gateway import ScriptedGateway
from tests.support.secured_gateway import SecuredGateway
from tests.support.waiting import eventually
from tests.transport.tls_cases import CASES, Case, Papers

TIMEOUT = 60.0


@pytest.fixture(scope="module")
def papers() -> Papers:
    return Papers()


def says_why(connector: Connector, words: str) -> bool:
    """Whether it tries, tries again, and gives up with these words."""
    with pytest.raises(HandshakeError) as raised:
        connector.wait(TIMEOUT)
    assert connector.stats()["connections"] == 0
    assert words in str(raised.value)
    return True


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_both_transports_accept_and_refuse_the_same(
    new_connector,
    transport_options: dict[str, Any],
    papers: Papers,
    tmp_path: pathlib.Path,
    case: Case,
) -> None:
    transport = transport_options["transport"]
    gateway = SecuredGateway(
        papers.chain(case.chain),
        tmp_path,
        clients=getattr(papers, case.clients) if case.clients else None,
        version=case.version,
        protocols=case.protocols,
    )
    with gateway:
        connector = new_connector(
            f"{case.host}:443",
            proxy=gateway.url,
            tls=case.tls(papers),
            backoff=Backoff(initial=0.01, maximum=0.01, max_attempts=2),
        )
        connector.start(block=False)
        if transport in case.refused:
            assert says_why(connector, case.refused[transport])
            assert len(gateway.asked_for) == 2
        else:
            connector.wait_ready(TIMEOUT)
            connector.abort()
            if case.sni is not None or transport == "http2":  # grpcio sends addresses too
                assert gateway.server_names == [case.sni]


# Files


def test_an_authority_may_be_given_as_a_file(
    new_connector, authority: Authority, tmp_path: pathlib.Path
) -> None:
    with ScriptedGateway(credentials=authority.server()) as gateway:
        ca = authority.write(tmp_path / "ca.pem")
        connector = new_connector(gateway.address, tls=TLS(ca=ca))
        connector.start(block=False)
        gateway.accept_ready()
        connector.wait_ready(TIMEOUT)
        connector.abort()


def test_a_certificate_file_that_was_renewed_is_read_again(
    new_connector, authority: Authority, tmp_path: pathlib.Path
) -> None:
    path = Authority().write(tmp_path / "ca.pem")
    with ScriptedGateway(credentials=authority.server()) as gateway:
        connector = new_connector(gateway.address, tls=TLS(ca=path))
        connector.start(block=False)
        with pytest.raises(TimeoutError):
            connector.wait_ready(0.1)
        authority.write(path)
        gateway.accept_ready()
        connector.wait_ready(TIMEOUT)
        connector.abort()


def test_a_certificate_file_that_is_gone_for_a_moment_is_tried_again(
    new_connector, authority: Authority, tmp_path: pathlib.Path, caplog
) -> None:
    path = authority.write(tmp_path / "ca.pem")
    with ScriptedGateway(credentials=authority.server()) as gateway:
        connector = new_connector(gateway.address, tls=TLS(ca=path))
        path.unlink()
        connector.start(block=False)
        eventually(lambda: "TLS(ca=): cannot be read: No such file" in caplog.text)
        authority.write(path)
        gateway.accept_ready()
        connector.wait_ready(TIMEOUT)
        connector.abort()


# One side speaks TLS, the other does not


@pytest.mark.parametrize(
    ("gateway_speaks", "words"),
    [(False, "what listens there does not speak TLS"), (True, "expect TLS")],
)
def test_a_gateway_that_speaks_tls_to_one_who_does_not_or_the_other_way_round(
    new_connector,
    transport_options: dict[str, Any],
    authority: Authority,
    gateway_speaks: bool,
    words: str,
) -> None:
    credentials = authority.server() if gateway_speaks else None
    with ScriptedGateway(credentials=credentials) as gateway:
        connector = new_connector(
            gateway.address,
            tls=False if gateway_speaks else TLS(ca=authority.pem),
            backoff=Backoff(initial=0.01, maximum=0.01, max_attempts=2),
        )
        connector.start(block=False)
        assert says_why(connector, words)
