"""A Celery application whose worker processes serve too. The broker is a directory."""

import os
import pathlib

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from revconn import Connector

directory = pathlib.Path.cwd()
queue = directory / "queue"
queue.mkdir(exist_ok=True)
app = Celery("tasks", broker="filesystem://", backend=directory.joinpath("results").as_uri())
directory.joinpath("results").mkdir(exist_ok=True)
app.conf.broker_transport_options = {
    "data_folder_in": str(queue),
    "data_folder_out": str(queue),
    "control_folder": str(directory / "control"),
}
connector = Connector.from_env()


@connector.method("/app.App/Who")
def who(request):
    return str(os.getpid()).encode()


@worker_process_init.connect
def start(**kwargs):
    connector.start(block=False)


@worker_process_shutdown.connect
def stop(**kwargs):
    connector.stop()


@app.task
def add(x, y):
    return x + y
