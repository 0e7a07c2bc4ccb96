"""Numbered calls while servers, agents and connections end without a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from academy.exception import ActionInterruptedError
from academy.exchange import ExchangeFactory, UserExchangeClient
from academy.handle import Handle
from tests.support.recorder import Recorder, RecorderProcess, recorded
from tests.support.server import ExchangeServer
from tests.support.tcp_proxy import TcpProxy

SENDERS = 4
CALLS = 250
OUTSTANDING = 25  # of each sender

Disturb = Callable[[], Awaitable[object]]
Outcome = int | ActionInterruptedError


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ExchangeServer]:
    with ExchangeServer(tmp_path / "exchange") as server:
        yield server


class Campaign:
    """Several senders that call one recorder with the numbers 0, 1, 2, …

    Attributes:
        outcomes: by sender, what became of each call.
    """

    def __init__(self, agent: RecorderProcess, handles: list[Handle[Recorder]]) -> None:
        self.agent = agent
        self.outcomes: list[dict[int, Outcome]] = [{} for _ in handles]
        self._handles = handles
        self._answered = 0
        self._progress = asyncio.Condition()

    async def run(self, name: str, *disturbances: Disturb) -> None:
        """Make all calls, and disturb them at even intervals."""
        interval = SENDERS * CALLS // (len(disturbances) + 1)
        async with asyncio.TaskGroup() as group:
            for sender in range(len(self._handles)):
                group.create_task(self._send(sender, name))
            for i, disturb in enumerate(disturbances, 1):
                await self._reach(i * interval)
                await disturb()

    async def _reach(self, count: int) -> None:
        async with self._progress:
            await self._progress.wait_for(lambda: self._answered >= count)

    async def _send(self, sender: int, name: str) -> None:
        room = asyncio.Semaphore(OUTSTANDING)
        async with asyncio.TaskGroup() as group:
            for number in range(CALLS):
                await room.acquire()
                call = group.create_task(self._call(sender, number, name))
                call.add_done_callback(lambda _: room.release())

    async def _call(self, sender: int, number: int, name: str) -> None:
        outcome: Outcome
        try:
            outcome = await self._handles[sender].action(name, sender, number)
        except ActionInterruptedError as error:
            outcome = error
        assert number not in self.outcomes[sender], "a call was answered twice"
        self.outcomes[sender][number] = outcome
        async with self._progress:
            self._answered += 1
            self._progress.notify_all()


@asynccontextmanager
async def campaign(
    server: ExchangeServer, folder: Path, client_port: int = 0, agent_port: int = 0
) -> AsyncIterator[Campaign]:
    async with AsyncExitStack() as stack:

        async def connect(factory: ExchangeFactory) -> UserExchangeClient:
            return await stack.enter_async_context(await factory.create_user_client())

        factory = server.factory(client_port)
        users = [await connect(factory) for _ in range(SENDERS)]
        registration = await users[0].register_agent(Recorder)
        agent = RecorderProcess(folder, server.factory(agent_port), registration)
        stack.enter_context(agent)
        agent_id = registration.agent_id
        yield Campaign(
            agent, [Handle(agent_id, exchange=u, ignore_context=True) for u in users]
        )


def assert_all_once_in_order(campaign: Campaign) -> None:
    numbers = list(range(CALLS))
    for sender, outcomes in enumerate(campaign.outcomes):
        assert sorted(outcomes) == numbers
        assert all(outcome == number for number, outcome in outcomes.items()), outcomes
        assert recorded(campaign.agent.trace)[sender] == numbers


async def test_killing_the_exchange_loses_and_doubles_nothing(
    server: ExchangeServer, tmp_path: Path
) -> None:
    async with campaign(server, tmp_path) as calls:
        await calls.run("record", *[server.restart] * 3)
    assert_all_once_in_order(calls)


@pytest.mark.parametrize("whose", ["client", "agent"])
async def test_cutting_connections_loses_and_doubles_nothing(
    whose: str, server: ExchangeServer, tmp_path: Path
) -> None:
    async with TcpProxy(server.port) as proxy:

        async def cut() -> None:
            assert proxy.cut()

        ports = {f"{whose}_port": proxy.port}
        async with campaign(server, tmp_path, **ports) as calls:
            await calls.run("record", *[cut] * 9)
        assert proxy.accepted > 5
    assert_all_once_in_order(calls)


async def test_connections_that_die_after_a_few_bytes_lose_and_double_nothing(
    server: ExchangeServer, tmp_path: Path
) -> None:
    async with TcpProxy(server.port) as proxy:

        async def cut_and_shorten() -> None:
            proxy.budget = 40_000
            proxy.cut()

        async with campaign(server, tmp_path, proxy.port, proxy.port) as calls:
            await calls.run("record", cut_and_shorten)
            proxy.budget = None
        assert proxy.accepted > 5
    assert_all_once_in_order(calls)


async def test_killing_an_agent_interrupts_what_it_did_and_nothing_else(
    server: ExchangeServer, tmp_path: Path
) -> None:
    async with campaign(server, tmp_path) as calls:

        async def replace() -> None:
            calls.agent.kill()
            calls.agent.start()

        await calls.run("record", *[replace] * 3)
    trace = recorded(calls.agent.trace)
    for sender, outcomes in enumerate(calls.outcomes):
        assert sorted(outcomes) == list(range(CALLS))
        interrupted = {n for n, o in outcomes.items() if not isinstance(o, int)}
        assert len(interrupted) <= 3 * OUTSTANDING
        done = trace[sender]
        assert done == sorted(set(done)), "an action ran twice, or out of order"
        assert set(range(CALLS)) - interrupted <= set(done)


async def test_an_idempotent_action_runs_again_when_its_agent_was_killed(
    server: ExchangeServer, tmp_path: Path
) -> None:
    async with campaign(server, tmp_path) as calls:

        async def replace() -> None:
            calls.agent.kill()
            calls.agent.start()

        await calls.run("record_again", *[replace] * 3)
    trace = recorded(calls.agent.trace)
    for sender, outcomes in enumerate(calls.outcomes):
        assert outcomes == {number: number for number in range(CALLS)}
        assert set(trace[sender]) == set(range(CALLS))
        again = len(trace[sender]) - CALLS
        assert again <= 3 * OUTSTANDING
