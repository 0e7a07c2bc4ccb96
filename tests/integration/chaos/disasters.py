"""What happens to processes, networks, disks and clocks; each is over when it returns.

How long it lasts is up to the seed. Nothing waits for that: callers go on all the time.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.integration.chaos.storm import Actor, Disaster, Storm
from tests.support.server import ExchangeServer

MINUTE, DAY = 60, 86_400


# --- servers


@asynccontextmanager
async def a_server(storm: Storm) -> AsyncIterator[ExchangeServer]:
    """Choose a server that nothing else happens to."""
    async with storm.site.busy:
        yield storm.dice.choice(storm.site.servers)


async def kill_server(storm: Storm) -> None:
    async with a_server(storm) as server:
        await asyncio.to_thread(server.kill)
        await a_while(storm)
        await asyncio.to_thread(server.start)


async def stop_server(storm: Storm) -> None:
    async with a_server(storm) as server:
        assert await asyncio.to_thread(server.stop) == 0
        await asyncio.to_thread(server.start)


async def freeze_server(storm: Storm) -> None:
    async with a_server(storm) as server:
        os.kill(server.pid, signal.SIGSTOP)
        await a_while(storm, 3)
        os.kill(server.pid, signal.SIGCONT)


async def fill_disk(storm: Storm) -> None:
    async with storm.site.busy:
        assert storm.site.disk is not None
        with storm.site.disk.full():
            await a_while(storm)


async def restart_redis(storm: Storm) -> None:
    async with storm.site.busy:
        assert storm.site.redis is not None
        storm.site.redis.kill()
        await a_while(storm)
        await asyncio.to_thread(storm.site.redis.start)


async def set_clock(storm: Storm) -> None:
    """By seconds or days, back or ahead."""
    async with storm.site.busy:
        assert storm.site.clock is not None
        storm.site.clock.set(storm.dice.choice([-DAY, -MINUTE, MINUTE, DAY]))


# --- processes


async def kill_agent(storm: Storm) -> None:
    await storm.restart_agent(storm.dice.choice(storm.agents))


async def kill_caller(storm: Storm) -> None:
    await storm.replace_caller(storm.dice.choice(storm.callers))


async def freeze_agent(storm: Storm) -> None:
    """Long enough for the exchange to give it up."""
    agent = storm.dice.choice(storm.agents)
    async with agent.busy:
        agent.process.send_signal(signal.SIGSTOP)
        await a_while(storm, 3)
        agent.process.send_signal(signal.SIGCONT)


# --- networks


def somebody(storm: Storm) -> Actor:
    return storm.dice.choice(storm.agents + storm.callers)


async def cut_all(storm: Storm) -> None:
    for actor in storm.agents + storm.callers:
        actor.proxy.cut()


async def cut_at_any_byte(storm: Storm) -> None:
    proxy = somebody(storm).proxy
    proxy.budget = lambda: int(storm.dice.lognormvariate(8.3, 1.2))
    proxy.cut()
    await a_while(storm, 2)
    proxy.heal()


async def delay(storm: Storm) -> None:
    proxy = somebody(storm).proxy
    proxy.delay = storm.dice.uniform(0, 0.05)
    await a_while(storm, 2)
    proxy.delay = 0


async def stall(storm: Storm) -> None:
    """Old connections come to life again when they were replaced long ago."""
    proxy = somebody(storm).proxy
    proxy.stall()
    await a_while(storm, 3)
    proxy.resume()


async def mute(storm: Storm) -> None:
    """What the exchange says does not arrive, and is lost then."""
    proxy = somebody(storm).proxy
    proxy.mute()
    await a_while(storm, 2)
    proxy.cut()
    proxy.resume()


async def a_while(storm: Storm, longest: float = 1) -> None:
    await asyncio.sleep(storm.dice.uniform(0, longest))


ALL: list[Disaster] = [
    kill_server,
    kill_server,
    kill_server,
    stop_server,
    freeze_server,
    fill_disk,
    restart_redis,
    set_clock,
    kill_agent,
    kill_agent,
    kill_caller,
    freeze_agent,
    cut_all,
    cut_at_any_byte,
    delay,
    stall,
    mute,
]
"""What happens in one storm, in an order that is up to the seed."""
