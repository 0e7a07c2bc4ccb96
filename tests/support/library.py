"""An agent that takes and gives large arrays, and where an exchange keeps them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from academy.agent import Agent, action
from academy.exchange import HttpExchangeFactory
from academy.handle import Handle
from academy.runtime import Runtime
from tests.support.server import ExchangeServer


class Library(Agent):
    """Takes and gives arrays."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    @action
    async def digest(self, data: Any) -> str:
        self.calls.append(len(data))
        return hashlib.sha256(data).hexdigest()

    @action
    async def random(self, size: int) -> npt.NDArray[np.uint8]:
        return content(size)

    @action
    async def echo(self, data: Any) -> Any:
        return data

    @action
    async def peak_mb(self) -> float:
        return peak_mb(os.getpid())


def content(size: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8)


def digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def peak_mb(pid: int) -> float:
    """Return the largest resident size that a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    raise ValueError(f"process {pid} has no memory")


def bodies(server: ExchangeServer) -> dict[str, int]:
    """Return the files with bodies, and their sizes."""
    folders = [Path(f"{server.database}.bodies")]
    folders += (server.log.parent / "home").glob("bodies-*")
    return {
        file.name: file.stat().st_size
        for folder in folders
        if folder.exists()
        for file in folder.iterdir()
    }


async def until_bodies_are(server: ExchangeServer, size: int) -> None:
    """Wait until so many bytes of bodies are here; 0 stands for no file at all."""
    async with asyncio.timeout(60):
        while sum(bodies(server).values()) < size or (not size and bodies(server)):
            await asyncio.sleep(0.005)


@asynccontextmanager
async def library(
    factory: HttpExchangeFactory, callers: HttpExchangeFactory | None = None
) -> AsyncIterator[tuple[Handle[Library], Library]]:
    """Run an agent; yield a handle of a program that may come another way."""
    async with await (callers or factory).create_user_client() as client:
        registration = await client.register_agent(Library)
        runtime = Runtime(
            Library(), exchange_factory=factory, registration=registration
        )
        running = asyncio.create_task(runtime.run_until_complete())
        yield Handle(registration.agent_id), runtime.agent
        runtime.signal_shutdown()
        await running
