"""An agent's process is killed and starts again: every call has one outcome."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from academy.exception import ActionInterruptedError, AgentInactiveError
from academy.exchange import (
    AgentRegistration,
    ExchangeClientConfig,
    HttpExchangeFactory,
    MailboxStatus,
    UserExchangeClient,
)
from academy.handle import Handle
from tests.support.recording_agent import AgentProcess, RecordingAgent, runs
from tests.support.server import ExchangeServer

pytestmark = pytest.mark.slow

SENDERS = 4
TOTAL = 1000


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExchangeServer]:
    with ExchangeServer(tmp_path_factory.mktemp("exchange")) as exchange:
        yield exchange


@pytest.fixture
async def registration(user: UserExchangeClient) -> AgentRegistration[Any]:
    return await user.register_agent(RecordingAgent)


@pytest.fixture
def process(
    factory: HttpExchangeFactory,
    registration: AgentRegistration[Any],
    tmp_path: Path,
) -> Iterator[AgentProcess]:
    with AgentProcess(factory, registration, tmp_path / "record") as process:
        yield process


def handle_of(client: UserExchangeClient, registration: AgentRegistration[Any]) -> Any:
    """Return a handle as a program of its own would have it."""
    return Handle(registration.agent_id, exchange=client, ignore_context=True)


async def test_a_call_fails_when_its_agent_is_killed_and_inactive_agents_matter(
    exchange: ExchangeServer,
    registration: AgentRegistration[Any],
    process: AgentProcess,
) -> None:
    config = ExchangeClientConfig(heartbeat_interval=1, stale_heartbeat_threshold=0.3)
    factory = exchange.factory(config=config, additional_headers={"X-Name": "own"})
    async with await factory.create_user_client() as client, asyncio.timeout(60):
        handle: Handle[Any] = Handle(
            registration.agent_id,
            exchange=client,
            ignore_context=True,
            reject_on_inactive=True,
        )
        pid = await handle.pid()  # one that was never there is waited for
        calls = [asyncio.ensure_future(handle.hang(number)) for number in range(3)]
        while len(runs(process.record)) < len(calls):
            await handle.pid()
        process.kill()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [AgentInactiveError] * 3
        with pytest.raises(AgentInactiveError):
            await handle.pid()

        process.start()
        while await handle.agent_status() is MailboxStatus.INACTIVE:
            await asyncio.sleep(0.05)
        assert await handle.pid() != pid


async def make_calls(handle: Any, action: str, sender: int, done: Steps) -> list[Any]:
    """Make numbered calls in order, some at a time; return results and errors."""
    window = asyncio.Semaphore(16)

    async def call(number: int) -> Any:
        try:
            return await handle.action(action, sender, number)
        except ActionInterruptedError as error:
            return error
        finally:
            window.release()
            done.step()

    calls = []
    for number in range(TOTAL // SENDERS):
        await window.acquire()
        calls.append(asyncio.ensure_future(call(number)))
        await asyncio.sleep(0)  # it posts before the next one does
    return await asyncio.gather(*calls)


class Steps:
    """Restarts an agent each time so many calls have ended."""

    def __init__(self, process: AgentProcess, at: list[int]) -> None:
        self.restarts: list[asyncio.Future[None]] = []
        self._process = process
        self._at = at
        self._count = 0

    def step(self) -> None:
        self._count += 1
        if self._count in self._at:
            self.restarts.append(asyncio.ensure_future(self._process.restart()))


async def kill_in_mid_traffic(
    exchange: ExchangeServer,
    registration: AgentRegistration[Any],
    process: AgentProcess,
    action: str,
) -> list[list[Any]]:
    """Make 1,000 calls from four programs and kill the agent four times meanwhile."""
    steps = Steps(process, [100, 300, 500, 800])
    connections = [{"X-Name": str(sender // 2)} for sender in range(SENDERS)]
    factories = [exchange.factory(additional_headers=own) for own in connections]
    clients = [await factory.create_user_client() for factory in factories]
    try:
        async with asyncio.timeout(90):
            outcomes = await asyncio.gather(
                *(
                    make_calls(handle_of(client, registration), action, sender, steps)
                    for sender, client in enumerate(clients)
                )
            )
            await asyncio.gather(*steps.restarts)
    finally:
        await asyncio.gather(*(client.close() for client in clients))
    assert len(steps.restarts) == 4
    return outcomes


async def test_calls_end_once_and_none_runs_twice_when_an_agent_is_killed(
    exchange: ExchangeServer,
    registration: AgentRegistration[Any],
    process: AgentProcess,
) -> None:
    outcomes = await kill_in_mid_traffic(exchange, registration, process, "once")

    interrupted = 0
    ran = Counter(map(tuple, runs(process.record)))
    assert set(ran.values()) == {1}
    for sender, own in enumerate(outcomes):
        assert len(own) == TOTAL // SENDERS
        for number, outcome in enumerate(own):
            if isinstance(outcome, ActionInterruptedError):
                assert outcome.action == "once"
                interrupted += 1
            else:
                assert outcome == number * 2
                assert (sender, number) in ran
        order = [number for by, number in runs(process.record) if by == sender]
        assert order == sorted(order)
    assert interrupted <= 4 * SENDERS * 16, "no more than were under way"
    assert len(ran) >= TOTAL - interrupted


async def test_idempotent_actions_all_complete_when_an_agent_is_killed(
    exchange: ExchangeServer,
    registration: AgentRegistration[Any],
    process: AgentProcess,
) -> None:
    outcomes = await kill_in_mid_traffic(exchange, registration, process, "again")

    expected = [number * 2 for number in range(TOTAL // SENDERS)]
    assert outcomes == [expected] * SENDERS
    ran = Counter(map(tuple, runs(process.record)))
    assert len(ran) == TOTAL


async def has_run(record: Path, number: int) -> None:
    """Wait until an action of another process has begun."""
    while [-1, number] not in runs(record):
        await asyncio.sleep(0.01)


async def test_an_action_that_ran_when_its_agent_was_killed_is_interrupted(
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
    process: AgentProcess,
) -> None:
    handle = handle_of(user, registration)
    hanging = asyncio.ensure_future(handle.hang(7))
    await has_run(process.record, 7)
    await process.restart()

    with pytest.raises(ActionInterruptedError, match='"hang" was interrupted'):
        await hanging
    assert runs(process.record) == [[-1, 7]]
    assert await handle.once(1, 2) == 4


async def test_an_idempotent_action_that_ran_when_its_agent_was_killed_runs_again(
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
    process: AgentProcess,
) -> None:
    handle = handle_of(user, registration)
    hanging = asyncio.ensure_future(handle.hang_once(8))
    await has_run(process.record, 8)
    await process.restart()

    assert await hanging == "done"


async def test_calls_to_an_agent_that_is_down_wait_for_the_next_one(
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
    process: AgentProcess,
) -> None:
    handle = handle_of(user, registration)
    first = await handle.pid()
    await asyncio.to_thread(process.kill)
    calls = [asyncio.ensure_future(handle.once(0, number)) for number in range(100)]
    other = asyncio.ensure_future(handle.pid())
    await asyncio.sleep(0)
    process.start()

    assert await asyncio.gather(*calls) == [number * 2 for number in range(100)]
    assert await other != first


async def test_the_exchange_is_killed_while_an_action_runs(
    tmp_path: Path,
) -> None:
    """Nobody's process has ended but the exchange's: nothing is interrupted."""
    record = tmp_path / "record"
    with ExchangeServer(tmp_path / "exchange") as exchange:
        factory = exchange.factory()
        async with await factory.create_user_client() as user:
            registration = await user.register_agent(RecordingAgent)
            handle = handle_of(user, registration)
            with AgentProcess(factory, registration, record):
                before = await handle.pid()
                hanging = asyncio.ensure_future(handle.hang(1))
                await has_run(record, 1)
                await exchange.restart()
                assert await handle.pid() == before
                assert await handle.once(5, 5) == 10
                assert not hanging.done()
                hanging.cancel()
                await asyncio.wait([hanging])
                assert await handle.once(5, 6) == 12
    assert runs(record) == [[-1, 1], [5, 5], [5, 6]]


async def test_an_older_process_stops_when_a_newer_one_has_taken_over(
    user: UserExchangeClient,
    factory: HttpExchangeFactory,
    registration: AgentRegistration[Any],
    process: AgentProcess,
    tmp_path: Path,
) -> None:
    handle = handle_of(user, registration)
    older = await handle.pid()
    with AgentProcess(factory, registration, tmp_path / "other record"):
        assert await asyncio.to_thread(process.wait) != 0
        assert await handle.pid() != older
