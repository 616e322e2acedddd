"""A WSGI application with a connector, started at import or at first use: START_AT; or later."""

import os
import threading
import time

from revconn import Connector, RevconnError

START_AT = os.environ.get("START_AT")
connector = Connector.from_env()
starting = threading.Lock()


@connector.method("/app.App/Who")
def who(request):
    return str(os.getpid()).encode()


@connector.method("/app.App/Nap")
def nap(request):
    time.sleep(3)
    return b"rested"


def application(environ, start_response):
    if START_AT == "first use":
        with starting:
            if connector.state.name == "IDLE":
                connector.start(block=False)
    body = f"{os.getpid()} {connector.state.name}"
    if environ["PATH_INFO"] == "/start":
        try:
            connector.start(block=False)
        except RevconnError as error:
            body = f"{type(error).__name__}: {error}"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body.encode()]


if START_AT == "import":
    connector.start(block=False)
