"""Agents on a Globus Compute endpoint: a parameter study that needs no login there.

    globus-compute-endpoint list                # or ask who runs it
    python campaign_globus_compute.py ENDPOINT_ID --host campaign.example.org

The exchange runs here, so `--host` has to be an address that the endpoint's compute
nodes reach. academy-hpc has to be installed there, in the same minor version of Python.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from typing import Any

from academy.agent import Agent, action
from academy.exchange.cloud import spawn_http_exchange
from academy.executors.globus_compute import GlobusComputeExecutor
from academy.handle import Handle
from academy.manager import Manager


class Orbit(Agent):
    """Iterates the logistic map x -> r x (1 - x)."""

    def __init__(self, growth: float) -> None:
        self.growth = growth
        self.x = 0.5

    @action
    async def settle(self, steps: int) -> str:
        """Go on for some steps; return the host on which this was done."""
        for _ in range(steps):
            self.x = self.growth * self.x * (1 - self.x)
        return socket.gethostname()

    @action
    async def period(self, longest: int = 64) -> int | None:
        """Return after how many steps the orbit repeats itself, or None: chaos."""
        x = self.x
        for step in range(1, longest + 1):
            x = self.growth * x * (1 - x)
            if abs(x - self.x) < 1e-9:
                return step
        return None

    @action
    async def differs_from(self, other: Handle[Orbit]) -> bool:
        """Ask another orbit, which may be on another node, for its period."""
        return await other.action(Orbit.period) != await self.period()


async def campaign(options: argparse.Namespace) -> None:
    executor = GlobusComputeExecutor(
        options.endpoint, user_endpoint_config=options.user_endpoint_config
    )
    if options.preview:
        print(executor.preview())
        return
    growths = [2.8, 3.2, 3.5, 3.55, 3.9][: options.agents]
    with spawn_http_exchange(host=options.host) as exchange:
        async with await Manager.from_exchange_factory(exchange, executor) as manager:
            async with manager.launch_batch() as batch:
                orbits: list[Handle[Any]] = [
                    await batch.queue(Orbit, args=(growth,)) for growth in growths
                ]
            hosts = await asyncio.gather(*(orbit.settle(100_000) for orbit in orbits))
            periods = [await orbit.period() for orbit in orbits]
            doubled = await orbits[0].differs_from(orbits[1])
    for growth, period, host in zip(growths, periods, hosts, strict=True):
        print(f"r = {growth}: period {period or 'none, it is chaotic'} (on {host})")
    print(f"the period doubles from the first to the second: {doubled}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint", help="UUID of the endpoint")
    parser.add_argument("--host", default="127.0.0.1", help="where its nodes reach us")
    parser.add_argument("--agents", type=int, default=5)
    parser.add_argument(
        "--user-endpoint-config",
        type=json.loads,
        default={},
        help='for its template, as JSON: {"account": "m1234"}',
    )
    parser.add_argument("--preview", action="store_true")
    asyncio.run(campaign(parser.parse_args()))
