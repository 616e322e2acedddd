"""``python -m revconn``: the same as ``revconn`` on the command line."""

from __future__ import annotations

import sys

from revconn.cli import main

if __name__ == "__main__":
    sys.exit(main())
