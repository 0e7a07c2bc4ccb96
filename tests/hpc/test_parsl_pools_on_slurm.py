"""One Parsl executor, blocks of several shapes: what Slurm gets, and what it gives."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from parsl.config import Config
from parsl.executors import HighThroughputExecutor, MPIExecutor
from parsl.launchers import SimpleLauncher, SrunLauncher
from parsl.providers import SlurmProvider

from academy.agent import Agent, action
from academy.exchange import ExchangeFactory
from academy.exchange.cloud import spawn_http_exchange
from academy.executors.parsl import ParslExecutor
from academy.failure import AgentLostError, NeverStartedError, StartupError
from academy.manager import Manager
from academy.scheduler.job import JobState
from academy.socket import reachable_addresses
from tests.hpc.agents import Place, Traveller
from tests.support.slurm import NetnsLab, SlurmLab, until

pytestmark = pytest.mark.hpc

# Where virtual nodes, which are on this machine, reach it.
HERE = next(iter(reachable_addresses()), "0.0.0.0")

# Workers cannot import this module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class QuickSlurmProvider(SlurmProvider):
    status_polling_interval = 1


def quick_config(
    engine: type[HighThroughputExecutor] = HighThroughputExecutor,
    *,
    idle_timeout: float = 600.0,
    provider: dict[str, Any] | None = None,
    **arguments: Any,
) -> Config:
    """Return a configuration whose losses are noticed within five seconds."""
    options: dict[str, Any] = {
        "init_blocks": 0,
        "exclusive": False,
        "walltime": "00:05:00",
        "launcher": SrunLauncher(),
    }
    return Config(
        executors=[
            engine(
                label="cpu",
                address=HERE,
                heartbeat_period=1,
                heartbeat_threshold=4,
                provider=QuickSlurmProvider(**options | (provider or {})),
                **arguments,
            )
        ],
        strategy="simple",
        strategy_period=0.2,
        max_idletime=idle_timeout,
    )


def htex_config(**options: Any) -> Config:
    return quick_config(max_workers_per_node=1, cores_per_worker=1e-6, **options)


def running(lab: SlurmLab) -> list[str]:
    """Return the jobs that are not over or being cleaned up."""
    return [job for job, state in lab.jobs().items() if state != "COMPLETING"]


@pytest.fixture
def exchange() -> Iterator[ExchangeFactory]:
    with spawn_http_exchange() as factory:
        yield factory


@contextlib.asynccontextmanager
async def managing(
    exchange: ExchangeFactory, executor: ParslExecutor, **options: Any
) -> AsyncIterator[Manager]:
    async with await Manager.from_exchange_factory(
        exchange, executor, **options
    ) as manager:
        yield manager


# --- shapes


async def test_agents_of_two_shapes_run_at_the_same_time_in_jobs_of_these_shapes(
    slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    executor = ParslExecutor(htex_config())
    gpu = {"queue": "gpu", "gpus_per_node": 2, "walltime": "00:10:00", "account": "x"}
    wide = {"N": 2, "partition": "long", "time": 90, "memory_gb_per_node": 1}
    previews = {
        name: executor.preview(**s) for name, s in {"g": gpu, "w": wide}.items()
    }
    async with managing(exchange, executor) as manager:
        first = await manager.launch(Traveller, submit_kwargs=gpu)
        second = await manager.launch(Traveller, submit_kwargs=wide)
        third = await manager.launch(Traveller, submit_kwargs=wide)
        places = [await agent.place() for agent in (first, second, third)]
        in_gpu, in_wide, also_in_wide = (place.job for place in places)
        assert in_gpu != in_wide == also_in_wide
        shown = slurm.job(in_gpu)
        assert shown["Partition"] == "gpu"
        assert shown["TresPerNode"] == "gres:gpu:2"
        assert (shown["TimeLimit"], shown["Account"]) == ("00:10:00", "x")
        shown = slurm.job(in_wide)
        assert (shown["Partition"], shown["NumNodes"]) == ("long", "2")
        assert (shown["TimeLimit"], shown["MinMemoryNode"]) == ("01:30:00", "1G")
        assert previews["g"].count(slurm.script(in_gpu)) == 1
        assert previews["w"].count(slurm.script(in_wide)) == 1
    assert running(slurm) == []


async def test_agents_of_one_block_are_on_as_many_hosts_as_it_has_nodes(
    hosts: NetnsLab,
) -> None:
    # As most configurations begin: for one node, and without an address.
    engine = HighThroughputExecutor(
        label="cpu",
        address=hosts.address,
        heartbeat_period=1,
        provider=QuickSlurmProvider(init_blocks=0, exclusive=False),
    )
    engine.address = None
    config = Config([engine], strategy="simple", strategy_period=0.2)
    shape = {"nodes": 2, "ranks_per_node": 1}
    with spawn_http_exchange(host=hosts.address) as exchange:
        async with managing(exchange, ParslExecutor(config)) as manager:
            one = await manager.launch(Traveller, submit_kwargs=shape)
            two = await manager.launch(Traveller, submit_kwargs=shape)
            places = sorted([await one.place(), await two.place()])
            assert [place.host for place in places] == ["n1", "n2"]
            assert [place.job for place in places] == running(hosts) * 2
    assert running(hosts) == []


def test_the_jobs_of_a_pool_without_agents_are_cancelled(slurm: SlurmLab) -> None:
    with ParslExecutor(htex_config(idle_timeout=0.1)) as executor:
        name = "SLURM_JOB_PARTITION"
        assert executor.submit(os.getenv, name, queue="long").result() == "long"
        until(lambda: not running(slurm), "an empty queue")


# --- failures


def wait_for(path: str) -> None:
    """Run until there is a file."""
    until(lambda: os.path.exists(path), path, timeout=100)


def test_a_pool_that_slurm_refuses_fails_its_own_agents_and_no_others(
    slurm: SlurmLab,
) -> None:
    end = str(slurm.directory / "end")
    with ParslExecutor(htex_config()) as executor:
        spared = executor.submit(wait_for, end)
        until(lambda: "RUNNING" in slurm.jobs().values(), "a job")
        refused = executor.submit(abs, -1, queue="nowhere")
        with pytest.raises(NeverStartedError, match=r"(?i)invalid partition"):
            refused.result()
        assert executor.submit(abs, -1, queue="long").result() == 1
        assert not spared.done()
        open(end, "w").close()
        assert spared.result() is None


def test_what_a_job_printed_before_it_failed_is_in_the_error(slurm: SlurmLab) -> None:
    line = "echo conda: no such environment: mine >&2; exit 9"
    with ParslExecutor(htex_config()) as executor:
        lost = executor.submit(abs, -1, worker_init=line)
        with pytest.raises(StartupError, match="no such environment: mine") as caught:
            lost.result()
        job = slurm.job(caught.value.job_id)
        assert (job["JobState"], job["ExitCode"]) == ("FAILED", "9:0")


def test_an_agent_of_a_lost_node_is_told_its_job(slurm: SlurmLab) -> None:
    with ParslExecutor(htex_config()) as executor:
        lost = executor.submit(wait_for, "/never")
        until(slurm.jobs, "a job")
        job = executor.job(lost)
        assert job is not None
        until(lambda: slurm.jobs()[job.job_id] == "RUNNING", "its start")
        until(lambda: list_workers(executor), "its workers")
        slurm.run("scancel", job.job_id)
        with pytest.raises(AgentLostError, match="have not been heard of") as caught:
            lost.result()
        assert caught.value.job_id == job.job_id
        assert caught.value.host == socket.gethostname()


def list_workers(executor: ParslExecutor) -> list[Any]:
    engine: Any = executor._pools.usual.engine
    return [m for m in engine.connected_managers() if m["tasks"]]


def wait_in_job(started: str, end: str) -> str:
    """Say in which job the task is, run until there is a file, and say it again."""
    job = os.environ["SLURM_JOB_ID"]
    with open(started, "w") as file:
        file.write(job)
    wait_for(end)
    return job


def test_the_job_of_an_agent_is_known_among_several_of_its_pool(
    slurm: SlurmLab, tmp_path: Path
) -> None:
    end, started = str(tmp_path / "end"), [tmp_path / "a", tmp_path / "b"]
    config = htex_config(provider={"max_blocks": 2})
    with ParslExecutor(config) as executor:
        futures = [executor.submit(wait_in_job, str(s), end) for s in started]
        until(lambda: all(s.exists() and s.read_text() for s in started), "both")
        jobs = [executor.job(future) for future in futures]
        assert [job and job.state for job in jobs] == [JobState.RUNNING] * 2
        assert [job and job.job_id for job in jobs] == [s.read_text() for s in started]
        Path(end).touch()
        assert len({future.result() for future in futures}) == 2


# --- jobs that wait


def test_why_an_agent_waits_is_known_and_its_job_can_be_taken_back(
    slurm: SlurmLab,
) -> None:
    with ParslExecutor(htex_config()) as executor:
        # Slurm accepts a job that this partition will never run.
        future = executor.submit(abs, -1, walltime="30:00:00", queue="debug")
        until(lambda: running(slurm), "a job")
        [job_id] = running(slurm)

        def reason() -> str:
            job = executor.job(future)
            assert job is not None
            assert (job.job_id, job.state) == (job_id, JobState.PENDING)
            return job.reason

        until(lambda: "PartitionTimeLimit" in reason(), "the reason")
        assert executor.cancel(future)
        until(lambda: not running(slurm), "an empty queue")


def test_the_scheduler_is_asked_before_anything_is_submitted(slurm: SlurmLab) -> None:
    executor = ParslExecutor(htex_config())
    start = executor.ask_scheduler(queue="gpu", gpus_per_node=2)
    assert start is not None
    assert start.tzinfo is not None
    with pytest.raises(ValueError, match=r"no partition 'nowhere'.*debug, gpu, long"):
        executor.ask_scheduler(queue="nowhere")
    with pytest.raises(ValueError, match="more than the 60 minutes of queue 'debug'"):
        executor.ask_scheduler(queue="debug", walltime="30:00:00")
    with pytest.raises(ValueError, match="nodes=9 is more than the 4 of queue 'long'"):
        executor.ask_scheduler(queue="long", nodes=9)
    assert slurm.jobs() == {}


# --- GPUs


class Seer(Agent):
    """Tells which GPUs it sees."""

    @action
    async def sees(self) -> Place:
        visible = os.environ["CUDA_VISIBLE_DEVICES"]
        return Place(visible, os.environ["SLURM_JOB_ID"])


async def test_two_agents_of_one_node_see_different_gpus(
    slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    shape = {"queue": "gpu", "gpus_per_node": 2, "ranks_per_node": 2}
    async with managing(exchange, ParslExecutor(htex_config())) as manager:
        one = await manager.launch(Seer, submit_kwargs=shape)
        two = await manager.launch(Seer, submit_kwargs=shape)
        seen = [await one.sees(), await two.sees()]
        assert sorted(gpus for gpus, _ in seen) == ["0", "1"]
        assert len({job for _, job in seen}) == 1


def test_a_worker_sees_the_gpu_that_slurm_has_given_to_its_job(slurm: SlurmLab) -> None:
    first = slurm.run(
        *("sbatch", "--parsable", "--partition=gpu", "--gpus-per-node=1"),
        *("--output=/dev/null", "--wrap=sleep 600"),
    ).strip()
    until(lambda: slurm.jobs()[first] == "RUNNING", "a job with the first GPU")
    with ParslExecutor(htex_config()) as executor:
        shape = {"queue": "gpu", "gpus_per_node": 1}
        future = executor.submit(os.getenv, "CUDA_VISIBLE_DEVICES", **shape)
        assert future.result() == "1"
    slurm.run("scancel", first)


# --- MPI


class Starter(Agent):
    """Starts a program on all nodes that it has."""

    @action
    async def start(self, program: list[str]) -> list[str]:
        prefix = shlex.split(os.environ["PARSL_MPI_PREFIX"])
        done = await self.agent_run_sync(
            subprocess.run, [*prefix, *program], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return sorted(done.stdout.split())


def mpi_config(nodes_per_block: int) -> Config:
    provider = {
        "nodes_per_block": nodes_per_block,
        "launcher": SimpleLauncher(),
        "cores_per_node": 2,
    }
    return quick_config(MPIExecutor, provider=provider, mpi_launcher="srun")


@pytest.mark.parametrize(
    "resources",
    [
        {"num_nodes": 2, "ranks_per_node": 2},
        {"nodes": 2, "ranks_per_node": 2, "queue": "long", "cpus_per_rank": 1},
    ],
    ids=["in-a-usual-block", "in-a-block-of-its-own"],
)
async def test_an_agent_starts_a_program_on_all_ranks_of_its_nodes(
    slurm: SlurmLab, exchange: ExchangeFactory, resources: dict[str, Any]
) -> None:
    executor = ParslExecutor(mpi_config(3 if "num_nodes" in resources else 1))
    async with managing(exchange, executor) as manager:
        agent = await manager.launch(Starter, submit_kwargs=resources)
        echo = ["bash", "-c", "echo $SLURMD_NODENAME:$SLURM_PROCID/$SLURM_NTASKS"]
        assert await agent.start(echo) == ["n1:0/4", "n1:1/4", "n2:2/4", "n2:3/4"]
        [job] = running(slurm)
        partition = "long" if "queue" in resources else "debug"
        assert slurm.job(job)["Partition"] == partition
