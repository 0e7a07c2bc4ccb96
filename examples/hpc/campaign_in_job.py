"""The heat capacity of a cluster of atoms, computed inside one batch job.

Manager, exchange and workers all run on the job's own nodes: see the two job scripts,
sbatch_manager_in_job.sh and qsub_manager_in_job.sh.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import socket
from typing import Any

import numpy as np

from academy.agent import Agent, action
from academy.demo import physics
from academy.exchange.cloud import spawn_http_exchange
from academy.executors.parsl import ParslExecutor
from academy.handle import Handle
from academy.manager import Manager


class Thermostat(Agent):
    """Samples a Lennard-Jones cluster at one temperature."""

    def __init__(self, temperature: float, atoms: int) -> None:
        self.temperature = temperature
        rng = np.random.default_rng(atoms)
        radius = physics.container_radius(atoms)
        random = (physics.random_configuration(atoms, radius, rng) for _ in range(20))
        _, start = min(map(physics.quench, random), key=lambda found: found[0])
        self.sampler = physics.Sampler(start, temperature, radius, rng)
        self.energy = 0.0

    @action
    async def sample(self, sweeps: int) -> str:
        """Return the host on which this was done."""
        await self.agent_run_sync(self.sampler.sweep, sweeps // 5)  # Forget the start.
        _, self.energy = await self.agent_run_sync(self.sampler.sweep, sweeps)
        return socket.gethostname()

    @action
    async def mean(self) -> tuple[float, float]:
        return self.temperature, self.energy

    @action
    async def heat_capacity(self, hotter: Handle[Thermostat]) -> float:
        """Return the slope of the energy, from here to the next temperature."""
        temperature, energy = await hotter.action(Thermostat.mean)
        return (energy - self.energy) / (temperature - self.temperature)


async def campaign(options: argparse.Namespace) -> None:
    temperatures = physics.temperature_ladder(0.05, 0.40, options.temperatures)
    executor = ParslExecutor(options.config)
    with spawn_http_exchange(host=options.host) as exchange:
        async with await Manager.from_exchange_factory(exchange, executor) as manager:
            async with manager.launch_batch() as batch:
                agents: list[Handle[Any]] = [
                    await batch.queue(Thermostat, args=(t, options.atoms))
                    for t in temperatures
                ]
            hosts = await asyncio.gather(*(a.sample(options.sweeps) for a in agents))
            slopes = [
                await colder.heat_capacity(hotter)
                for colder, hotter in itertools.pairwise(agents)
            ]
            means = [await agent.mean() for agent in agents]
    print(f"{options.atoms} atoms on {len(set(hosts))} nodes: {sorted(set(hosts))}")
    for (temperature, energy), slope in zip(means[:-1], slopes, strict=True):
        print(f"T = {temperature:.3f} ε/k   E = {energy:8.3f} ε   C = {slope:6.2f} k")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a Parsl config file: configs/parsl/in-job.py")
    parser.add_argument(
        "--host", default="127.0.0.1", help="where other nodes reach us"
    )
    parser.add_argument("--atoms", type=int, default=7)
    parser.add_argument("--temperatures", type=int, default=6)
    parser.add_argument("--sweeps", type=int, default=1000)
    asyncio.run(campaign(parser.parse_args()))
