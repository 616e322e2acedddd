"""The benchmarks stay runnable: real peers, the Python load generator, a very short window."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


PEERS = ["revconn", "revconn-inline", "revconn-grpcio", "literal", "bare", "server"]


def test_each_peer_answers_everything_and_its_cpu_time_is_counted(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--loadgen=python", f"--peers={','.join(PEERS)}"]
    command += ["--in-flight=8", "--seconds=0.2", "--rounds=1", f"--json={figures}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    measured = json.loads(figures.read_text())["figures"]
    assert {(each["peer"], each["load"]["in_flight"], each["errors"]) for each in measured} == {
        (peer, 8, 0) for peer in PEERS
    }, run.stdout
    assert all(each["requests"] > 0 and each["cpu_seconds"] > 0 for each in measured)
    assert all(f"| {peer} " in run.stdout for peer in PEERS)
