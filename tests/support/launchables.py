"""Agents that tests launch on workers, which import them from here."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

from academy.agent import Agent, action, loop
from academy.handle import Handle


class Counter(Agent):
    """Counts, and tells where it does."""

    def __init__(self, start: int = 0, *, step: int = 1) -> None:
        self.value = start
        self.step = step

    @action
    async def add(self, number: int = 1) -> int:
        self.value += number * self.step
        return self.value

    @action
    async def pid(self) -> int:
        return os.getpid()

    @action
    async def thread(self) -> str:
        return threading.current_thread().name

    @action
    async def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process that this agent is in, and never return."""
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()


class FailsAtLast(Counter):
    """Fails when it shuts down."""

    async def agent_on_shutdown(self) -> None:
        raise ValueError("at last")


class Diary(Agent):
    """Writes its life down, one word each: all runs of an agent share the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, word: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{word}\n")

    async def agent_on_startup(self) -> None:
        self.write("startup")

    async def agent_on_shutdown(self) -> None:
        self.write("shutdown")

    @action
    async def pid(self) -> int:
        return os.getpid()

    @action
    async def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process that this agent is in, and never return."""
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()

    @action
    async def wait(self) -> None:
        await asyncio.Event().wait()


def diary_at(path: str) -> Diary:
    """Make a diary from what a TOML file can say."""
    return Diary(Path(path))


class FailsAtFirst(Diary):
    """Fails its first runs, each in other words."""

    def __init__(self, path: Path, failures: int) -> None:
        super().__init__(path)
        self.failures = failures

    async def agent_on_startup(self) -> None:
        await super().agent_on_startup()
        run = self.path.read_text().split().count("startup")
        if run <= self.failures:
            raise RuntimeError(f"failure {run}")


class Stubborn(Agent):
    """Does not shut down before it is let go, in this event loop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.let_go = asyncio.Event()

    async def agent_on_shutdown(self) -> None:
        self.asked.set()
        await self.let_go.wait()


class Link(Agent):
    """The end of a chain, or a link in it."""

    def __init__(self, following: Handle[Link] | None = None) -> None:
        self.following = following

    @action
    async def length(self) -> int:
        return 1 + (await self.following.length() if self.following else 0)


class Seat(Agent):
    """One of several in a ring, each of which knows all of them."""

    def __init__(self, seats: list[Handle[Any]], index: int) -> None:
        self.seats = seats
        self.index = index

    @action
    async def around(self, hops: int) -> int:
        """Return the index at which a message is after so many hops."""
        if hops == 0:
            return self.index
        following = self.seats[(self.index + 1) % len(self.seats)]
        index: int = await following.around(hops - 1)
        return index


class FailingLoop(Agent):
    """Its loop fails at once."""

    @loop
    async def fail(self, shutdown: asyncio.Event) -> None:
        raise ZeroDivisionError("in the loop")


class Exits(Agent):
    """Ends the program, or so it thinks."""

    @action
    async def exit(self) -> None:
        raise SystemExit(3)


class Outer:
    """A place for an agent's class."""

    class Inner(Agent):
        """An agent whose class is in another one."""
