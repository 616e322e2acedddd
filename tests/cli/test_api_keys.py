from __future__ import annotations

import os
from pathlib import Path

import pytest

from revconn.cli.api_keys import KeySources
from revconn.exceptions import ConfigurationError


def in_file(directory: Path, text: str) -> KeySources:
    path = directory / "keys"
    path.write_text(text, encoding="utf-8")
    return KeySources(files=(str(path),))


def test_a_key_may_have_patterns_after_it() -> None:
    sources = KeySources(arguments=("one", " two  a.A\tb.* "))
    assert sources.read() == {"one": None, "two": ("a.A", "b.*")}


def test_patterns_of_events_stand_beside_those_of_services(tmp_path) -> None:
    text = "one a.* publish:orders.* subscribe:* # all of them\n"
    assert in_file(tmp_path, text).read() == {"one": ("a.*", "publish:orders.*", "subscribe:*")}


def test_a_file_has_a_key_on_each_line_and_comments(tmp_path) -> None:
    text = "# head\n\n  # more\none\r\ntwo a.* # the rest\nthree#3 # b.B\n"
    assert in_file(tmp_path, text).read() == {"one": None, "two": ("a.*",), "three#3": None}


def test_arguments_and_files_add_up(tmp_path) -> None:
    sources = in_file(tmp_path, "two\nthree")
    sources = KeySources(("one",), sources.files, "four")
    assert sources.read() == {"one": None, "two": None, "three": None}
    assert sources.ignores_environment


def test_the_environment_counts_where_nothing_else_is_given() -> None:
    assert KeySources(environment="one, two a.A,,").read() == {"one": None, "two": ("a.A",)}


def test_without_any_source_there_are_no_keys() -> None:
    assert KeySources().read() is None


@pytest.mark.parametrize("environment", ["", " ", ",", " , \n"])
def test_keys_of_the_environment_that_are_blank_are_refused(environment: str) -> None:
    with pytest.raises(ConfigurationError, match="^REVCONN_API_KEYS: is set but blank"):
        KeySources(environment=environment).read()


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_a_key_file_that_others_may_read_is_warned_of_once(tmp_path, caplog) -> None:
    sources = in_file(tmp_path, "one")
    os.chmod(sources.files[0], 0o640)
    for _ in range(2):
        sources.read()
    (record,) = caplog.records
    assert record.getMessage().startswith("--api-key-file: other users of this machine may read")


def test_a_file_is_read_again_each_time(tmp_path) -> None:
    sources = in_file(tmp_path, "one")
    assert sources.read() == {"one": None}
    assert in_file(tmp_path, "two").read() == sources.read() == {"two": None}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no key"),
        ("# none\n\n", "holds no key"),
        ("key\nsecret hunter2!", "line 2.*what follows the key is not a pattern"),
        ("\nsecret hunter2 hunter2\0", "line 2.*what follows the key is not a pattern"),
        ("secret\0", "line 1.*cannot be printed"),
        ("secret a.A\nsecret b.B", "line 2.*gives a key again"),
        ("secret\nsecret a.A", "line 2.*gives a key again"),
        ("secret\nsecret", "line 2.*gives a key again"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line_and_without_a_key(
    text: str, said: str, tmp_path
) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        in_file(tmp_path, text).read()
    assert str(refused.value).startswith("--api-key-file")
    assert "secret" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("sources", [KeySources(arguments=("",)), KeySources(arguments=("  ",))])
def test_an_empty_argument_is_no_key(sources: KeySources) -> None:
    with pytest.raises(ConfigurationError, match="--api-key: is empty"):
        sources.read()


@pytest.mark.parametrize("path", ["missing", ".", "\0"])
def test_a_file_that_cannot_be_read_is_named(path: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="--api-key-file: cannot be read"):
        KeySources(files=(path,)).read()
