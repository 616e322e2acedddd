"""Serve the inventory."""

import logging
import os
import signal

from inventory import Inventory, Log
from inventory_pb2_grpc import add_InventoryServicer_to_server

from revconn import Connector


def main():
    """Serve until SIGTERM or Ctrl-C."""
    target, key = os.environ["GATEWAY"], os.environ["API_KEY"]
    server = Connector(target, api_key=key, interceptors=[Log()], start_blocks=False)
    add_InventoryServicer_to_server(Inventory(), server)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop(grace=10))
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    logging.basicConfig(level="INFO")
    main()
