"""h2spec, the conformance tests of HTTP/2, against a gateway that is a process of its own.

It speaks HTTP and not gRPC: what it asks for is ``/``, by GET and by POST.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest

from tests.interop.building import BUILD, H2SPEC
from tests.interop.conftest import Workshop
from tests.support.certificates import Authority
from tests.support.commands import Command

TESTS = 146  # one of them strict
LONGEST = 1  # seconds that h2spec waits for each answer
TIMEOUT = 300.0

# What the gateway does not pass, by h2spec's number, each with its reason.
EXCEPTIONS: dict[str, str] = {}


class Result(NamedTuple):
    """What became of one test: ``passed``, or what h2spec says was wrong."""

    title: str
    outcome: str


@pytest.fixture(params=["plaintext", "tls"])
def gateway(request, tmp_path: Path) -> Iterator[list[str]]:
    """The options with which h2spec reaches it."""
    options = ["--address", "127.0.0.1:0", "--api-key", "key"]
    over_tls = []
    if request.param == "tls":
        cert, key = Authority().issue_files(tmp_path)
        options += ["--tls-cert", str(cert), "--tls-key", str(key)]
        over_tls = ["--tls", "--insecure"]
    with Command("gateway", *options, cwd=tmp_path) as command:
        said = command.wait_for_line("gateway listening on ")
        port = re.search(r"listening on 127\.0\.0\.1:(\d+)", said)[1]
        yield ["--host", "127.0.0.1", "--port", port, *over_tls]


def test_the_gateway_passes_all_of_h2spec_but_what_is_named(
    workshop: Workshop, gateway: list[str], tmp_path: Path
) -> None:
    workshop.needs(H2SPEC)
    report = tmp_path / "h2spec.xml"
    options = ("--strict", "--timeout", str(LONGEST), "--junit-report", str(report))
    command = (f"{BUILD}/go/h2spec", *options, *gateway)
    ran = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False
    )
    assert report.exists(), ran.stdout.decode("utf-8", "replace")
    results = read_report(report)
    assert len(results) == TESTS
    failed = {number: result for number, result in results.items() if result.outcome != "passed"}
    unexpected = [
        f"{number} {result.title}: {result.outcome}"
        for number, result in failed.items()
        if number not in EXCEPTIONS
    ]
    assert not unexpected, "\n".join(unexpected)
    assert failed.keys() == EXCEPTIONS.keys(), "what passes needs no exception any more"


def read_report(path: Path) -> dict[str, Result]:
    """What became of each test, by its number: ``http2/5.1.1/2``, say."""
    text = path.read_text(encoding="utf-8", errors="replace")
    # h2spec writes bytes from the wire as they are.
    text = re.sub(r"(?<=<error>).*?(?=</error>)", lambda found: clean(found[0]), text, flags=re.S)
    return {
        f"{suite.get('package')}/{number}": Result(case.get("classname", ""), outcome(case))
        for suite in ElementTree.fromstring(text)
        for number, case in enumerate(suite, 1)
    }


def clean(text: str) -> str:
    return escape(re.sub(r"[^\t\n\x20-\x7e]", "?", text))


def outcome(case: ElementTree.Element) -> str:
    for wrong in case:
        return f"{wrong.tag}: {(wrong.text or '').strip()}"
    return "passed"
