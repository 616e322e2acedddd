"""A gateway for your own tests, and everything that can go wrong between it and a connector.

With pytest nothing has to be imported: the fixtures ``revconn_gateway``, ``make_revconn_gateway``
and ``revconn_faults`` are there wherever revconn is installed.
"""

from __future__ import annotations

from revconn.testing.fault_proxy import Fault, FaultProxy
from revconn.testing.faults import Faults
from revconn.testing.gateway import TestGateway

__all__ = ["Fault", "FaultProxy", "Faults", "TestGateway"]
