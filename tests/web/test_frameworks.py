"""Applications as people have them: Flask's, Django's and FastAPI's, beside gRPC on one port."""

from __future__ import annotations

import json
import threading
from typing import Any, Callable

import grpc
import pytest

from revconn import Connector
from tests.support.optional import needs
from tests.web.conftest import SERVICE, Web

FORM = [("Content-Type", "application/x-www-form-urlencoded")]
JSON = [("Content-Type", "application/json")]

Call = Callable[[Web], Any]


def flask_app() -> tuple[str, Any]:
    needs("flask")
    from flask import Flask, Response, request

    app = Flask("shop")

    @app.post("/form")
    def form() -> dict[str, str]:
        return dict(request.form)

    @app.post("/json")
    def posted() -> Any:
        return {"given": request.get_json(), "q": request.args["q"]}

    @app.post("/upload")
    def upload() -> dict[str, int]:
        return {"size": sum(map(len, iter(lambda: request.stream.read(1 << 16), b"")))}

    @app.get("/download/<int:count>")
    def download(count: int) -> Response:
        return Response(b"x" * 10_000 for _ in range(count))

    @app.get("/<name>")
    def page(name: str) -> Response:
        response = Response(f"<h1>{name}</h1>", mimetype="text/html")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    return "wsgi", app


def configure_django() -> Any:
    needs("django")
    import django
    from django.conf import settings
    from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
    from django.urls import path

    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x", USE_TZ=True, DATABASES={}
        )
        django.setup()

    def pieces(request: Any, count: int) -> Any:
        if not hasattr(request, "scope"):
            return (b"x" * 10_000 for _ in range(count))

        async def make() -> Any:
            for _ in range(count):
                yield b"x" * 10_000

        return make()

    def posted(request: Any) -> Any:
        return JsonResponse({"given": json.loads(request.body), "q": request.GET["q"]})

    def upload(request: Any) -> Any:
        return JsonResponse({"size": sum(map(len, iter(lambda: request.read(1 << 16), b"")))})

    def page(request: Any, name: str) -> Any:
        response = HttpResponse(f"<h1>{name}</h1>", content_type="text/html; charset=utf-8")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    global urlpatterns
    urlpatterns = [
        path("form", lambda request: JsonResponse(request.POST.dict())),
        path("json", posted),
        path("upload", upload),
        path(
            "download/<int:count>",
            lambda request, count: StreamingHttpResponse(pieces(request, count)),
        ),
        path("<str:name>", page),
    ]


urlpatterns: list[Any] = []


def django_wsgi() -> tuple[str, Any]:
    configure_django()
    from django.core.handlers.wsgi import WSGIHandler

    return "wsgi", WSGIHandler()


def django_asgi() -> tuple[str, Any]:
    configure_django()
    from django.core.handlers.asgi import ASGIHandler

    return "asgi", ASGIHandler()


def fastapi_app() -> tuple[str, Any]:
    needs("fastapi")
    from urllib.parse import parse_qsl

    from fastapi import FastAPI, Request, Response
    from fastapi.responses import StreamingResponse

    app = FastAPI()

    async def form(request: Request) -> dict[str, str]:
        return dict(parse_qsl((await request.body()).decode()))

    async def posted(request: Request, q: str) -> Any:
        return {"given": await request.json(), "q": q}

    async def upload(request: Request) -> dict[str, int]:
        size = 0
        async for piece in request.stream():
            size += len(piece)
        return {"size": size}

    async def download(count: int) -> Any:
        return StreamingResponse(b"x" * 10_000 for _ in range(count))

    async def page(name: str) -> Any:
        response = Response(f"<h1>{name}</h1>", media_type="text/html")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    for path, method, serve in (
        ("/form", "POST", form), ("/json", "POST", posted), ("/upload", "POST", upload),
        ("/download/{count}", "GET", download), ("/{name}", "GET", page),
    ):  # fmt: skip
        # Their annotations are strings here, which name what is local.
        serve.__annotations__.update(
            {
                key: {"Request": Request, "str": str, "int": int}[value]
                for key, value in serve.__annotations__.items()
                if value in ("Request", "str", "int")
            }
        )
        serve.__annotations__.pop("return", None)
        app.add_api_route(path, serve, methods=[method])
    return "asgi", app


@pytest.fixture(params=[flask_app, django_wsgi, django_asgi, fastapi_app])
def app(request: pytest.FixtureRequest) -> tuple[str, Any]:
    made: tuple[str, Any] = request.param()
    return made


@pytest.fixture(params=["plaintext", "TLS"])
def served(
    request: pytest.FixtureRequest,
    app: tuple[str, Any],
    run_web: Callable[..., Web],
    run_secure_web: Callable[..., Web],
) -> Web:
    """A gateway with that application."""
    web = run_web() if request.param == "plaintext" else run_secure_web()
    web.serve(*app)
    return web


def test_an_application_answers_as_it_does_elsewhere(served: Web, call: Call) -> None:
    caller = call(served)
    page = caller.ask("GET", "/caf%C3%A9")
    assert (page.status, page.body.decode()) == (200, "<h1>café</h1>")
    assert page.get("content-type") == "text/html; charset=utf-8"
    assert [each.split(";")[0] for each in page.get_all("set-cookie")] == ["a=1", "b=2"]
    assert caller.ask("GET", "/no/such/page").status == 404
    assert json.loads(caller.ask("POST", "/form", FORM, b"a=1&b=%C3%A9").body) == {
        "a": "1",
        "b": "é",
    }
    reply = caller.ask("POST", "/json?q=%26", JSON, b'{"a": [1]}')
    assert json.loads(reply.body) == {"given": {"a": [1]}, "q": "&"}


def test_bodies_of_any_size_pass_both_ways(
    served: Web, call: Call, request: pytest.FixtureRequest
) -> None:
    caller = call(served)
    size = 3_000_000
    bodies: list[Any] = [bytes(size), [bytes(size // 3)] * 3]
    # Django's WSGI reads no more than CONTENT_LENGTH says, whoever serves it.
    if "django_wsgi" in request.node.name:
        bodies.pop()
    for body in bodies:
        assert json.loads(caller.ask("POST", "/upload", (), body).body) == {"size": size}
    reply = caller.ask("GET", "/download/500")
    assert (len(reply.body), reply.is_whole) == (5_000_000, True)


def test_calls_of_grpc_and_requests_of_http_go_over_one_connection(web: Web) -> None:
    go_on = threading.Event()

    def wsgi(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        yield b"begun"
        go_on.wait(60)

    connector = Connector(web.gateway.address, api_key="key")
    connector.add_wsgi(wsgi, service=SERVICE)
    connector.add_method("/a.B/Do", lambda request: b"done")
    web.stack.enter_context(connector)
    connector.wait_ready(60)
    channel = web.stack.enter_context(grpc.insecure_channel(web.gateway.address))
    caller = web.http2()
    stream_id = caller.begin("GET", "/")
    first = web.http1()
    first.begin("GET", "/")
    pieces = first.pieces()
    assert next(pieces) == b"begun"
    assert channel.unary_unary("/a.B/Do")(b"", timeout=60) == b"done"
    go_on.set()
    assert caller.reply(stream_id).body == b"begun"
    headers = [("content-type", "application/grpc"), ("te", "trailers")]
    done = caller.begin("POST", "/a.B/Do", headers, ended=False)
    caller.send(done, b"\0\0\0\0\0", ended=True)
    assert caller.reply(done).body == b"\0\0\0\0\4done"
