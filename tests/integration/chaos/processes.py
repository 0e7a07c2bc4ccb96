"""The processes of a storm: agents that write down what they run, and their callers."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from academy.agent import Agent, action
from academy.exception import ActionInterruptedError
from academy.exchange import AgentRegistration, HttpExchangeFactory, UserExchangeClient
from academy.handle import Handle
from academy.runtime import Runtime
from tests.integration.chaos.ledger import (
    INTERRUPTED,
    OK,
    Pen,
    is_stream,
    name_of,
    reply,
)

ITEMS = 100
"""What a stream yields; three times what may be on its way."""
SIZES = [0] * 400 + [100] * 200 + [5_000] * 60 + [100_000] * 20 + [600_000] * 2
SIZES.append(3_000_000)
"""Bytes of the arguments; some answers have as many. What is large comes in parts."""


class Scribe(Agent):
    """Writes down each call before anything can become of it."""

    def __init__(self, path: Path) -> None:
        self._pen = Pen(path)
        self._incarnation = os.urandom(4).hex()

    @action
    async def once(self, sender: int, number: int, blob: bytes) -> Any:
        self._pen.write(self._incarnation, sender, number)
        return reply(sender, number, blob)

    @action(idempotent=True)
    async def again(self, sender: int, number: int, blob: bytes) -> Any:
        return await self.once(sender, number, blob)

    @action
    async def stream_once(
        self, sender: int, number: int, blob: bytes
    ) -> AsyncIterator[Any]:
        self._pen.write(self._incarnation, sender, number)
        for item in range(ITEMS):
            yield item, reply(sender, number, blob)

    @action(idempotent=True)
    async def stream_again(
        self, sender: int, number: int, blob: bytes
    ) -> AsyncIterator[Any]:
        async for item in self.stream_once(sender, number, blob):
            yield item


@dataclass
class AgentJob:
    """An agent to run until it is killed."""

    factory: HttpExchangeFactory
    registration: AgentRegistration[Any]
    path: Path

    async def run(self) -> None:
        runtime = Runtime(
            Scribe(self.path),
            exchange_factory=self.factory.for_agents(),
            registration=self.registration,
        )
        await runtime.run_until_complete()


@dataclass
class CallerJob:
    """Calls to make, in order, `outstanding` of them at a time.

    Attributes:
        registrations: the agents; which call goes to which is up to the seed.
        count: how many calls, of all agents together.
    """

    factory: HttpExchangeFactory
    registrations: list[AgentRegistration[Any]]
    path: Path
    sender: int
    count: int
    outstanding: int
    seed: int

    async def run(self) -> None:
        self._pen = Pen(self.path)
        self._window = asyncio.Semaphore(self.outstanding)
        dice = random.Random(self.seed)
        numbers = [0] * len(self.registrations)
        async with await self.factory.create_user_client() as client:
            handles = [self._handle(client, r) for r in self.registrations]
            async with asyncio.TaskGroup() as calls:
                for _ in range(self.count):
                    await self._window.acquire()
                    agent = dice.randrange(len(handles))
                    number, size = numbers[agent], dice.choice(SIZES)
                    numbers[agent] += 1
                    self._pen.write("posted", agent, number)
                    calls.create_task(self._call(handles[agent], agent, number, size))
                    await asyncio.sleep(0)  # it posts before the next one does

    def _handle(
        self, client: UserExchangeClient, registration: AgentRegistration[Any]
    ) -> Handle[Any]:
        return Handle(registration.agent_id, exchange=client, ignore_context=True)

    async def _call(
        self, handle: Handle[Any], agent: int, number: int, size: int
    ) -> None:
        blob = random.Random(number).randbytes(size)
        ask = handle.action(name_of(number), self.sender, number, blob)
        expected: Any = reply(self.sender, number, blob)
        items: list[Any] = []
        try:
            if is_stream(number):
                expected = [(item, expected) for item in range(ITEMS)]
                async for item in ask:
                    items.append(item)
                answer: Any = items
            else:
                answer = await ask
            outcome = OK if answer == expected else f"a wrong answer: {answer!r:.99}"
        except ActionInterruptedError:
            right = items == list(expected)[: len(items)]
            outcome = INTERRUPTED if right else f"wrong items: {items!r:.99}"
        except Exception as error:
            outcome = f"an error: {error!r}".replace("\n", " ")
        self._pen.write("ended", agent, number, outcome)
        os.write(sys.stdout.fileno(), b".")
        self._window.release()


if __name__ == "__main__":
    asyncio.run(pickle.load(sys.stdin.buffer).run())
