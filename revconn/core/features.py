"""Where :mod:`revconn.core.terms` was looked for; gone once nobody does."""

from revconn.core.terms import CANCEL, CHUNKS, DRAIN, VIA_HEADER

__all__ = ["CANCEL", "CHUNKS", "DRAIN", "VIA_HEADER"]
