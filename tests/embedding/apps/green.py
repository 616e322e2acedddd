"""A connector among green threads, until SIGTERM: green.py gevent|eventlet."""

import sys
import warnings

if sys.argv[1] == "gevent":
    from gevent import monkey

    monkey.patch_all()
else:
    warnings.filterwarnings("ignore", message="(?s).*Eventlet is deprecated")
    import eventlet

    eventlet.monkey_patch()

import os
import threading
import time

from revconn import Backoff, Connector

ticks = 0
connector = Connector(
    os.environ["REVCONN_TARGET"],
    api_key=os.environ["REVCONN_API_KEY"],
    heartbeat_interval=0.2,
    backoff=Backoff(initial=0.01, maximum=0.05),
)


@connector.method("/app.App/Nap")
def nap(request: object) -> bytes:
    time.sleep(1.5)
    return b"rested"


@connector.method("/app.App/Ticks")
def count(request: object) -> bytes:
    return str(ticks).encode()


@connector.method("/app.App/Fork")
def fork(request: object) -> bytes:
    pid = os.fork()
    if pid:
        return str(pid).encode()
    time.sleep(1)  # the child's copies of every green thread run on meanwhile
    print("child is", connector.state.name, flush=True)
    try:
        connector.wait_ready(5)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        print("child:", error, flush=True)
    os._exit(0)


def tick() -> None:
    global ticks
    while True:
        ticks += 1
        time.sleep(0.01)


threading.Thread(target=tick, daemon=True).start()

if "--stop" in sys.argv:
    connector.start(block=False)
    connector.wait_ready(10)
    connector.stop()
    print("stopped", connector.state.name, flush=True)
elif "--serve-on" in sys.argv:
    connector.start(block=False)
    time.sleep(60)
else:
    connector.start()
    print("start returned", flush=True)
