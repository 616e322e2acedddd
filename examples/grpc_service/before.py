"""Serve the inventory."""

import logging
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import grpc
from inventory import Inventory, Log
from inventory_pb2_grpc import add_InventoryServicer_to_server


def main():
    """Serve until SIGTERM or Ctrl-C."""
    server = grpc.server(ThreadPoolExecutor(max_workers=16), interceptors=[Log()])
    server.add_insecure_port(os.environ["ADDRESS"])
    add_InventoryServicer_to_server(Inventory(), server)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop(grace=10))
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    logging.basicConfig(level="INFO")
    main()
