"""The pictures: drawn from what was measured, or a word on what is missing."""

import subprocess
import sys

import pytest

from benchmarks.cases import LONE, MANY
from benchmarks.plots import draw
from tests.benchmarks.test_bars import figures


def test_without_matplotlib_the_run_says_what_to_install_before_it_measures(tmp_path):
    script = "import sys; sys.modules['matplotlib'] = None; "
    script += f"from benchmarks.__main__ import main; main(['--plots={tmp_path}'])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert run.returncode == 1
    assert "pip install 'revconn[bench]'" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_drawn_for_each_load_that_was_measured(tmp_path):
    pytest.importorskip("matplotlib")
    run = [figures(peer, load) for load in (LONE, MANY) for peer in ("revconn", "go")]
    drawn = draw(run, "a small machine", tmp_path / "images")
    assert [path.name for path in drawn] == ["benchmark-many.png", "benchmark-one.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
