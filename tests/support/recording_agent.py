"""An agent in a process of its own, which a test kills and starts again."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from academy.agent import Agent, action
from academy.exchange import AgentRegistration, HttpExchangeFactory
from academy.runtime import Runtime


class RecordingAgent(Agent):
    """Records each run of an action in a file, which outlives it."""

    def __init__(self, record: Path) -> None:
        self._record = record

    def _write(self, sender: int, number: int) -> None:
        with self._record.open("a") as record:
            record.write(f"{sender} {number}\n")

    @action
    async def once(self, sender: int, number: int) -> int:
        self._write(sender, number)
        await asyncio.sleep(0)
        return number * 2

    @action(idempotent=True)
    async def again(self, sender: int, number: int) -> int:
        self._write(sender, number)
        await asyncio.sleep(0)
        return number * 2

    @action
    async def hang(self, number: int) -> None:
        """Run until the process is killed."""
        self._write(-1, number)
        await asyncio.Event().wait()

    @action(idempotent=True)
    async def hang_once(self, number: int) -> str:
        """Run until the process is killed, and not again."""
        if [-1, number] not in runs(self._record):
            self._write(-1, number)
            await asyncio.Event().wait()
        return "done"

    @action
    async def stream_once(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number
            await asyncio.sleep(0)

    @action(idempotent=True)
    async def stream_again(self, to: int) -> AsyncIterator[int]:
        self._write(to, os.getpid())
        for number in range(to):
            yield number
            await asyncio.sleep(0)

    @action
    async def pid(self) -> int:
        return os.getpid()


def runs(record: Path) -> list[list[int]]:
    """Return (sender, number) of each run, in order."""
    if not record.exists():
        return []
    return [[int(n) for n in line.split()] for line in record.read_text().splitlines()]


class AgentProcess:
    """A `RecordingAgent` in a process; its token travels through a pipe."""

    def __init__(
        self,
        factory: HttpExchangeFactory,
        registration: AgentRegistration[Any],
        record: Path,
    ) -> None:
        self.record = record
        self._job = pickle.dumps((factory.for_agents(), registration, record))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, without waiting until it runs."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.recording_agent"],
            stdin=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self._job)
        self._process.stdin.close()

    def kill(self) -> None:
        """End it without a chance to do anything about it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def wait(self) -> int:
        """Wait until it has ended by itself; return its exit code."""
        process, self._process = self._process, None
        assert process is not None
        return process.wait()

    async def restart(self) -> None:
        await asyncio.to_thread(self.kill)
        self.start()

    def __enter__(self) -> AgentProcess:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()


def main() -> None:
    factory, registration, record = pickle.load(sys.stdin.buffer)
    runtime = Runtime(
        RecordingAgent(record), exchange_factory=factory, registration=registration
    )
    asyncio.run(runtime.run_until_complete())


if __name__ == "__main__":
    main()
