"""One campaign on several sites: laptop, Slurm, GPUs, PBS, Globus Compute.

    python campaign_mixed.py ../../configs/executors.toml --host login1 \
        laptop slurm gpu pbs elsewhere

The file names the places, and each place that is named here gets one replica of a
two-dimensional Ising magnet, at a temperature of its own. Replicas exchange their
configurations with their neighbours, on other sites, which is how cold ones get out of
dead ends (parallel tempering). The lattice is small enough to know the exact answer.

Nothing but Python's own library is needed on the sites.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import socket
import statistics
from collections import Counter
from functools import cache
from itertools import pairwise, product
from typing import Any, NamedTuple

from academy.agent import Agent, action
from academy.exchange.cloud import spawn_http_exchange
from academy.executors.config import load_executors
from academy.handle import Handle
from academy.manager import Manager

SIDE = 4
SPINS = SIDE * SIDE
COLDEST, HOTTEST = 1.5, 4.0


def energy(spins: list[int]) -> int:
    """Return the energy of a periodic lattice, in units of the coupling."""
    return -sum(
        spin * (spins[i - i % SIDE + (i + 1) % SIDE] + spins[(i + SIDE) % SPINS])
        for i, spin in enumerate(spins)
    )


class Place(NamedTuple):
    host: str
    job: str
    gpus: str


class Replica(Agent):
    """A lattice at one temperature."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.random = random.Random(temperature)
        self.spins = [self.random.choice((-1, 1)) for _ in range(SPINS)]
        self.energies: list[int] = []
        self.swaps = 0

    @action
    async def place(self) -> Place:
        job = os.environ.get("PBS_JOBID") or os.environ.get("SLURM_JOB_ID", "-")
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "-")
        return Place(socket.gethostname(), job, gpus)

    @action
    async def sweep(self, sweeps: int) -> None:
        for _ in range(sweeps):
            for i in range(SPINS):
                neighbours = (
                    self.spins[i - i % SIDE + (i + 1) % SIDE]
                    + self.spins[i - i % SIDE + (i - 1) % SIDE]
                    + self.spins[(i + SIDE) % SPINS]
                    + self.spins[i - SIDE]
                )
                rise = 2 * self.spins[i] * neighbours
                if rise <= 0 or self.random.random() < math.exp(
                    -rise / self.temperature
                ):
                    self.spins[i] *= -1
            self.energies.append(energy(self.spins))

    @action
    async def swap_with(self, hotter: Handle[Replica]) -> bool:
        """Offer our configuration to a neighbour; take theirs if they agree."""
        theirs = await hotter.action(Replica.consider, self.temperature, self.spins)
        if theirs is None:
            return False
        self.spins = theirs
        self.swaps += 1
        return True

    @action
    async def consider(self, temperature: float, spins: list[int]) -> list[int] | None:
        """Take a configuration and give ours for it, by the rule of Metropolis."""
        gain = (1 / self.temperature - 1 / temperature) * (
            energy(self.spins) - energy(spins)
        )
        if self.random.random() >= math.exp(min(0.0, gain)):
            return None
        self.spins, ours = spins, self.spins
        self.swaps += 1
        return ours

    @action
    async def mean_energy(self) -> tuple[float, int]:
        """Return the energy of a spin, and how often we have swapped."""
        kept = self.energies[len(self.energies) // 10 :]
        return statistics.fmean(kept) / SPINS, self.swaps


@cache
def levels() -> Counter[int]:
    """Return how many configurations have each energy."""
    # Turning all spins over changes nothing, so the first one may stay.
    return Counter(energy([1, *spins]) for spins in product((-1, 1), repeat=SPINS - 1))


def exact_energy(temperature: float) -> float:
    """Return the mean energy of a spin, over all configurations."""
    weights = {e: n * math.exp(-e / temperature) for e, n in levels().items()}
    mean = sum(e * weight for e, weight in weights.items()) / sum(weights.values())
    return mean / SPINS


async def campaign(options: argparse.Namespace) -> None:
    made = load_executors(options.executors)
    executors = {name: made[name] for name in options.places}
    ratio = (HOTTEST / COLDEST) ** (1 / max(len(executors) - 1, 1))
    temperatures = [COLDEST * ratio**i for i in range(len(executors))]
    with spawn_http_exchange(host=options.host) as exchange:
        async with await Manager.from_exchange_factory(
            exchange, executors, default_executor=options.places[0]
        ) as manager:
            async with manager.launch_batch() as batch:
                replicas: list[Handle[Any]] = [
                    await batch.queue(Replica, args=(t,), executor=name, name=name)
                    for name, t in zip(executors, temperatures, strict=True)
                ]
            places = await asyncio.gather(*(r.place() for r in replicas))
            for turn in range(options.rounds):
                await asyncio.gather(*(r.sweep(options.sweeps) for r in replicas))
                pairs = list(pairwise(replicas))[turn % 2 :: 2]
                await asyncio.gather(*(cold.swap_with(hot) for cold, hot in pairs))
            found = [await replica.mean_energy() for replica in replicas]
    for name, temperature, place, (mean, swaps) in zip(
        executors, temperatures, places, found, strict=True
    ):
        print(
            f"{name:10} T = {temperature:.2f}  E = {mean:6.3f} "
            f"(exact: {exact_energy(temperature):6.3f})  {swaps:3} swaps  "
            f"host {place.host}  job {place.job}  GPUs {place.gpus}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("executors", help="such as configs/executors.toml")
    parser.add_argument("places", nargs="+", help="names in that file")
    parser.add_argument("--host", default="127.0.0.1", help="where all reach us")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--sweeps", type=int, default=50)
    asyncio.run(campaign(parser.parse_args()))
