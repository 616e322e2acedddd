"""What a process holds: threads, descriptors, memory."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Footprint"]

GRPCS_SHARE = 2  # threads: it starts and ends some of its own as it sees fit
ALLOCATORS_SHARE = 32  # MiB: six of the largest answers


@dataclass(frozen=True)
class Footprint:
    """``memory`` in MiB, without what is shared with files."""

    threads: int
    descriptors: int
    memory: float

    @classmethod
    def of(cls, pid: int) -> Footprint:
        """As it is now. Linux only."""
        if sys.platform != "linux":
            raise OSError("needs Linux's /proc")
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(re.findall(r"^(\w+):\s+(\d+)", status, re.MULTILINE))
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        return cls(int(fields["Threads"]), descriptors, int(fields["RssAnon"]) / 1024)

    def exceeds(self, other: Footprint) -> bool:
        """Whether it is more than hundreds of connections that left nothing behind explain."""
        return (
            self.threads > other.threads + GRPCS_SHARE
            or self.descriptors > other.descriptors
            or self.memory > other.memory * 1.2 + ALLOCATORS_SHARE
        )

    def __str__(self) -> str:
        return f"{self.threads} threads, {self.descriptors} descriptors, {self.memory:.0f} MiB"
