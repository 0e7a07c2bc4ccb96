"""Agents that fail and run again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from academy.exception import (
    ActionCancelledError,
    AgentTerminatedError,
    SupersededError,
)
from academy.exchange.client import UserExchangeClient
from academy.exchange.cloud import HttpExchangeFactory
from academy.exchange.local import LocalExchangeFactory
from academy.exchange.mailbox_status import MailboxStatus
from academy.manager import Manager
from academy.manager.request import MAX_BACKOFF, RetryPolicy
from academy.runtime import Runtime, RuntimeConfig
from tests.support.executors import ProcessEach
from tests.support.launchables import Counter, Diary, FailsAtFirst, FailsAtLast


@pytest.fixture
async def client() -> AsyncIterator[UserExchangeClient]:
    client = await LocalExchangeFactory().create_user_client()
    yield client
    await client.close()


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary"


def words(diary: Path) -> list[str]:
    return diary.read_text().split() if diary.exists() else []


def runs(diary: Path) -> int:
    return words(diary).count("startup")


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_n_retries_are_n_and_one_runs_and_the_last_failure_is_raised(
    client: UserExchangeClient, diary: Path, retries: int
) -> None:
    async with Manager(client, max_retries=retries, retry_backoff=0) as manager:
        agent = await manager.launch(FailsAtFirst, args=(diary, 99))
        with pytest.raises(RuntimeError, match=f"failure {retries + 1}"):
            await manager.wait([agent], raise_error=True)
        assert runs(diary) == retries + 1


async def test_an_agent_that_recovers_is_called_under_the_same_identity(
    client: UserExchangeClient, diary: Path
) -> None:
    async with Manager(client, max_retries=2, retry_backoff=0) as manager:
        agent = await manager.launch(FailsAtFirst, args=(diary, 2))
        await agent.ping()
        assert runs(diary) == 3
        await manager.shutdown(agent)
    assert words(diary)[-1] == "shutdown"


@pytest.mark.parametrize("terminate", [True, False])
async def test_the_mailbox_ends_at_the_last_failure_if_it_is_to(
    client: UserExchangeClient, diary: Path, terminate: bool
) -> None:
    config = RuntimeConfig(terminate_on_error=terminate)
    async with Manager(client, max_retries=1, retry_backoff=0) as manager:
        agent = await manager.launch(FailsAtFirst, args=(diary, 99), config=config)
        await manager.wait([agent])
        status = await client.status(agent.agent_id)
        assert (status is MailboxStatus.TERMINATED) == terminate
        with pytest.raises(RuntimeError, match="failure 2"):
            await manager.shutdown(agent)


async def test_the_mailbox_stays_between_two_runs(
    client: UserExchangeClient, diary: Path
) -> None:
    async with Manager(client, max_retries=1, retry_backoff=3600) as manager:
        agent = await manager.launch(FailsAtFirst, args=(diary, 99), name="patient")
        while not runs(diary):
            await asyncio.sleep(0)
        ping = asyncio.create_task(agent.ping())
        assert await client.status(agent.agent_id) is MailboxStatus.ACTIVE
        assert manager.running() == {agent.agent_id}
        # Nobody waits for an hour: the failed run is the last one then.
        with pytest.raises(RuntimeError, match="failure 1"):
            await manager.shutdown(agent)
        with pytest.raises(AgentTerminatedError):
            await ping
        assert runs(diary) == 1


async def test_an_agent_that_was_told_to_stop_does_not_run_again(
    client: UserExchangeClient,
) -> None:
    async with Manager(client, max_retries=5, retry_backoff=0) as manager:
        agent = await manager.launch(FailsAtLast)
        await agent.ping()
        with pytest.raises(ValueError, match="at last"):
            await manager.shutdown(agent)
        assert manager.running() == set()


async def test_an_agent_that_runs_elsewhere_by_now_does_not_come_back(
    client: UserExchangeClient,
) -> None:
    async with Manager(client, max_retries=5, retry_backoff=0) as manager:
        registration = await manager.register_agent(Counter)
        counter = await manager.launch(Counter, registration=registration)
        await counter.ping()
        elsewhere = Runtime(
            Counter(), exchange_factory=client.factory(), registration=registration
        )
        async with elsewhere:
            with pytest.raises(SupersededError):
                await manager.wait([counter], raise_error=True)
            assert await counter.add() == 1


async def test_a_killed_worker_is_replaced_and_its_agent_comes_back(
    http_exchange: HttpExchangeFactory, diary: Path
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, ProcessEach(), max_retries=1, retry_backoff=0
    ) as manager:
        agent = await manager.launch(Diary, args=(diary,))
        first = await agent.pid()
        with pytest.raises(Exception, match="interrupted"):
            await agent.kill()
        assert await agent.pid() != first
        assert words(diary) == ["startup", "startup"]


async def test_a_worker_that_is_killed_each_time_ends_the_mailbox(
    http_exchange: HttpExchangeFactory, diary: Path
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, ProcessEach(), max_retries=1, retry_backoff=0
    ) as manager:
        agent = await manager.launch(Diary, args=(diary,))
        with pytest.raises(Exception, match="interrupted"):
            await agent.kill()
        with pytest.raises(AgentTerminatedError):
            await agent.kill()
        with pytest.raises(BrokenProcessPool):
            await manager.wait([agent], raise_error=True)
        assert runs(diary) == 2


async def test_a_preempted_agent_ends_in_order_and_comes_back(
    http_exchange: HttpExchangeFactory, diary: Path
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, ProcessEach(), max_retries=1, retry_backoff=0
    ) as manager:
        agent = await manager.launch(Diary, args=(diary,))
        first = await agent.pid()
        with pytest.raises(ActionCancelledError):
            await agent.kill(signal.SIGTERM)
        assert await agent.pid() != first
        assert words(diary) == ["startup", "shutdown", "startup"]


async def test_a_broken_pool_is_not_tried_again(
    http_exchange: HttpExchangeFactory, diary: Path
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, ProcessPoolExecutor(1), max_retries=5, retry_backoff=3600
    ) as manager:
        agent = await manager.launch(Diary, args=(diary,))
        with pytest.raises(AgentTerminatedError):
            await agent.kill()
        with pytest.raises(BrokenProcessPool):
            await manager.wait([agent], raise_error=True)
        assert runs(diary) == 1


def test_the_wait_before_a_retry_doubles_up_to_a_minute() -> None:
    policy = RetryPolicy(max_retries=9, backoff=0.5)
    for failures, longest in ((1, 0.5), (2, 1.0), (5, 8.0), (100, MAX_BACKOFF)):
        delays = {policy.delay(failures) for _ in range(50)}
        assert longest / 2 <= min(delays) < max(delays) <= longest


def test_no_backoff_is_no_wait() -> None:
    assert RetryPolicy(max_retries=9, backoff=0).delay(3) == 0


@pytest.mark.parametrize(
    ("retries", "backoff", "named"), [(-1, 0, "max_retries"), (0, -1, "retry_backoff")]
)
def test_a_negative_policy_is_refused(retries: int, backoff: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RetryPolicy(retries, backoff)
