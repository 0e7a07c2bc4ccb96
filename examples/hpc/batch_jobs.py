"""Agents in batch jobs without pilot: a job for each, or one job for all of them.

    python batch_jobs.py slurm --host login1            # a job for each walker
    python batch_jobs.py slurm --host login1 --share    # one job, split between them

Jobs are the scheduler's: they go on if this program is killed, and `academy ps` finds
them again. Walkers estimate how fast a random walk spreads in three dimensions, and
ask each other for their samples to tell the error of the estimate.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
from typing import Any

import numpy as np

from academy.agent import Agent, action
from academy.exchange.cloud import spawn_http_exchange
from academy.executors.batch import BatchExecutor
from academy.handle import Handle
from academy.manager import Manager

# Of each job; with --share, of the one job: each walker gets one of its places.
ALONE = {"nodes": 1, "cpus_per_rank": 2, "walltime": "00:05:00"}
SHARED = {"nodes": 2, "ranks_per_node": 2, "cpus_per_rank": 2, "walltime": "00:05:00"}


class Walker(Agent):
    """Walks at random, many times."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.spread = 0.0

    @action
    async def walk(self, walks: int, steps: int) -> str:
        """Return where this was computed."""
        self.spread = await self.agent_run_sync(self._walk, walks, steps)
        job = os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID", "no job")
        return f"{job} on {socket.gethostname()}"

    def _walk(self, walks: int, steps: int) -> float:
        ends = self.rng.normal(size=(walks, steps, 3)).sum(axis=1)
        return float((ends**2).sum(axis=1).mean() / steps)

    @action
    async def mean_square(self) -> float:
        return self.spread

    @action
    async def average(self, others: list[Handle[Walker]]) -> tuple[float, float]:
        """Return the mean of all walkers' estimates, and its standard error."""
        found = [await other.mean_square() for other in others]
        found.append(self.spread)
        return float(np.mean(found)), float(np.std(found, ddof=1) / len(found) ** 0.5)


async def campaign(options: argparse.Namespace) -> None:
    resources = SHARED if options.share else ALONE
    executor = BatchExecutor(
        options.scheduler, resources=resources, share_job=options.share
    )
    if options.preview:
        print(executor.preview())
        return
    with spawn_http_exchange(host=options.host) as exchange:
        async with await Manager.from_exchange_factory(exchange, executor) as manager:
            async with manager.launch_batch() as batch:
                walkers: list[Handle[Any]] = [
                    await batch.queue(Walker, args=(seed,), name=f"walker-{seed}")
                    for seed in range(options.walkers)
                ]
            places = await asyncio.gather(*(w.walk(2000, 100) for w in walkers))
            mean, error = await walkers[0].average(walkers[1:])
    for walker, place in enumerate(places):
        print(f"walker {walker}: job {place}")
    print(f"mean square distance per step: {mean:.3f} ± {error:.3f} (exact: 3)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scheduler", help='"slurm", "pbs", … or a Parsl config file')
    parser.add_argument("--host", default="127.0.0.1", help="where nodes reach us")
    parser.add_argument("--walkers", type=int, default=4)
    parser.add_argument("--share", action="store_true", help="one job for all")
    parser.add_argument("--preview", action="store_true")
    asyncio.run(campaign(parser.parse_args()))
