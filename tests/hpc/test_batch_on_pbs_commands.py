"""Batch jobs by OpenPBS's commands, which here a Slurm carries out."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from academy.exchange import ExchangeFactory
from academy.exchange.cloud import spawn_http_exchange
from academy.executors.batch import BatchExecutor
from academy.failure import JobCancelledError
from academy.manager import Manager
from tests.hpc.batch_agents import Member
from tests.support.slurm import PBS_COMMANDS, NetnsLab, until

pytestmark = pytest.mark.hpc

SHORT = {"walltime": "00:05:00"}


@pytest.fixture
def pbs(hosts: NetnsLab, monkeypatch: pytest.MonkeyPatch) -> NetnsLab:
    """A cluster whose nodes are hosts of their own."""
    python = Path(sys.executable).parent  # Runs the commands.
    monkeypatch.setenv("PATH", f"{PBS_COMMANDS}:{python}", prepend=os.pathsep)
    return hosts


@pytest.fixture
def exchange(pbs: NetnsLab) -> Iterator[ExchangeFactory]:
    with spawn_http_exchange(host=pbs.address) as factory:
        yield factory


# A job of PBS does not get the environment that it is submitted from.
def resources(**asked: Any) -> dict[str, Any]:
    path = f"export PYTHONPATH={os.environ['PYTHONPATH']}"
    return {**SHORT, "worker_init": path, **asked}


async def test_an_agent_runs_in_a_job_of_pbs_and_is_ended_in_order_by_qdel(
    pbs: NetnsLab, exchange: ExchangeFactory, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    executor = BatchExecutor("pbs", resources=resources())
    preview = executor.preview()
    async with await Manager.from_exchange_factory(exchange, executor) as manager:
        agent = await manager.launch(Member, args=(mark,), name="archive")
        part = await agent.part()
        assert pbs.script(part.job) == preview
        [task] = executor.jobs()
        assert (task.name, task.job.scheduler) == ("archive", "pbs")
        assert task.job.job_id == f"{part.job}.pbs01"
        qdel = ("qdel", task.job.job_id)
        await asyncio.to_thread(subprocess.run, qdel, check=True)
        with pytest.raises(JobCancelledError):
            await manager.wait([agent], raise_error=True)
    assert mark.read_text() == "in order"


async def test_a_batch_shares_the_nodes_of_one_job_of_pbs(
    pbs: NetnsLab, exchange: ExchangeFactory
) -> None:
    asked = resources(nodes=2, ranks_per_node=2, cpus_per_rank=1, gpus_per_node=4)
    executor = BatchExecutor("pbs", resources=asked, share_job=True)
    async with await Manager.from_exchange_factory(exchange, executor) as manager:
        async with manager.launch_batch() as batch:
            agents = [await batch.queue(Member) for _ in range(4)]
        parts = await asyncio.gather(*(agent.part() for agent in agents))
        assert len({part.job for part in parts}) == 1
        halves = Counter((part.host, part.gpus) for part in parts)
        assert len({part.host for part in parts}) == 2
        assert {gpus for _, gpus in halves} == {"0,1", "2,3"}
        assert set(halves.values()) == {1}
        tasks = executor.jobs()
        assert len({task.job.job_id for task in tasks}) == 1
    left = {path.name for path in tasks[0].directory.parent.iterdir()}
    assert "environment" not in left


async def test_a_job_that_waits_is_taken_back(pbs: NetnsLab) -> None:
    executor = BatchExecutor("pbs", resources=resources())
    future = executor.submit(os.getpid, scheduler_options="#PBS -h")
    await asyncio.to_thread(until, pbs.jobs, "a job")
    assert future.cancel()
    await asyncio.to_thread(executor.shutdown)
    assert pbs.jobs() == {}
