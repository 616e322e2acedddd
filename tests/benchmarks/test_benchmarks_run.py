"""The benchmarks stay runnable: real peers, the Python load generator, a very short window."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "peer", ["revconn", "revconn-inline", "revconn-grpcio", "literal", "bare", "server"]
)
def test_a_peer_answers_everything_and_its_cpu_time_is_counted(peer, tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--loadgen=python", f"--peers={peer}"]
    command += ["--in-flight=8", "--seconds=0.2", "--rounds=1", f"--json={figures}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    measured = json.loads(figures.read_text())["figures"]
    assert [(each["peer"], each["load"]["in_flight"], each["errors"]) for each in measured] == [
        (peer, 8, 0)
    ], run.stdout
    assert measured[0]["requests"] > 0
    assert measured[0]["cpu_seconds"] > 0
    assert f"| {peer} " in run.stdout
