"""The benchmarks stay runnable: real peers, the Python load generator, a very short window."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


PEERS = ["revconn", "revconn-inline", "revconn-grpcio", "literal", "bare", "server"]


def run(*arguments):
    """The benchmarks under the Python load generator, one short round."""
    command = [sys.executable, "-m", "benchmarks", "--loadgen=python", "--seconds=0.2"]
    command += ["--rounds=1", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_each_peer_answers_everything_and_its_cpu_time_is_counted(tmp_path):
    figures = tmp_path / "figures.json"
    said = run(f"--peers={','.join(PEERS)}", "--in-flight=8", f"--json={figures}")

    measured = json.loads(figures.read_text())["figures"]
    assert {(each["peer"], each["load"]["in_flight"], each["errors"]) for each in measured} == {
        (peer, 8, 0) for peer in PEERS
    }, said
    assert all(each["requests"] > 0 and each["cpu_seconds"] > 0 for each in measured)
    assert all(f"| {peer} " in said for peer in PEERS)


def test_a_gateway_that_pings_is_a_load_of_its_own_and_answered_as_any_other():
    said = run("--peers=revconn-inline", "--in-flight=1", "--dynamic-windows")
    assert "## 1 in flight, 64 B, a gateway that pings" in said
    assert "| revconn-inline " in said
    assert "Not valid" not in said


@pytest.mark.skipif(shutil.which("go") is None, reason="its server is in Go")
def test_a_sidecar_is_measured_beside_a_direct_call():
    command = [sys.executable, "-m", "benchmarks.sidecar", "--rounds=1", "--seconds=0.2"]
    ended = subprocess.run(
        [*command, "--only=one at a time"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "| unary, one at a time | gateway and sidecar |" in ended.stdout
    assert "| unary, one at a time | the server itself   |" in ended.stdout
