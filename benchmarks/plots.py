"""A run's figures as pictures."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from benchmarks.cases import KIB_64, LONE, MANY, MIB
from benchmarks.measure import Figures, Load
from benchmarks.report import by_load, median

__all__ = ["PlotsMissing", "draw", "require_matplotlib"]

_OURS, _OTHERS = "#1f6feb", "#9aa4b2"
_DPI = 110

Rounds = Sequence[Figures]
_Panel = tuple[str, Callable[[Figures], float], str]  # title, value, how it is written


class PlotsMissing(Exception):
    """matplotlib is not installed; the message says what to do."""


def require_matplotlib() -> Any:
    """matplotlib, which only the extra ``bench`` installs. Raises :class:`PlotsMissing`."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotsMissing("plots need matplotlib: pip install 'revconn[bench]'") from None
    return Figure


def draw(figures: Sequence[Figures], footnote: str, folder: pathlib.Path) -> list[pathlib.Path]:
    """Write the pictures that these figures allow; return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    loads = by_load(figures)
    drawn = []
    for name, load, panels in _PICTURES:
        if load.title in loads:
            path = folder / f"benchmark-{name}.png"
            _draw(path, load.title, loads[load.title], panels, footnote)
            drawn.append(path)
    return drawn


def _cpu(figures: Figures) -> float:
    return 1e6 * figures.cpu_per_request


def _rate(figures: Figures) -> float:
    return figures.requests_per_second


def _megabytes(figures: Figures) -> float:
    return figures.requests_per_second * figures.load.payload / 1e6


def _p50(figures: Figures) -> float:
    return 1e3 * figures.p50


def _p99(figures: Figures) -> float:
    return 1e3 * figures.p99


_CPU_PANEL = ("CPU µs per request (less is better)", _cpu, "{:,.0f}")
_RATE_PANEL = ("requests per second (more is better)", _rate, "{:,.0f}")
_BYTES_PANEL = ("MB/s each way (more is better)", _megabytes, "{:,.0f}")
_PICTURES: tuple[tuple[str, Load, tuple[_Panel, _Panel]], ...] = (
    ("many", MANY, (_CPU_PANEL, _RATE_PANEL)),
    (
        "one",
        LONE,
        (("median latency, ms", _p50, "{:.2f}"), ("99th percentile, ms", _p99, "{:.1f}")),
    ),
    ("64-kib", KIB_64, (_CPU_PANEL, _BYTES_PANEL)),
    ("1-mib", MIB, (_CPU_PANEL, _BYTES_PANEL)),
)


def _draw(
    path: pathlib.Path,
    title: str,
    peers: Mapping[str, Rounds],
    panels: Sequence[_Panel],
    footnote: str,
) -> None:
    figure = require_matplotlib()(figsize=(9, 1.3 + 0.35 * len(peers)), layout="constrained")
    figure.suptitle(title)
    figure.supxlabel(footnote, fontsize=7, color="#57606a")
    names = list(peers)
    colours = [_OURS if name.startswith("revconn") else _OTHERS for name in names]
    axes_of = figure.subplots(1, len(panels), sharey=True)
    axes_of[0].invert_yaxis()
    for axes, (label, value, form) in zip(axes_of, panels):
        values = [median(peers[name], value) for name in names]
        bars = axes.barh(names, values, color=colours)
        axes.bar_label(bars, [form.format(each) for each in values], padding=3, fontsize=8)
        axes.set_title(label, fontsize=9)
        axes.set_xlim(0, 1.2 * max(values))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
