"""Many agents in the process of one job: what is asked, told and lost together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from academy.exchange import ExchangeFactory
from academy.exchange.cloud import spawn_http_exchange
from academy.executors.batch import BatchExecutor
from academy.executors.event_loop import EventLoopExecutor
from academy.failure import JobCancelledError
from academy.manager import Manager
from academy.scheduler.job import JobState
from tests.hpc.batch_agents import Member
from tests.support.slurm import SlurmLab

pytestmark = pytest.mark.hpc


@pytest.fixture
def exchange() -> Iterator[ExchangeFactory]:
    with spawn_http_exchange() as factory:
        yield factory


def packed() -> EventLoopExecutor:
    jobs = BatchExecutor("slurm", resources={"walltime": "00:05:00"})
    return EventLoopExecutor(jobs, agents_per_worker=10)


async def test_agents_of_one_job_are_told_what_ended_it(
    slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    async with await Manager.from_exchange_factory(exchange, packed()) as manager:
        async with manager.launch_batch() as batch:
            agents = [await batch.queue(Member) for _ in range(3)]
        [job] = {(await agent.part()).job for agent in agents}
        slurm.run("scancel", job)
        for agent in agents:
            with pytest.raises(JobCancelledError) as caught:
                await manager.wait([agent], raise_error=True, timeout=60)
            assert caught.value.job_id == job


async def test_agents_that_wait_for_their_job_tell_which(
    slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    later = {"scheduler_options": "#SBATCH --begin=now+1hour"}
    async with await Manager.from_exchange_factory(exchange, packed()) as manager:
        async with manager.launch_batch() as batch:
            agents = [await batch.queue(Member, submit_kwargs=later) for _ in range(3)]

        async def job_ids() -> set[str]:
            jobs = [await manager.job(agent) for agent in agents]
            assert {job.state for job in jobs if job} <= {JobState.PENDING}
            return {job.job_id for job in jobs if job is not None}

        while not (found := await job_ids()):
            await asyncio.sleep(0.05)
        assert found == set(slurm.jobs())
    assert slurm.jobs() == {}


async def test_what_the_scheduler_would_refuse_is_refused_before_anything_is_there(
    slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    async with await Manager.from_exchange_factory(exchange, packed()) as manager:
        with pytest.raises(ValueError, match="walltime"):
            await manager.launch(Member, submit_kwargs={"walltime": "99:00:00"})
        assert await manager.exchange_client.discover(Member) == ()
    assert slurm.jobs() == {}
