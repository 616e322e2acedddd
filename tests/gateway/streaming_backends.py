"""Backends whose methods stream, and who calls them: fixtures, and what is seen of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Callable

import grpc
import pytest

from revconn import Connector
from revconn.gateway import Gateway
from tests.gateway.test_backends import register
from tests.support.streaming_backend import Asked, Behaviour, StreamingBackend

TIMEOUT = 30.0
PATIENCE = 60.0

Serve = Callable[..., StreamingBackend]
Ask = Callable[..., Asked]


@pytest.fixture
def released(resources: contextlib.ExitStack) -> threading.Event:
    """Set when the test is over, before backends are stopped: for those that wait."""
    event = threading.Event()
    resources.callback(event.set)
    return event


@pytest.fixture
def serve(resources: contextlib.ExitStack, released: threading.Event) -> Serve:
    """``serve(gateway, behave)``: a backend that is registered."""

    def serve(gateway: Gateway, behave: Behaviour, *services: str) -> StreamingBackend:
        backend = resources.enter_context(StreamingBackend(behave))
        resources.callback(released.set)  # before it is stopped
        register(gateway, backend.address, *services)
        return backend

    return serve


@pytest.fixture
def channel(resources: contextlib.ExitStack) -> Callable[..., grpc.Channel]:
    """A caller on a connection of its own."""

    def channel(gateway: Gateway) -> grpc.Channel:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        return resources.enter_context(grpc.insecure_channel(gateway.address, options))

    return channel


@pytest.fixture
def ask(resources: contextlib.ExitStack, channel: Callable[..., grpc.Channel]) -> Ask:
    """``ask(gateway, kind, said)``: a call under way; requests that stream go on until it ends."""

    def ask(gateway: Gateway, kind: str, said: Any = (b"",), **options: Any) -> Asked:
        asked = Asked(channel(gateway), kind, said, **options)
        resources.callback(asked.call.cancel)
        return asked

    return ask


@pytest.fixture
def talk(resources: contextlib.ExitStack) -> Callable[..., Iterator[bytes]]:
    """``talk(*messages)``: what a caller says who then keeps silent, until the test is over."""
    over = threading.Event()
    resources.callback(over.set)

    def talk(*messages: bytes) -> Iterator[bytes]:
        yield from messages
        over.wait(PATIENCE)

    return talk


@pytest.fixture
def connect_one(resources: contextlib.ExitStack) -> Callable[..., Connector]:
    """A connector that has one method, which streams both ways."""

    def connect_one(gateway: Gateway, handler: Any = lambda each: each.messages()) -> Connector:
        connector = Connector(gateway.address, api_key="key")
        kind = "bidirectional_streaming"
        connector.add_method("/echo.Echo/stream_stream", handler, kind=kind)
        resources.enter_context(connector)
        connector.wait_ready(TIMEOUT)
        return connector

    return connect_one


def echo(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    """Each message, and the end."""
    yield from messages


def in_flight(gateway: Gateway) -> int:
    """How many calls the gateway has of any kind."""
    serving = gateway._thread._serving
    return len(serving.shared.calls) + len(serving._callers.streaming)


def streaming(gateway: Gateway) -> int:
    """How many streaming calls it has."""
    return len(gateway._thread._serving._callers.streaming)
