"""Search for the best cluster of atoms in Parsl blocks of two shapes of nodes.

    python campaign_parsl.py ../../configs/parsl/slurm.py --host login1

Manager and exchange run on a login node. Searchers are many and small: they share
blocks of two nodes. What they find goes to one archive, which lives longer, in a block
of its own. Try `--preview` first: it prints both job scripts, and submits nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import numpy as np

from academy.agent import Agent, action
from academy.demo import physics
from academy.exchange.cloud import spawn_http_exchange
from academy.executors.parsl import ParslExecutor
from academy.handle import Handle
from academy.manager import Manager

# In words of any scheduler. What is not said is left to the Parsl config.
SEARCH = {"nodes": 2, "ranks_per_node": 2, "walltime": "00:10:00"}
ARCHIVE = {"nodes": 1, "ranks_per_node": 1, "walltime": "00:20:00"}


class Archive(Agent):
    """Keeps the lowest energy that anybody has found."""

    def __init__(self) -> None:
        self.best = (np.inf, "")
        self.reports = 0

    @action
    async def report(self, energy: float, finder: str) -> None:
        self.reports += 1
        self.best = min(self.best, (energy, finder))

    @action
    async def result(self) -> tuple[float, str, int]:
        return *self.best, self.reports


class Searcher(Agent):
    """Quenches random configurations of a Lennard-Jones cluster."""

    def __init__(self, seed: int, atoms: int, archive: Handle[Archive]) -> None:
        self.rng = np.random.default_rng(seed)
        self.atoms = atoms
        self.archive = archive

    @action
    async def search(self, attempts: int) -> None:
        for _ in range(attempts):
            # In a thread, so that the agent goes on answering meanwhile.
            energy = await self.agent_run_sync(self.attempt)
            await self.archive.report(energy, str(self.agent_id))

    def attempt(self) -> float:
        """Return the energy of the minimum below a random configuration, in ε."""
        radius = physics.container_radius(self.atoms)
        start = physics.random_configuration(self.atoms, radius, self.rng)
        return physics.quench(start)[0]


async def campaign(options: argparse.Namespace) -> None:
    executor = ParslExecutor(options.config)
    if options.preview:
        print(executor.preview(**SEARCH), executor.preview(**ARCHIVE), sep="\n")
        return
    with spawn_http_exchange(host=options.host) as exchange:
        async with await Manager.from_exchange_factory(exchange, executor) as manager:
            async with manager.launch_batch() as batch:
                archive = await batch.queue(Archive, submit_kwargs=ARCHIVE)
                searchers: list[Handle[Any]] = [
                    await batch.queue(
                        Searcher,
                        args=(seed, options.atoms, archive),
                        submit_kwargs=SEARCH,
                        name=f"searcher-{seed}",
                    )
                    for seed in range(options.searchers)
                ]
            begun = time.perf_counter()
            await asyncio.gather(*(s.search(options.attempts) for s in searchers))
            seconds = time.perf_counter() - begun
            energy, finder, reports = await archive.result()
    print(f"{reports} minima of {options.atoms} atoms in {seconds:.1f} s")
    print(f"lowest: {energy:.6f} ε, found by {finder}")
    published = physics.PUBLISHED_MINIMA.get(options.atoms)
    if published is not None:
        print(f"published: {published:.6f} ε")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a Parsl config file")
    parser.add_argument("--host", default="127.0.0.1", help="where nodes reach us")
    parser.add_argument("--atoms", type=int, default=7)
    parser.add_argument("--searchers", type=int, default=4)
    parser.add_argument("--attempts", type=int, default=10)
    parser.add_argument("--preview", action="store_true")
    asyncio.run(campaign(parser.parse_args()))
