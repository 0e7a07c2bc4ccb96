"""A batch job for each agent, or one for many, in a real Slurm."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from academy.cli.app import app
from academy.exchange import ExchangeFactory
from academy.exchange.cloud import spawn_http_exchange
from academy.executors.batch import BatchExecutor
from academy.executors.event_loop import EventLoopExecutor
from academy.failure import (
    JobCancelledError,
    JobFailedError,
    NeverStartedError,
    StartupError,
    WorkerDiedError,
)
from academy.handle import Handle
from academy.identifier import AgentId
from academy.manager import Manager
from academy.scheduler.job import JobState
from tests.hpc.batch_agents import Member
from tests.support.slurm import NetnsLab, SlurmLab, until

pytestmark = pytest.mark.hpc

SHORT = {"walltime": "00:05:00"}
LATER = {"scheduler_options": "#SBATCH --begin=now+1hour"}


@pytest.fixture
def exchange() -> Iterator[ExchangeFactory]:
    with spawn_http_exchange() as factory:
        yield factory


@pytest.fixture
def exchange_for_hosts(hosts: NetnsLab) -> Iterator[ExchangeFactory]:
    with spawn_http_exchange(host=hosts.address) as factory:
        yield factory


def manage(exchange: ExchangeFactory, executor: Any, **options: Any) -> Any:
    return Manager.from_exchange_factory(exchange, executor, **options)


def running(lab: SlurmLab) -> list[str]:
    """Return the jobs that are not over or being cleaned up."""
    return [job for job, state in lab.jobs().items() if state != "COMPLETING"]


async def failure_of(manager: Manager, agent: Handle[Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the caller looks at it
        await manager.wait([agent], raise_error=True, timeout=60)
    return caught.value


# --- one job for each agent


async def test_each_agent_has_a_job_of_its_own_on_hosts_that_only_connect_out(
    hosts: NetnsLab, exchange_for_hosts: ExchangeFactory
) -> None:
    executor = BatchExecutor("slurm", resources=SHORT)
    async with await manage(exchange_for_hosts, executor) as manager:
        agents = [await manager.launch(Member) for _ in range(2)]
        parts = await asyncio.gather(*(agent.part() for agent in agents))
        assert {part.job for part in parts} == set(running(hosts))
        assert {part.host for part in parts} <= {"n1", "n2", "n3"}
    assert running(hosts) == []


async def test_slurm_gets_the_script_that_was_previewed(slurm: SlurmLab) -> None:
    asked: dict[str, Any] = {
        "nodes": 2,
        "ranks_per_node": 2,
        "cpus_per_rank": 3,
        "gpus_per_node": 1,
        "walltime": "00:07:00",
        "partition": "debug",
        "account": "physics",
        "worker_init": "export COLOUR=green",
    }
    executor = BatchExecutor("slurm")
    executor.preview(nodes=1)
    preview = executor.preview(**asked)
    future = executor.submit(os.getenv, "COLOUR", **asked)
    assert await asyncio.wrap_future(future) == "green"
    job = executor.job(future)
    assert job is not None
    assert slurm.script(job.job_id) == preview
    shown = slurm.job(job.job_id)
    assert shown["NumNodes"] == "2"
    assert shown["NumTasks"] == "4"
    assert shown["CPUs/Task"] == "3"
    assert shown["TimeLimit"] == "00:07:00"
    assert shown["Account"] == "physics"
    assert shown["TresPerNode"] == "gres:gpu:1"
    assert executor.preview(**asked) != preview
    await asyncio.to_thread(executor.shutdown)


async def test_only_the_owner_can_read_a_spec_which_ends_with_its_agent(
    slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    executor = BatchExecutor("slurm", resources=SHORT)
    async with await manage(exchange, executor) as manager:
        agent = await manager.launch(Member, name="archive")
        await agent.part()
        [task] = executor.jobs()
        spec = (task.directory / "taken").read_bytes()
        secret = find_token(spec)
        modes = {path.name: mode(path) for path in task.directory.iterdir()}
        assert modes.items() >= {"taken": 0o600, "job.json": 0o600}.items()
        assert mode(task.directory) == 0o700
    left = {path.name: path.read_bytes() for path in task.directory.iterdir()}
    assert left.keys() >= {"job.json", "outcome"}
    assert not any(secret in content for content in left.values())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def find_token(spec: bytes) -> bytes:
    """Return the token of a mailbox, which is what is secret in a spec."""
    found = re.search(rb"eyJ[\w-]+\.[\w-]+\.[\w-]+", spec)
    assert found is not None
    return found[0]


async def test_what_an_agent_fails_of_comes_back_with_its_traceback(
    slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    executor = BatchExecutor("slurm", resources=SHORT)
    async with await manage(exchange, executor) as manager:
        agent = await manager.launch(Member, kwargs={"error": "seven"})
        error = await failure_of(manager, agent)
    assert isinstance(error, ValueError)
    assert str(error) == "seven"
    assert "in agent_on_startup" in error.__notes__[0]


async def test_an_agent_runs_programs_on_all_ranks_of_its_nodes(
    hosts: NetnsLab, exchange_for_hosts: ExchangeFactory
) -> None:
    asked = {"nodes": 2, "ranks_per_node": 2, **SHORT}
    async with await manage(exchange_for_hosts, BatchExecutor("slurm")) as manager:
        agent = await manager.launch(Member, submit_kwargs=asked)
        names = Counter(await agent.run_on_all_ranks("hostname"))
        assert sorted(names.values()) == [2, 2]
        ranks = "bash -c 'echo $SLURM_PROCID'"
        assert await agent.run_on_all_ranks(ranks) == ["0", "1", "2", "3"]


# --- ends


async def test_scancel_shuts_an_agent_down_in_order(
    slurm: SlurmLab, exchange: ExchangeFactory, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    executor = BatchExecutor("slurm", resources=SHORT)
    async with await manage(exchange, executor) as manager:
        agent = await manager.launch(Member, args=(mark,))
        job = (await agent.part()).job
        slurm.run("scancel", job)
        error = await failure_of(manager, agent)
    assert mark.read_text() == "in order"
    assert isinstance(error, JobCancelledError)
    assert error.job_id == job


async def test_a_signal_before_the_walltime_shuts_an_agent_down_in_order(
    slurm: SlurmLab, exchange: ExchangeFactory, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    executor = BatchExecutor("slurm", resources=SHORT)
    async with await manage(exchange, executor) as manager:
        agent = await manager.launch(Member, args=(mark,))
        job = (await agent.part()).job
        # What #SBATCH --signal=B:TERM@60 does.
        slurm.run("scancel", "--batch", "--signal=TERM", job)
        error = await failure_of(manager, agent)
    assert mark.read_text() == "in order"
    assert "SIGTERM" in str(error)


async def test_the_death_of_an_agent_is_told_with_its_last_words(
    slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    executor = BatchExecutor("slurm", resources=SHORT)
    async with await manage(exchange, executor) as manager:
        agent = await manager.launch(Member)
        part = await agent.part()
        call = asyncio.create_task(agent.die("The disk is full."))
        error = await failure_of(manager, agent)
        await asyncio.wait([call])
        assert call.exception() is not None
    assert isinstance(error, JobFailedError)
    assert (error.job_id, error.host) == (part.job, part.host)
    assert "status 7" in error.reason
    assert error.output == "The disk is full."


async def test_a_python_that_is_not_there_is_told(slurm: SlurmLab) -> None:
    executor = BatchExecutor("slurm", resources=SHORT, python="/no/such/python")
    with pytest.raises(StartupError, match=r"/no/such/python"):
        await asyncio.wrap_future(executor.submit(os.getpid))
    await asyncio.to_thread(executor.shutdown)


async def test_what_slurm_refuses_is_told_in_its_words(slurm: SlurmLab) -> None:
    executor = BatchExecutor("slurm")
    future = executor.submit(os.getpid, queue="nowhere")
    with pytest.raises(ValueError, match="invalid partition"):
        await asyncio.wrap_future(future)
    with pytest.raises(ValueError, match=r"no partition 'nowhere'.* debug"):
        executor.ask_scheduler(queue="nowhere")
    with pytest.raises(ValueError, match=r"walltime='30:00:00' is more than"):
        executor.ask_scheduler(queue="debug", walltime="30:00:00")
    assert executor.ask_scheduler(walltime=5) is not None
    assert executor.jobs() == []
    await asyncio.to_thread(executor.shutdown)


async def test_a_job_that_will_never_run_is_told_and_cancelled(slurm: SlurmLab) -> None:
    executor = BatchExecutor("slurm", resources={"walltime": "30:00:00"})
    future = executor.submit(os.getpid, queue="debug")
    with pytest.raises(NeverStartedError, match="Partition"):
        await asyncio.wrap_future(future)
    await asyncio.to_thread(executor.shutdown)
    assert running(slurm) == []


@pytest.mark.slow
async def test_an_agent_begins_again_in_a_job_whose_node_was_lost(
    breakable_hosts: NetnsLab,
) -> None:
    lab = breakable_hosts
    executor = BatchExecutor("slurm", resources=SHORT)
    with spawn_http_exchange(host=lab.address) as exchange:
        async with await manage(exchange, executor) as manager:
            agent = await manager.launch(Member)
            before = await agent.part()
            node = before.host
            lab.power_off(int(node.removeprefix("n")))
            # As a cluster's health check does; by itself, Slurm takes its time.
            lab.run("scontrol", "update", f"nodename={node}", "state=down", "reason=x")
            after = await agent.part()
            assert after.job == before.job
            assert after.host != node
    assert running(lab) == []


async def test_an_agent_that_was_told_to_end_does_not_begin_again_when_requeued(
    slurm: SlurmLab, exchange: ExchangeFactory, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    executor = BatchExecutor("slurm", resources=SHORT)
    async with await manage(exchange, executor) as manager:
        agent = await manager.launch(Member, args=(mark,))
        job = (await agent.part()).job
        slurm.run("scontrol", "requeue", job)
        await failure_of(manager, agent)
        await asyncio.to_thread(until, lambda: not running(slurm), "its end")
    assert mark.read_text() == "in order"


# --- cancelling


async def test_a_job_that_waits_is_taken_back_and_its_agent_never_runs(
    slurm: SlurmLab,
) -> None:
    executor = BatchExecutor("slurm", resources=SHORT)
    future = executor.submit(os.getpid, **LATER)
    await asyncio.to_thread(until, lambda: running(slurm), "a job")
    assert future.cancel()
    assert future.cancelled()
    await asyncio.to_thread(until, lambda: not running(slurm), "its end")
    await asyncio.to_thread(executor.shutdown)
    assert list(executor.directory.iterdir()) == []


async def test_a_job_that_runs_is_ended_when_cancelled(
    slurm: SlurmLab,
) -> None:
    executor = BatchExecutor("slurm", resources=SHORT)
    future = executor.submit(time.sleep, 600)
    until(future.running, "the task to run")
    assert not future.cancel()
    assert executor.cancel(future)
    with pytest.raises(JobCancelledError):
        await asyncio.wrap_future(future)
    await asyncio.to_thread(executor.shutdown)
    assert running(slurm) == []


async def test_shutdown_in_a_hurry_leaves_no_job(slurm: SlurmLab) -> None:
    executor = BatchExecutor("slurm", resources=SHORT)
    futures = [executor.submit(time.sleep, 600)]
    until(futures[0].running, "the task to run")
    futures += [
        executor.submit(time.sleep, 600, **LATER),
        executor.submit(time.sleep, 600),
    ]
    await asyncio.to_thread(executor.shutdown, cancel_futures=True)
    assert running(slurm) == []
    assert all(future.done() for future in futures)
    assert futures[1].cancelled()


# --- one job for many agents


async def test_a_batch_shares_one_job_over_three_hosts_in_disjoint_parts(
    hosts: NetnsLab, exchange_for_hosts: ExchangeFactory, tmp_path: Path
) -> None:
    asked = {"nodes": 3, "ranks_per_node": 2, "cpus_per_rank": 2, "gpus_per_node": 2}
    executor = BatchExecutor("slurm", resources=asked | SHORT, share_job=True)
    preview = executor.preview()
    marks = [tmp_path / f"mark-{number}" for number in range(6)]
    async with await manage(exchange_for_hosts, executor) as manager:
        async with manager.launch_batch() as batch:
            agents = [await batch.queue(Member, args=(mark,)) for mark in marks]
        parts = await asyncio.gather(*(agent.part() for agent in agents))
        [job] = running(hosts)
        assert {part.job for part in parts} == {job}
        assert hosts.script(job) == preview
        # Each host has two of them, each with two cores and a GPU of its own.
        assert sorted((part.host, part.gpus) for part in parts) == [
            (host, gpu) for host in ("n1", "n2", "n3") for gpu in ("0", "1")
        ]
        assert len({part.step for part in parts}) == 6
        steps = hosts.run("scontrol", "-o", "show", "steps", job)
        assert steps.count("CPUs=2 ") == 6
        hosts.run("scancel", job)
        errors = [await failure_of(manager, agent) for agent in agents]
    assert all(isinstance(error, JobCancelledError) for error in errors)
    assert all(mark.read_text() == "in order" for mark in marks)


async def test_neighbours_in_a_shared_job_survive_each_other(
    slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    asked = {"ranks_per_node": 3, "cpus_per_rank": 1}
    executor = BatchExecutor("slurm", resources=asked | SHORT, share_job=True)
    async with await manage(exchange, executor) as manager:
        async with manager.launch_batch() as batch:
            failing = await batch.queue(Member, kwargs={"error": "seven"})
            dying = await batch.queue(Member)
            living = await batch.queue(Member)
        assert str(await failure_of(manager, failing)) == "seven"
        call = asyncio.create_task(dying.die("Goodbye."))
        error = await failure_of(manager, dying)
        assert isinstance(error, WorkerDiedError)
        assert error.output.endswith("Goodbye.")
        assert "status 7" in error.reason
        await asyncio.wait([call])
        assert call.exception() is not None
        assert (await living.part()).job == error.job_id
    assert running(slurm) == []


async def test_an_agent_launched_alone_asks_for_no_more_than_its_part(
    slurm: SlurmLab,
) -> None:
    asked = {"nodes": 2, "ranks_per_node": 2, "cpus_per_rank": 3, "gpus_per_node": 2}
    executor = BatchExecutor("slurm", resources=asked | SHORT, share_job=True)
    future = executor.submit(os.getenv, "CUDA_VISIBLE_DEVICES")
    assert await asyncio.wrap_future(future) in ("0", "1")
    job = executor.job(future)
    assert job is not None
    shown = slurm.job(job.job_id)
    assert (shown["NumNodes"], shown["NumTasks"], shown["CPUs/Task"]) == ("1", "1", "3")
    assert shown["TresPerNode"] == "gres:gpu:1"
    await asyncio.to_thread(executor.shutdown)


async def test_too_many_agents_for_one_job_are_refused_before_anything_happens(
    slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    executor = BatchExecutor("slurm", resources={"ranks_per_node": 2}, share_job=True)
    async with await manage(exchange, executor) as manager:
        batch = manager.launch_batch()
        for _ in range(3):
            await batch.queue(Member)
        with pytest.raises(ValueError, match=r"3 agents .* place for 2"):
            await batch.submit()
        assert await manager.exchange_client.discover(Member) == ()
    assert running(slurm) == []


# --- who launched them is gone

LAUNCH = """
import asyncio, os, pickle, signal, sys
from academy.executors.batch import BatchExecutor
from academy.manager import Manager
from tests.hpc.batch_agents import Member

async def main():
    factory = pickle.loads(open(sys.argv[1], "rb").read())
    executor = BatchExecutor("slurm", resources={"walltime": 5})
    async with await Manager.from_exchange_factory(factory, executor) as manager:
        await (await manager.launch(Member, name="survivor")).part()
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_jobs_of_a_killed_program_go_on_and_are_found_again(
    slurm: SlurmLab, exchange: ExchangeFactory, tmp_path: Path
) -> None:
    (tmp_path / "factory").write_bytes(pickle.dumps(exchange))
    launch = (sys.executable, "-c", LAUNCH, str(tmp_path / "factory"))
    killed = await asyncio.to_thread(subprocess.run, launch, check=False)
    assert killed.returncode == -signal.SIGKILL
    [listed] = json.loads(academy("ps", "--json"))
    assert listed["name"] == "survivor"
    assert listed["state"] == "RUNNING"
    assert "survivor" in academy("ps")

    executor = BatchExecutor("slurm")
    [(task, future)] = executor.attach().items()
    assert task == listed["id"]
    assert executor.attach([task])[task] is future
    async with await exchange.create_user_client() as client:
        agent_id: AgentId[Member] = AgentId(uid=listed["agent_id"])
        agent = Handle(agent_id, exchange=client)
        assert [(await agent.part()).job] == running(slurm) == [listed["job_id"]]
        await agent.shutdown()
        assert await asyncio.wrap_future(future) is None
    await asyncio.to_thread(executor.shutdown)
    [over] = executor.jobs()
    assert over.state is JobState.COMPLETED


async def test_a_job_is_cancelled_by_anybody_who_sees_it(
    slurm: SlurmLab,
) -> None:
    executor = BatchExecutor("slurm", resources=SHORT)
    running_one = executor.submit(time.sleep, 600)
    waiting = executor.submit(time.sleep, 600, **LATER)
    await asyncio.to_thread(until, running_one.running, "the task to run")
    first, second = await asyncio.to_thread(until, two(executor), "both jobs")
    academy("cancel", first.id, second.job.job_id)
    for future in (running_one, waiting):
        with pytest.raises(JobCancelledError):
            await asyncio.wrap_future(future)
    await asyncio.to_thread(executor.shutdown)
    assert running(slurm) == []


def two(executor: BatchExecutor) -> Any:
    def look() -> Any:
        jobs = [task for task in executor.jobs() if task.job.job_id]
        return jobs if len(jobs) == 2 else None

    return look


def academy(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


# --- many agents


@pytest.mark.slow
async def test_a_thousand_agents_share_one_process_of_one_job(
    slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    inner = BatchExecutor("slurm", resources=SHORT)
    executor = EventLoopExecutor(inner, agents_per_worker=1000)
    async with await manage(exchange, executor) as manager:
        async with manager.launch_batch() as batch:
            agents = [await batch.queue(Member) for _ in range(1000)]
        parts = await asyncio.gather(*(agent.part() for agent in agents))
        [task] = inner.jobs()
        assert task.job.started is not None
        print(f"{time.time() - task.job.started.timestamp():.1f} s since the job began")
        assert {part.job for part in parts} == {task.job.job_id}
        assert len(running(slurm)) == 1
    assert running(slurm) == []
