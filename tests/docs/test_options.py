"""Every option and keyword that a page names exists."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import revconn
import revconn.gateway
import revconn.testing
from revconn.cli import demo, gateway, proxy, serve
from tests.docs.markdown import read_blocks
from tests.docs.test_examples import PAGES, ROOT

_SPAN = re.compile(r"`([^`\n]+)`")
_COMMAND = re.compile(r"revconn (demo|gateway|proxy|serve)\b([^`\n]*)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_KEYWORD = re.compile(r"\b([a-z_]+)=(?!=)")
# Pages on other programs, which have options of their own, like those of most of howto/.
_OF_OTHERS = ("performance", "reliability")
_OF_HOWTO_OURS = ("run-the-gateway", "several-gateways", "test-your-service")

_SETTINGS = ("Backoff", "Connector", "Gateway", "Response", "ServerTLS", "TLS", "from_env")
_OPTIONS_OF_OTHERS = ("--stop-timeout",)  # docker's


def offered() -> dict[str, set[str]]:
    """The options of each command."""
    commands = argparse.ArgumentParser().add_subparsers()
    for command in (demo, gateway, proxy, serve):
        command.add_parser(commands)
    return {name: set(parser._option_string_actions) for name, parser in commands.choices.items()}


def called() -> dict[str, set[str]]:
    """The parameters of what users call, by its name; of methods too."""
    public = [getattr(module, name) for module in (revconn, revconn.gateway, revconn.testing)
              for name in module.__all__]  # fmt: skip
    kinds = [each for each in public if inspect.isclass(each)]
    methods = [
        method
        for kind in kinds
        for name, method in inspect.getmembers(kind, inspect.isroutine)
        if not name.startswith("_")
    ]
    known: dict[str, set[str]] = {"make_revconn_gateway": parameters(revconn.gateway.Gateway)}
    for each in (*public, *methods):
        known.setdefault(each.__name__, set()).update(parameters(each))
    known["from_env"] |= known["Connector"]
    return known


def parameters(thing: object) -> set[str]:
    try:
        return set(inspect.signature(thing).parameters)
    except (TypeError, ValueError):  # nothing to call, or an enum's
        return set()


def is_of_others(page: Path) -> bool:
    in_howto = page.parent.name == "howto" and page.stem not in _OF_HOWTO_OURS
    return in_howto or page.stem in _OF_OTHERS


def said(page: Path) -> str:
    return page.read_text(encoding="utf-8").replace("\\\n", " ")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_option_that_a_page_names_is_one(page: Path) -> None:
    options = offered()
    for command, rest in _COMMAND.findall(said(page)):
        unknown = set(_OPTION.findall(rest.partition("  #")[0])) - options[command]
        assert not unknown, f"revconn {command} has no {unknown}"
    everywhere = set.union(*options.values()) | {"--version", *_OPTIONS_OF_OTHERS}
    for span in _SPAN.findall(said(page)):
        if span.startswith("--") and not is_of_others(page):
            assert span.split()[0] in everywhere, span


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_keyword_that_a_page_names_is_one(page: Path) -> None:
    known = called()
    known[""] = set.union(*known.values())
    for name, keyword in keywords(page):
        if name in known:
            assert keyword in known[name], f"{name or 'nothing'} takes no {keyword}="


def keywords(page: Path) -> Iterator[tuple[str, str]]:
    """Keyword arguments, each with the name of what is called (empty where that is not said)."""
    for span in _SPAN.findall(said(page)):
        source = re.sub(r"=(?=[,)])", "=...", span.replace("…", "..."))
        try:
            tree = ast.parse(source)
        except SyntaxError:  # not Python alone
            tree = ast.parse("")
        found = list(keywords_in(tree))
        yield from found
        if not found and "(" not in span:
            yield from (("", keyword) for keyword in _KEYWORD.findall(span))
    for block in read_blocks(page):
        if block.language == "python":
            for name, keyword in keywords_in(ast.parse(block.text)):
                if name in _SETTINGS:
                    yield name, keyword


def keywords_in(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            yield from ((name, keyword.arg) for keyword in node.keywords if keyword.arg)


class TestAPageFails:
    @pytest.mark.parametrize(
        "text",
        [
            "`revconn serve --log-fromat json`",
            "$ revconn gateway \\\n --adress a:1",
            "`--max-pend`",
        ],
    )
    def test_when_an_option_is_none(self, text: str, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text(text, encoding="utf-8")
        with pytest.raises(AssertionError):
            test_every_option_that_a_page_names_is_one(page)

    @pytest.mark.parametrize(
        "text",
        [
            "`slow_handler=None`",
            "`Backoff(start=)`",
            "`TLS(ca=…, name=…)`",
            "`Connector.from_env(max_worker=4)`",
            '```python\nConnector("a:1", api_key="k", max_worker=3)\n```',
        ],
    )
    def test_when_a_keyword_is_none(self, text: str, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text(text, encoding="utf-8")
        with pytest.raises(AssertionError):
            test_every_keyword_that_a_page_names_is_one(page)
