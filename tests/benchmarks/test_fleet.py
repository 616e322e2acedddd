"""The connectors of the gateway's benchmark come back to a gateway that was killed."""

from __future__ import annotations

import asyncio
import socket
import threading

from benchmarks.peers.fleet import FleetConnector, Tally, connect_all
from revconn.gateway import Gateway


def test_a_gateway_that_is_dying_as_they_knock_is_not_taken_for_the_new_one() -> None:
    dying = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{dying.getsockname()[1]}"
    gateways: list[Gateway] = []

    def die_and_start_again() -> None:
        connection, _ = dying.accept()
        connection.close()
        dying.close()
        gateways.append(Gateway(address))
        gateways[0].start()

    async def come_back() -> int:
        fleet = [FleetConnector(address, number, Tally()) for number in range(3)]
        await connect_all(fleet)
        registered = len(gateways[0].connections())
        for connector in fleet:
            connector.close()
        return registered

    restart = threading.Thread(target=die_and_start_again)
    restart.start()
    try:
        assert asyncio.run(come_back()) == 3
    finally:
        restart.join()
        gateways[0].stop()
