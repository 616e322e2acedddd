"""A connector's options for tests: those of the constructor, with few to be given."""

from __future__ import annotations

from typing import Any

from revconn.connector import Connector
from revconn.settings.options import Options


def make_options(targets: Any = "localhost:50051", **options: Any) -> Options:
    """The options of a connector that is not started."""
    options.setdefault("api_key", "key")
    return Connector(targets, **options)._options
