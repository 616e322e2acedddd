"""Every example of the READMEs and of docs/ works as it stands.

A page is run from top to bottom, in an empty directory. Its blocks, by language:

python   run in this process, in one namespace per page; one that begins with ``# name.py`` is
         saved under that name, for a command further down
pycon    run as a doctest, in the same namespace
console  typed into a shell: see :mod:`tests.docs.terminal`
log      has to have been logged by then, in this order
text     a picture, neither code nor output

A page that begins with ``<!-- needs: … -->`` names what is to be installed beyond the tests' own.
Anything else needs a comment that says why it is not run. A gateway listens on 127.0.0.1:50051
for pages that start none, and takes the key ``demo-key``. Ports are the only thing that is changed
in an example: other programs of this machine may have them.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import logging
import re
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from revconn.cli.demo.processes import free_port
from revconn.gateway import Gateway
from tests.docs.markdown import BadPage, Block, read_blocks
from tests.docs.terminal import Terminal, read_commands
from tests.docs.transcript import Transcript, TranscriptHandler
from tests.support.optional import needs

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = [*READMES, *sorted(ROOT.glob("docs/**/*.md"))]

GATEWAY_PORT = "50051"
_PORT = re.compile(rf"\b(?:{GATEWAY_PORT}|800\d)\b")
_FILE_NAME = re.compile(r"# ([\w./]+\.py)\n")
_NEEDS = re.compile(r"\A<!-- needs: (?P<distributions>.+) -->\n")


class Page:
    """Runs the blocks of one page."""

    def __init__(self, name: str, blocks: list[Block], directory: Path) -> None:
        self._name = name
        self._blocks = blocks
        self._directory = directory
        self._namespace: dict[str, Any] = {"__name__": "__main__"}
        self._transcript = Transcript()
        self._terminal = Terminal(directory, self._transcript)
        self._ports: defaultdict[str, int] = defaultdict(free_port)

    def run(self) -> None:
        with self._logging(), self._gateway():
            try:
                for block in self._blocks:
                    if block.not_run is None:
                        self._run(block)
                self._terminal.close()
            finally:
                self._terminal.kill()

    def _run(self, block: Block) -> None:
        text = _PORT.sub(lambda shown: str(self._ports[shown[0]]), block.text)
        if block.language == "python":
            self._run_python(text, block.line)
        elif block.language == "pycon":
            self._run_doctest(text, block.line)
        elif block.language == "console":
            self._terminal.run(read_commands(text))
        elif block.language == "log":
            self._transcript.expect_somewhere(text.splitlines())

    def _run_python(self, source: str, line: int) -> None:
        named = _FILE_NAME.match(source)
        if named is None:
            code = compile("\n" * (line - 1) + source, self._name, "exec")
            exec(code, self._namespace)
        else:
            file = self._directory / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source, encoding="utf-8")

    def _run_doctest(self, source: str, line: int) -> None:
        test = doctest.DocTestParser().get_doctest(
            source, self._namespace, self._name, self._name, line - 1
        )
        said = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        runner.run(test, out=said.write, clear_globs=False)
        self._namespace.update(test.globs)
        assert not runner.failures, said.getvalue()

    @contextlib.contextmanager
    def _gateway(self) -> Iterator[None]:
        if any("revconn gateway" in b.text for b in self._blocks if b.language == "console"):
            yield
            return
        with Gateway(f"127.0.0.1:{self._ports[GATEWAY_PORT]}", api_keys="demo-key"):
            yield

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        logger = logging.getLogger("revconn")
        level = logger.level
        handler = TranscriptHandler(self._transcript)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


# The other README has the same blocks: tests/docs/test_words.py.
RUN = [page for page in PAGES if page not in READMES[1:]]


@pytest.mark.parametrize("page", RUN, ids=[str(page.relative_to(ROOT)) for page in RUN])
def test_a_page_shows_what_happens(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = _NEEDS.match(page.read_text(encoding="utf-8"))
    for distribution in needed["distributions"].split(", ") if needed else ():
        needs(distribution)
    monkeypatch.chdir(tmp_path)
    Page(page.name, read_blocks(page), tmp_path).run()


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_a_file_that_a_page_shows_is_used_further_down(page: Path) -> None:
    blocks = [block for block in read_blocks(page) if block.not_run is None]
    for number, block in enumerate(blocks):
        named = _FILE_NAME.match(block.text) if block.language == "python" else None
        if named is not None:
            stem = Path(named[1]).stem
            following = "\n".join(b.text for b in blocks[number + 1 :] if b.language != "text")
            assert re.search(rf"\b{stem}\b", following), f"{page.name}: nothing uses {named[1]}"


class TestThePagesAreRead:
    def read(self, tmp_path: Path, text: str) -> list[Block]:
        page = tmp_path / "page.md"
        page.write_text(text, encoding="utf-8")
        return read_blocks(page)

    def test_a_block_has_its_language_text_and_first_line(self, tmp_path: Path) -> None:
        assert self.read(tmp_path, "one\n\n```python\ntwo\n```\n") == [Block("python", "two\n", 4)]

    def test_a_block_in_a_directive_counts_too(self, tmp_path: Path) -> None:
        text = "````{note}\none\n\n```python\ntwo\n```\n````\n"
        assert self.read(tmp_path, text) == [Block("python", "two\n", 5)]

    @pytest.mark.parametrize("fence", ["```toml\na\n```", "```\na\n```", "one\n\n    a = 1\n"])
    def test_what_nobody_runs_is_refused(self, fence: str, tmp_path: Path) -> None:
        with pytest.raises(BadPage, match=r"page\.md, line \d+: .*"):
            self.read(tmp_path, fence)

    def test_a_reason_excuses_the_next_block_and_no_other(self, tmp_path: Path) -> None:
        excused = "<!-- not run: it needs the moon -->\n\n```toml\na\n```\n"
        assert self.read(tmp_path, excused)[0].not_run == "it needs the moon"
        with pytest.raises(BadPage):
            self.read(tmp_path, excused + "\n```toml\nb\n```\n")

    def test_a_reason_has_to_be_given(self, tmp_path: Path) -> None:
        with pytest.raises(BadPage):
            self.read(tmp_path, "<!-- not run: -->\n\n```toml\na\n```\n")


class TestAPageFails:
    def run(self, language: str, text: str, tmp_path: Path) -> None:
        Page("page", [Block(language, text, 1)], tmp_path).run()

    @pytest.mark.parametrize(
        ("language", "text"),
        [
            ("python", "assert 1 == 2\n"),
            ("pycon", ">>> 1 + 1\n3\n"),
            ("console", "$ false\n"),
            ("console", "$ echo one\ntwo\n"),
            ("console", "$ echo one\n"),
            ("console", "$ false\n$ echo $?\n0\n"),
            ("console", "$ echo one  # terminal 1\ntwo\n"),
        ],
    )
    def test_when_something_else_happens(self, language: str, text: str, tmp_path: Path) -> None:
        with pytest.raises(AssertionError):
            self.run(language, text, tmp_path)

    def test_when_a_log_line_never_came(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tests.docs.transcript.TIMEOUT", 0.05)
        with pytest.raises(AssertionError):
            self.run("log", "ERROR revconn: never said\n", tmp_path)

    @pytest.mark.parametrize(
        ("language", "text"),
        [
            ("python", "assert 1 == 1\n"),
            ("pycon", ">>> 1 + 1\n2\n"),
            ("console", "$ export NAME=one\n$ echo $NAME\none\n"),
            ("console", "$ false\n$ echo $?\n1\n"),
            ("console", "$ echo one two\none …\n"),
            ("console", "$ printf 'one\\ntwo\\n'\n…\ntwo\n"),
            ("console", "$ echo 127.0.0.1:1 after 2.5 s\n127.0.0.1:2 after 7 s\n"),
        ],
    )
    def test_but_not_when_it_is_as_shown(self, language: str, text: str, tmp_path: Path) -> None:
        self.run(language, text, tmp_path)

    def test_and_ctrl_c_is_heard_though_the_tests_run_in_the_background(
        self, tmp_path: Path
    ) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell has it there
        try:
            self.run("console", "$ sleep 600\n^C\n$ echo $?\n-2\n", tmp_path)
        finally:
            signal.signal(signal.SIGINT, before)
