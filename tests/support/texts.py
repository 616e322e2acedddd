"""Text for hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

__all__ = ["texts"]


def texts(**sizes: Any) -> st.SearchStrategy[str]:
    """Any text that UTF-8 can hold.

    ``st.text()`` means the same, and encodes every character there is to find out which: seconds,
    in each process of a fresh checkout.
    """
    return st.text(st.characters(exclude_categories=["Cs"]), **sizes)
