"""Locks are taken one inside the other where topics/threading says so, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import grpc

from revconn import TLS, Connector
from revconn.gateway import Gateway, ServerTLS
from tests.docs.test_examples import ROOT
from tests.docs.test_words import rows
from tests.support.certificates import Authority
from tests.support.lock_order import recorded_nestings


def test_locks_nest_in_the_documented_order_alone(tmp_path: Path) -> None:
    page = ROOT / "docs" / "topics" / "threading.md"
    documented = {(cells[0].strip("`"), cells[1].strip("`")) for cells in rows(page, "held")}
    authority = Authority()
    cert, key = authority.issue_files(tmp_path)
    credentials = grpc.ssl_channel_credentials(authority.pem)
    with recorded_nestings() as nestings:
        gateway = Gateway(api_keys="key", tls=ServerTLS(cert, key))
        with gateway:
            connector = Connector(gateway.address, api_key="key", tls=TLS(ca=authority.pem))
            connector.add_method("/a.A/Pooled", lambda request: request.payload)
            connector.add_method("/a.A/Inline", lambda request: request.payload, inline=True)
            connector.add_method("/a.A/Failing", lambda request: 1 / 0)
            connector.on_state_change(lambda state: connector.stats())
            with connector, grpc.secure_channel(gateway.address, credentials) as channel:
                connector.wait_ready(timeout=60)
                for method in ("Pooled", "Inline", "Failing"):
                    call = channel.unary_unary(f"/a.A/{method}").future(b"x" * 100_000, timeout=60)
                    assert (call.exception(30) is None) == (method != "Failing")
        without_gateway = Connector("127.0.0.1:1", api_key="key", services=["a.A"])
        without_gateway.start(block=False)
        without_gateway.stop()
    assert nestings == documented
