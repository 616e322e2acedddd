"""The same application, from behind a firewall: no port is opened."""

import logging
import os

from shop import app

from revconn import Connector

logging.basicConfig(level="INFO")
connector = Connector(os.environ["GATEWAY"], api_key=os.environ["API_KEY"])
connector.add_wsgi(app, service="web.Shop")

if __name__ == "__main__":
    connector.start()
