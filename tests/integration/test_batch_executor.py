"""A manager whose agents run in batch jobs, here processes of this machine."""

from __future__ import annotations

import asyncio
import pickle
import signal
import threading
from collections.abc import AsyncIterator

import pytest

from academy.exchange.cloud import HttpExchangeFactory
from academy.executors.batch import BatchExecutor
from academy.manager import Manager
from tests.support.launchables import Counter, FailsAtLast


@pytest.fixture
def executor() -> BatchExecutor:
    return BatchExecutor("local", share_job=True, resources={"ranks_per_node": 3})


@pytest.fixture
async def manager(
    http_exchange: HttpExchangeFactory, executor: BatchExecutor
) -> AsyncIterator[Manager]:
    async with await Manager.from_exchange_factory(
        http_exchange, executor, max_retries=1, retry_backoff=0.01
    ) as manager:
        yield manager


@pytest.mark.slow
async def test_an_agent_of_a_shared_job_that_dies_comes_back_in_a_job_of_its_own(
    manager: Manager, executor: BatchExecutor
) -> None:
    async with manager.launch_batch() as batch:
        agents = [await batch.queue(Counter, args=(n,)) for n in range(3)]
    assert await asyncio.gather(*(agent.add(1) for agent in agents)) == [1, 2, 3]
    assert len({task.job.job_id for task in executor.jobs()}) == 1
    dying = asyncio.create_task(agents[1].kill(signal.SIGKILL))
    await asyncio.wait([dying])
    assert dying.exception() is not None
    assert await agents[1].add(1) == 2  # it has begun anew
    assert await agents[0].add(1) == 2  # it has not
    jobs = [task.job.job_id for task in executor.jobs()]
    assert len(jobs) == 4
    assert len(set(jobs)) == 2


async def test_an_agent_of_a_shared_job_that_cannot_be_packed_leaves_no_mailbox(
    manager: Manager, executor: BatchExecutor
) -> None:
    batch = manager.launch_batch()
    await batch.queue(FailsAtLast)
    await batch.queue(FailsAtLast, args=(threading.Lock(),))
    with pytest.raises(pickle.PicklingError, match=r"args\[0\]"):
        await batch.submit()
    assert await manager.exchange_client.discover(FailsAtLast) == ()
    assert executor.jobs() == []


async def test_launches_that_ask_for_other_resources_have_other_jobs(
    manager: Manager, executor: BatchExecutor
) -> None:
    async with manager.launch_batch() as batch:
        here = [await batch.queue(Counter) for _ in range(2)]
        asked = {"worker_init": "export COLOUR=green"}
        there = await batch.queue(Counter, submit_kwargs=asked)
        with_manager = await batch.queue(Counter, executor="event_loop")
    agents = [*here, there, with_manager]
    assert await asyncio.gather(*(agent.add(1) for agent in agents)) == [1] * 4
    jobs = [task.job.job_id for task in executor.jobs()]
    assert sorted(jobs.count(job) for job in set(jobs)) == [1, 2]


async def test_what_ends_an_agent_is_told(
    http_exchange: HttpExchangeFactory,
) -> None:
    executor = BatchExecutor("local")
    async with await Manager.from_exchange_factory(http_exchange, executor) as manager:
        agent = await manager.launch(Counter)
        assert await agent.add(1) == 1
        call = asyncio.create_task(agent.kill(signal.SIGTERM))
        with pytest.raises(Exception, match="SIGTERM"):
            await manager.wait([agent], raise_error=True)
        await asyncio.wait([call])
        assert call.exception() is not None
