"""Where the proxy was before it became part of revconn.testing."""

from __future__ import annotations

from revconn.testing.fault_proxy import Fault, FaultProxy

__all__ = ["Fault", "FaultProxy"]
