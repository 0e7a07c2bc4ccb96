"""Agents that tell what their part of a job is, and how it ends."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
from pathlib import Path
from typing import NamedTuple

from academy.agent import Agent, action


class Part(NamedTuple):
    """The part of a job that an agent has."""

    host: str
    job: str
    gpus: str
    cpus: str
    step: str


class Member(Agent):
    """Tells its part, and leaves a mark when it is shut down."""

    def __init__(self, mark: Path | None = None, error: str | None = None) -> None:
        self.mark = mark
        self.error = error

    async def agent_on_startup(self) -> None:
        if self.error is not None:
            raise ValueError(self.error)

    async def agent_on_shutdown(self) -> None:
        if self.mark is not None:
            # Longer than it takes who does not wait for it to be gone.
            await asyncio.sleep(0.3)
            self.mark.write_text("in order")

    @action
    async def part(self) -> Part:
        environment = os.environ
        return Part(
            socket.gethostname(),
            environment["SLURM_JOB_ID"],
            environment.get("CUDA_VISIBLE_DEVICES", ""),
            environment.get("SLURM_CPUS_ON_NODE", ""),
            environment.get("SLURM_STEP_ID", ""),
        )

    @action
    async def run_on_all_ranks(self, command: str) -> list[str]:
        """Run a program as MPI programs are run, and return its lines."""
        process = await asyncio.create_subprocess_exec(
            *shlex.split(os.environ["PARSL_MPI_PREFIX"]),
            *shlex.split(command),
            stdout=asyncio.subprocess.PIPE,
        )
        stdout, _ = await process.communicate()
        return sorted(stdout.decode().split())

    @action
    async def die(self, words: str) -> None:
        """End without a word to anybody but those who read the output."""
        print(words, flush=True)
        os._exit(7)
