"""Numbered calls: who makes them, who serves them, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Self

from academy.exchange import (
    AgentExchangeClient,
    AgentRegistration,
    ExchangeFactory,
    UserExchangeClient,
)
from academy.identifier import AgentId
from academy.message import ActionRequest, ActionResponse, Message
from academy.serialize import PICKLE, Payload
from tests.support.agents import Adder


class Server:
    """An agent that keeps a record of each call, in a file, and answers it doubled.

    Attributes:
        executed: (sender, number) of each call, in order.
        at: what to do when so many calls were executed, before they are answered. What
            that begins is to be done when the calls are, and one after the other: the
            calls may reach the next moment before a busy machine has done its part.
        begun: that work.
    """

    def __init__(self, record: Path) -> None:
        self.executed: list[tuple[int, int]] = []
        self.at: dict[int, Callable[[], object]] = {}
        self.begun: list[asyncio.Future[Any]] = []
        self.lost: asyncio.Queue[Exception] = asyncio.Queue()
        self._early: list[Message] = []
        self._record = record
        self._client: AgentExchangeClient | None = None
        self._turn = asyncio.Lock()

    async def start(
        self, factory: ExchangeFactory, registration: AgentRegistration[Any]
    ) -> Self:
        self._client = await factory.create_agent_client(registration, self._serve)
        self._client.on_lost = self.lost.put_nowait
        while self._early:
            self._serve(self._early.pop(0))
        return self

    def _serve(self, message: Message) -> None:
        if self._client is None:
            self._early.append(message)
            return
        body = message.get_body()
        assert isinstance(body, ActionRequest)
        sender, number = body.get_args()
        self.executed.append((sender, number))
        with self._record.open("a") as record:
            record.write(f"{sender} {number}\n")
        step = self.at.pop(len(self.executed), None)
        if step is not None and inspect.isawaitable(work := step()):
            self.begun.append(asyncio.ensure_future(self._in_turn(work)))
        result = ActionResponse(Payload(PICKLE, (sender, number * 2)))
        self._client.post(message.create_response(result))

    async def _in_turn(self, work: Awaitable[Any]) -> None:
        async with self._turn:
            await work

    def recorded(self) -> list[tuple[int, int]]:
        lines = self._record.read_text().splitlines()
        return [(int(a), int(b)) for a, b in map(str.split, lines)]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


def call(
    client: UserExchangeClient, dest: AgentId[Any], *arguments: Any
) -> asyncio.Future[Message]:
    """Post a call and return its future answer."""
    body = ActionRequest.of("record", arguments)
    return client.request(client.new_message(dest, body))


def result(response: Message) -> Any:
    body = response.get_body()
    assert isinstance(body, ActionResponse), body
    return body.get_result()


async def make_calls(
    client: UserExchangeClient,
    dest: AgentId[Any],
    sender: int,
    count: int,
    *,
    outstanding: int = 16,
) -> list[Any]:
    """Make numbered calls in order, so many of them at a time."""
    window = asyncio.Semaphore(outstanding)
    answers = []
    for number in range(count):
        await window.acquire()
        future = call(client, dest, sender, number)
        future.add_done_callback(lambda _: window.release())
        answers.append(future)
    return [result(response) for response in await asyncio.gather(*answers)]


async def register(factory: ExchangeFactory) -> AgentRegistration[Any]:
    """Register an agent on behalf of a program that has ended since."""
    async with await factory.create_user_client() as client:
        return await client.register_agent(Adder)


async def calls_from(
    factories: Sequence[ExchangeFactory],
    registration: AgentRegistration[Any],
    server: Server,
    total: int = 1000,
) -> None:
    """Make calls from a program at each factory at once, and check what came of them.

    None is lost, none runs twice, and each sender's run in the order of posting.
    """
    count = total // len(factories)
    clients = [await factory.create_user_client() for factory in factories]
    try:
        async with asyncio.timeout(90):
            answers = await asyncio.gather(
                *(
                    make_calls(client, registration.agent_id, sender, count)
                    for sender, client in enumerate(clients)
                )
            )
    finally:
        await asyncio.gather(*(client.close() for client in clients), server.close())
        await asyncio.gather(*server.begun)
    for sender, own in enumerate(answers):
        assert own == [(sender, number * 2) for number in range(count)]
        executed = [number for by, number in server.executed if by == sender]
        assert executed == list(range(count))
    assert server.recorded() == server.executed
    assert len(server.executed) == total
