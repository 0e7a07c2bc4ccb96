"""A persistent agent: the best energies of all campaigns, kept through many jobs.

It runs without a manager, from agent.toml, in jobs that follow each other: see
sbatch_agent.sh and qsub_agent.sh. Anybody who may use the exchange can ask it:

    python ledger.py https://login1:8700
"""

from __future__ import annotations

import asyncio
import os
import sys

from academy.agent import Agent, action
from academy.exchange.cloud import HttpExchangeFactory
from academy.handle import Handle
from academy.state import FileState


class Ledger(Agent):
    """Keeps the lowest energy of each number of atoms in a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def agent_on_startup(self) -> None:
        self.best = FileState[float](self.path)
        self.job = os.environ.get("PBS_JOBID") or os.environ.get("SLURM_JOB_ID", "")

    async def agent_on_shutdown(self) -> None:
        self.best.close()

    @action
    async def record(self, atoms: int, energy: float) -> float:
        """Take an energy in ε; return the lowest one so far."""
        name = str(atoms)
        lowest = min(energy, self.best.get(name, energy))
        self.best[name] = lowest
        return lowest

    @action
    async def lowest(self) -> dict[int, float]:
        return {int(atoms): energy for atoms, energy in self.best.items()}

    @action
    async def where(self) -> str:
        """Return the job that it is in at the moment."""
        return self.job


async def show(url: str) -> None:
    async with await HttpExchangeFactory(url).create_user_client() as client:
        for agent_id in await client.discover("ledger.Ledger"):
            ledger: Handle[Ledger] = Handle(agent_id)
            print(f"{agent_id} in job {await ledger.where()}: {await ledger.lowest()}")


if __name__ == "__main__":
    asyncio.run(show(sys.argv[1]))
