"""What may be a handler: functions that return an answer, or yield some, and nothing to await."""

from __future__ import annotations

import asyncio
import functools
import gc
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from revconn import ConfigurationError, Connector, Request, Response
from tests.serving.test_handlers import answer_to, is_internal_error

ASYNC = r"write def, and asyncio.run\(...\) in it"
GENERATOR = 'return the one answer, or register it with kind="server_streaming"'


async def coroutine(request: Request) -> bytes:
    return b""


async def async_generator(request: Request) -> AsyncIterator[bytes]:
    yield b""


def generator(request: Request) -> Iterator[bytes]:
    yield b""


class Callable:
    async def __call__(self, request: Request) -> bytes:
        return b""

    async def method(self, request: Request) -> bytes:
        return b""

    @classmethod
    async def of_class(cls, request: Request) -> bytes:
        return b""

    @staticmethod
    async def static(request: Request) -> bytes:
        return b""

    def stream(self, request: Request) -> Iterator[bytes]:
        yield b""


@pytest.mark.parametrize("inline", [False, True], ids=["pool", "inline"])
@pytest.mark.parametrize(
    ("handler", "remedy"),
    [
        (coroutine, ASYNC),
        (async_generator, ASYNC),
        (functools.partial(functools.partial(coroutine)), ASYNC),
        (Callable(), ASYNC),
        (functools.partial(Callable()), ASYNC),
        (Callable().method, ASYNC),
        (Callable.of_class, ASYNC),
        (Callable.static, ASYNC),
    ],
    ids=lambda value: getattr(value, "__qualname__", type(value).__name__),
)
def test_what_gives_no_answer_when_called_is_refused_at_once(
    handler: Any, remedy: str, inline: bool
) -> None:
    connector = Connector("127.0.0.1:1", api_key="key")
    with pytest.raises(ConfigurationError, match=remedy) as caught:
        connector.add_method("/echo.Echo/Say", handler, inline=inline)
    assert caught.value.name == "handler"
    with pytest.raises(ConfigurationError, match=remedy):
        connector.add_service("echo.Echo", handler)
    with pytest.raises(ConfigurationError, match="nothing to serve"):
        connector.start(block=False)


@pytest.mark.parametrize(
    "handler",
    [
        generator,
        functools.partial(generator),
        Callable().stream,
        functools.partial(Callable().stream),
    ],
)
def test_a_generator_streams_and_is_no_catch_all_nor_inline(handler: Any) -> None:
    connector = Connector("127.0.0.1:1", api_key="key")
    with pytest.raises(ConfigurationError, match="is a generator"):
        connector.add_service("echo.Echo", handler)
    with pytest.raises(ConfigurationError, match="inline: not for a method that streams"):
        connector.add_method("/echo.Echo/Say", handler, inline=True)
    with pytest.raises(ConfigurationError, match="kind: not that of a generator"):
        connector.add_method("/echo.Echo/Say", handler, kind="unary")
    connector.add_method("/echo.Echo/Say", handler)
    assert connector._handlers.streaming() == (("/echo.Echo/Say",), ())
    connector.add_method("/echo.Echo/Say", lambda request: b"", replace=True)
    assert connector._handlers.streaming() == ((), ())


@pytest.mark.parametrize("kind", ["streaming", 1, ""])
def test_a_kind_is_one_of_four(kind: Any) -> None:
    connector = Connector("127.0.0.1:1", api_key="key")
    with pytest.raises(ConfigurationError, match=r"kind: unknown .*server_streaming"):
        connector.add_method("/echo.Echo/Say", lambda request: b"", kind=kind)


def runs_to_the_end(function: Any) -> Any:
    @functools.wraps(function)
    def handler(request: Request) -> Any:
        return asyncio.run(function(request))

    return handler


@pytest.mark.parametrize(
    "handler", [runs_to_the_end(coroutine), Response, len, lambda request: b""]
)
def test_what_runs_it_to_the_end_is_a_handler(handler: Any) -> None:
    Connector("127.0.0.1:1", api_key="key").add_method("/echo.Echo/Say", handler)


async def awaited_by_nobody() -> bytes:
    return b""


@pytest.mark.parametrize(
    ("result", "remedy"),
    [
        (awaited_by_nobody, "coroutine: handlers run in threads"),
        (lambda: async_generator(None), "async_generator: handlers run in threads"),  # type: ignore[arg-type]
        (lambda: generator(None), f"generator: {GENERATOR}"),  # type: ignore[arg-type]
    ],
    ids=["coroutine", "async generator", "generator"],
)
def test_one_that_is_returned_is_closed_and_logged_with_its_handler(
    result: Any, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    def innocent(request: Request) -> Any:
        return result()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert is_internal_error(answer_to(innocent))
        gc.collect()
    assert not caught, "nothing was left unawaited"
    (message,) = caplog.messages
    assert f"innocent returned {remedy}" in message


def test_a_result_that_hangs_on_being_closed_is_no_other_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def stubborn() -> Iterator[bytes]:
        try:
            yield b""
        finally:
            raise LookupError("in its end")

    def begun(request: Request) -> Any:
        results = stubborn()
        next(results)
        return results

    assert is_internal_error(answer_to(begun))
    assert "in its end" in caplog.text
