"""A real browser at a Flask application behind a connector, by HTTP/1.1 and by HTTP/2."""

from __future__ import annotations

import queue
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from revconn import TLS, Connector
from revconn.gateway import Gateway, ServerTLS
from tests.support.certificates import Authority
from tests.support.optional import needs_program

TIMEOUT = 120.0  # a browser on a busy machine

PAGE = """<!doctype html>
<title>Check</title>
<link rel="icon" href="data:,">
<img id="dot" src="/dot.svg">
<script>
async function check() {
  const seen = {};
  seen.protocol = performance.getEntriesByType("navigation")[0].nextHopProtocol;
  await document.querySelector("#dot").decode();
  seen.image = document.querySelector("#dot").naturalWidth;
  seen.json = await (await fetch("/json?name=%C3%A9t%C3%A9")).json();
  const form = new FormData();
  form.append("file", new Blob([new Uint8Array(3_000_000)]), "zeros");
  form.append("word", "tea");
  seen.form = await (await fetch("/form", {method: "POST", body: form})).json();
  const reader = (await fetch("/pieces")).body.getReader();
  seen.pieces = 0;
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    seen.pieces += read.value.length;
  }
  seen.events = await new Promise(resolve => {
    const events = [], source = new EventSource("/events");
    source.onmessage = event => {
      events.push(event.data);
      fetch("/next", {method: "POST"});  // the next one is said when this one is here
      if (events.length === 3) { source.close(); resolve(events); }
    };
  });
  document.cookie = "kept=1";
  seen.cookies = await (await fetch("/cookies")).json();
  seen.missing = (await fetch("/missing")).status;
  return seen;
}
check().catch(error => ({error: String(error)})).then(
  seen => fetch("/seen", {method: "POST", body: JSON.stringify(seen)}));
</script>
"""


class Site:
    """The application, and what the page told it."""

    def __init__(self) -> None:
        flask = pytest.importorskip("flask")
        self.seen: queue.Queue[dict[str, Any]] = queue.Queue()
        self._next: queue.Queue[None] = queue.Queue()
        self.app = app = flask.Flask(__name__)
        request = flask.request
        app.add_url_rule("/", "page", lambda: PAGE)
        app.add_url_rule("/dot.svg", "dot", lambda: flask.Response(_DOT, mimetype="image/svg+xml"))
        app.add_url_rule("/json", "json", lambda: {"name": request.args["name"]})
        app.add_url_rule("/pieces", "pieces", lambda: flask.Response([b"x" * 100_000] * 20))
        app.add_url_rule("/cookies", "cookies", lambda: dict(request.cookies))
        app.add_url_rule(
            "/events",
            "events",
            lambda: flask.Response(self._events(), mimetype="text/event-stream"),
        )

        @app.post("/form")
        def form() -> dict[str, Any]:
            return {"word": request.form["word"], "size": len(request.files["file"].read())}

        @app.post("/next")
        def say_next() -> str:
            self._next.put(None)
            return ""

        @app.post("/seen")
        def take() -> str:
            self.seen.put(request.get_json(force=True))
            return ""

    def _events(self) -> Iterator[str]:
        for number in range(3):
            yield f"data: {number}\n\n"
            self._next.get(timeout=TIMEOUT)


_DOT = '<svg xmlns="http://www.w3.org/2000/svg" width="12" height="12"/>'


@contextmanager
def browser_at(url: str, profile: Path) -> Iterator[None]:
    needs_program("chromium", "chromium")
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--ignore-certificate-errors", f"--user-data-dir={profile}", "--remote-debugging-port=0",
        url,
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as browser:
        try:
            yield
        finally:
            browser.kill()


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_a_browser_gets_all_that_a_page_asks_for(
    protocol: str, authority: Authority, tmp_path: Path
) -> None:
    site = Site()
    tls, scheme = None, "http"
    trust: Any = False
    if protocol == "h2":
        tls, scheme = ServerTLS(*authority.issue_files(tmp_path)), "https"
        trust = TLS(ca=str(authority.write(tmp_path / "ca.pem")))
    with Gateway(api_keys="key", http="web.Site", tls=tls) as gateway:
        connector = Connector(gateway.address, api_key="key", tls=trust)
        connector.add_wsgi(site.app, service="web.Site")
        with connector:
            connector.wait_ready(TIMEOUT)
            with browser_at(f"{scheme}://{gateway.address}/", tmp_path / "profile"):
                seen = site.seen.get(timeout=TIMEOUT)
    assert seen == {
        "protocol": protocol,
        "image": 12,
        "json": {"name": "été"},
        "form": {"word": "tea", "size": 3_000_000},
        "pieces": 2_000_000,
        "events": ["0", "1", "2"],
        "cookies": {"kept": "1"},
        "missing": 404,
    }
