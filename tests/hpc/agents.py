"""Agents that tell which job and host they are in."""

from __future__ import annotations

import os
import socket
from typing import Any, NamedTuple

from academy.agent import Agent, action
from academy.handle import Handle


class Place(NamedTuple):
    """Where an agent is."""

    host: str
    job: str


class Traveller(Agent):
    """Tells where it is, and has others tell."""

    def __init__(self, others: list[Handle[Any]] | None = None) -> None:
        self.others = others or []

    @action
    async def place(self) -> Place:
        return Place(socket.gethostname(), os.environ["SLURM_JOB_ID"])

    @action
    async def know(self, others: list[Handle[Any]]) -> None:
        self.others = others

    @action
    async def places_of_others(self) -> list[Place]:
        return [await other.place() for other in self.others]
