"""What the pages say of the code is so."""

from __future__ import annotations

import ast
import configparser
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from packaging.requirements import Requirement

import revconn
import revconn.gateway
import revconn.testing
from revconn import Connector, State
from revconn.cli import main
from revconn.settings.environment import VARIABLES
from tests.docs.markdown import read_blocks
from tests.docs.test_examples import PAGES, READMES, ROOT

_LINK = re.compile(r"\]\((?P<path>[^)#:\s]+)(?:#[^)]*)?\)")
_A_LOCK = re.compile(r"threading\.(?:R?Lock|Condition)\(\)")
_CODE = re.compile(r"`([^`]+)`")
_THREAD = re.compile(r"revconn(?:-[a-z]+)+")


def rows(page: Path, heading: str, *, below: str = "") -> list[list[str]]:
    """The cells of the (first) table whose first column is headed so."""
    lines = iter(page.read_text(encoding="utf-8").partition(below or "# ")[2].splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            break
    else:
        pytest.fail(f"{page.name} has no table headed {heading}")
    next(lines)
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return table


def code_words(page: Path) -> set[str]:
    """What stands in backquotes outside of blocks."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    inline = [child for token in tokens for child in token.children or ()]
    return {child.content for child in inline if child.type == "code_inline"}


def modules(about: str) -> Iterator[tuple[Path, ast.Module]]:
    """Those in which the word stands: to parse and walk all takes a second."""
    for path in sorted((ROOT / "revconn").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if about in text and not path.stem.endswith(("_pb2", "_pb2_grpc")):
            yield path, ast.parse(text)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_a_link_to_a_file_leads_somewhere(page: Path) -> None:
    for path in _LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / path).exists(), f"{page.name}: {path}"


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    text = index.read_text(encoding="utf-8")
    folded = {line for tree in re.findall(r"```{toctree}\n(.*?)```", text, re.S)
              for line in tree.splitlines() if line and not line.startswith(":")}  # fmt: skip
    pages = {page.relative_to(index.parent).as_posix() for page in index.parent.glob("**/*.md")}
    pages.discard("index.md")
    assert {f"{name}.md" for name in folded} == pages
    assert set(_LINK.findall(text)) == pages


class TestTheReadmes:
    def test_have_the_same_blocks(self) -> None:
        def blocks(page: Path) -> list[tuple[str, str, bool]]:
            return [(b.language, b.text, b.not_run is None) for b in read_blocks(page)]

        assert blocks(READMES[0]) == blocks(READMES[1])

    def test_have_the_same_headings_tables_and_names(self) -> None:
        def outline(page: Path) -> tuple[int, int, int]:
            lines = page.read_text(encoding="utf-8").splitlines()
            return (
                sum(line.startswith("## ") for line in lines),
                sum(line.startswith("|") for line in lines),
                sum(line.startswith("- ") for line in lines),
            )

        assert outline(READMES[0]) == outline(READMES[1])

    @pytest.mark.parametrize(("page", "heading"), list(zip(READMES, ["option", "选项"])))
    def test_state_the_defaults_of_options(self, page: Path, heading: str) -> None:
        parameters = inspect.signature(Connector).parameters
        for name, default, _ in rows(page, heading):
            parameter = parameters[name.strip("`")]
            required = parameter.default is inspect.Parameter.empty
            assert default == ("" if required else f"`{_short(parameter.default)}`"), name

    @pytest.mark.parametrize(("page", "heading"), list(zip(READMES, ["needs", "依赖"])))
    def test_state_the_ranges_of_dependencies(self, page: Path, heading: str) -> None:
        setup = configparser.ConfigParser(interpolation=None)
        setup.read(ROOT / "setup.cfg", encoding="utf-8")
        stated = {cells[0]: cells[1:] for cells in rows(page, heading)}
        assert stated["Python"][0] == setup["options"]["python_requires"].removeprefix(">=")
        dependencies = set()
        for line in setup["options"]["install_requires"].strip().splitlines():
            need = Requirement(line)
            dependencies.add(need.name)
            lowest, highest = stated[need.name]
            for bound in need.specifier:
                if bound.operator == ">=":
                    assert bound.version in lowest, line
                else:
                    assert highest == f"{int(bound.version) - 1}.x", line
        assert dependencies == set(stated) - {"Python"}

    @pytest.mark.parametrize("page", READMES, ids=["English", "Chinese"])
    def test_name_every_counter(self, page: Path) -> None:
        connector = Connector("127.0.0.1:1", api_key="demo-key", services=["echo.Echo"])
        with connector:
            counters = set(connector.stats())
        assert counters <= code_words(page)


def _short(default: object) -> str:
    text = repr(default)
    return re.sub(r"\(.*\)$", "()", text) if text[0].isupper() and "(" in text else text


class TestTheReference:
    @pytest.fixture
    def reference(self) -> str:
        pages = (ROOT / "docs" / "reference").glob("*.md")
        return "\n".join(page.read_text(encoding="utf-8") for page in pages)

    @pytest.mark.parametrize("module", [revconn, revconn.gateway, revconn.testing])
    def test_has_every_public_name(self, module: object, reference: str) -> None:
        prefix = module.__name__
        documented = set(re.findall(r"auto\w+:: ([\w.]+)", reference))
        assert {f"{prefix}.{name}" for name in module.__all__} <= documented


def test_every_variable_of_the_environment_is_listed_with_its_option() -> None:
    page = ROOT / "docs" / "reference" / "connector.md"
    listed = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(page, "variable")}
    assert listed.pop("REVCONN_API_KEY_FILE") == "api_key"
    assert listed == {f"REVCONN_{name}": option for option, name in VARIABLES.items()}


class TestTheCommands:
    page = ROOT / "docs" / "reference" / "commands.md"

    @pytest.mark.parametrize("command", ["demo", "serve", "proxy", "gateway"])
    def test_have_every_option_listed_with_its_default(
        self, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        offered = set(re.findall(r"--[a-z-]+", said.partition("]")[2])) - {"--log-level", "--help"}
        listed = {}
        for cells in rows(self.page, "option", below=f"## revconn {command}"):
            listed[_CODE.findall(cells[0])[0].split()[0]] = cells[1]
        assert set(listed) == offered
        for option, default in listed.items():
            assert not default or re.search(rf"default: {re.escape(default)}\b", said), option


class TestTheThreads:
    page = ROOT / "docs" / "topics" / "threading.md"

    def test_are_all_listed(self) -> None:
        listed = {_CODE.findall(cells[0])[0] for cells in rows(self.page, "thread")}
        named = set()
        for _, module in modules("revconn-"):
            for node in _without_constants(module):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    name = _THREAD.fullmatch(node.value.rstrip("-"))
                    named |= {name[0]} if name else set()
        assert {_THREAD.match(name)[0] for name in listed} == named

    def test_have_every_lock_listed(self) -> None:
        listed = {_CODE.findall(cells[0])[0] for cells in rows(self.page, "lock")}
        locks = set()
        for path, module in modules("threading."):
            for each in ast.walk(module):
                if isinstance(each, ast.ClassDef):
                    locks |= {f"{each.name}.{name}" for name in _locks_of(each, ast.Attribute)}
            locks |= {f"{path.stem}.{name}" for name in _locks_of(module, ast.Name)}
        assert listed == locks


def _without_constants(module: ast.Module) -> Iterator[ast.AST]:
    """All but the module's constants: headers are among them, and named as threads are."""
    for statement in module.body:
        if not (isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]).isupper()):
            yield from ast.walk(statement)


def _locks_of(definition: ast.AST, kind: type[ast.Attribute | ast.Name]) -> Iterator[str]:
    for node in ast.walk(definition):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            target = node.targets[0]  # a condition without a lock given makes one
            if isinstance(target, kind) and _A_LOCK.fullmatch(ast.unparse(node.value)):
                yield target.attr if isinstance(target, ast.Attribute) else target.id


def test_pages_quote_what_the_code_says() -> None:
    said = "\n".join(_sentences())
    for name, heading, column in (
        ("reconnection", "what happened", 2),
        ("stuck", "the log says", 0),
    ):
        for cells in rows(ROOT / "docs" / "topics" / f"{name}.md", heading):
            for quoted in re.findall(r"`([^`]+)`", cells[column]):
                for part in quoted.split("…"):
                    assert part.strip() in said, f"{name}: nothing logs {part!r}"


class TestTheLifecyclePage:
    page = ROOT / "docs" / "topics" / "lifecycle.md"

    def test_names_every_state(self) -> None:
        assert [cells[0].strip("`") for cells in rows(self.page, "state")] == [
            state.name for state in State
        ]


def _sentences() -> Iterator[str]:
    """Every text in the code, with nothing and with … for what is filled in at run time."""
    for _, module in modules(""):
        for node in ast.walk(module):
            if isinstance(node, ast.JoinedStr):
                for stand_in in ("", "…"):
                    yield "".join(
                        part.value if isinstance(part, ast.Constant) else stand_in
                        for part in node.values
                    )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%(?:\.\d+)?[sdgrf]", "…", node.value)


def test_the_tests_that_show_what_is_promised_are_there() -> None:
    for cells in rows(ROOT / "docs" / "topics" / "reliability.md", "promise"):
        folder = ""
        named = re.findall(r"`(tests/(?:\w+/)*)?(test_\w+\.py)`", cells[2])
        assert named, f"nothing shows that {cells[0]!r}"
        for path, name in named:
            folder = path or folder
            assert (ROOT / folder / name).is_file(), f"there is no {folder}{name}"
