from __future__ import annotations

import pytest

from revconn.runtime import threads
from revconn.runtime.threads import is_own_thread, own_thread
from tests.support.threads import TIMEOUT, in_thread


def test_a_thread_is_the_librarys_own_while_it_says_so() -> None:
    assert not is_own_thread()
    with own_thread():
        assert is_own_thread()
    assert not is_own_thread()


def test_it_stays_its_own_until_the_outermost_end() -> None:
    with own_thread():
        with own_thread():
            pass
        assert is_own_thread()
    assert not is_own_thread()


def test_an_exception_ends_it_too() -> None:
    with pytest.raises(KeyError), own_thread():
        raise KeyError
    assert not is_own_thread()


def test_a_forked_childs_only_thread_is_nobodys_but_its_own() -> None:
    with own_thread():
        threads._disown()
        assert not is_own_thread()


def test_one_thread_does_not_speak_for_another() -> None:
    with own_thread():
        assert in_thread(is_own_thread).result(TIMEOUT) is False
