"""How long something may take, when the loop that counts it is held up."""

from __future__ import annotations

import asyncio
import time

import pytest

from revconn.gateway.limits import Watch


def test_it_cancels_whoever_takes_too_long() -> None:
    async def scenario() -> None:
        watch = Watch(0.05)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(60)
        assert watch.ran_out

    asyncio.run(scenario())


def test_one_that_is_stopped_cancels_nobody() -> None:
    async def scenario() -> None:
        watch = Watch(0.02)
        watch.restart(0.04)
        watch.stop()
        await asyncio.sleep(0.1)
        assert not watch.ran_out

    asyncio.run(scenario())


def test_what_came_while_the_process_was_held_up_is_not_too_late() -> None:
    async def scenario() -> None:
        watch = Watch(0.2)
        came = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.01, came.set_result, None)
        time.sleep(0.5)
        await came
        watch.stop()
        assert not watch.ran_out

    asyncio.run(scenario())


def test_on_a_busy_machine_it_gives_more_time() -> None:
    async def scenario() -> None:
        watch = Watch(0.2)
        for _ in range(8):
            time.sleep(0.06)  # others have the processor
            await asyncio.sleep(0)
        watch.stop()
        assert not watch.ran_out

    asyncio.run(scenario())
