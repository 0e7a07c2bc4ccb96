"""What ends agents from outside, as their manager and their callers are told it.

Each cause is made by a real Slurm, for a worker of Parsl and for a batch job at once.
Parsl's own heartbeat is as slow as it ships, so that whatever is noticed here of nodes
and jobs, the exchange and the scheduler have told.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SimpleLauncher

from academy import failure
from academy.agent import Agent, action
from academy.exception import AgentTerminatedError
from academy.exchange import ExchangeFactory, HttpExchangeFactory
from academy.exchange.cloud import spawn_http_exchange
from academy.executors.batch import BatchExecutor
from academy.executors.parsl import ParslExecutor
from academy.failure import AgentLostError
from academy.handle import Handle
from academy.launch import WorkerMismatchError
from academy.manager import Manager
from academy.scheduler.job import JobState
from tests.hpc.agents import Traveller
from tests.hpc.test_parsl_on_slurm import HERE, QuickSlurmProvider
from tests.support.server import free_port
from tests.support.slurm import SlurmLab

pytestmark = [pytest.mark.hpc, pytest.mark.slow]

SOON = 60.0
"""Seconds; half of what Parsl needs by itself."""

LossT = TypeVar("LossT", bound=AgentLostError)


class Victim(Traveller):
    """Can be made to meet its end."""

    @action
    async def take_memory(self, megabytes: int) -> None:
        self.taken = b"x" * (megabytes * 1_000_000)
        await asyncio.Event().wait()

    @action
    async def die(self) -> None:
        os._exit(1)


class Launched(NamedTuple):
    """An agent on one of the executors."""

    on: str
    agent: Handle[Any]
    job: str = ""
    host: str = ""


def htex(**resources: Any) -> ParslExecutor:
    names = {
        "nodes": "nodes_per_block",
        "queue": "partition",
        "memory_gb_per_node": "mem_per_node",
    }
    options = {names.get(key, key): value for key, value in resources.items()}
    provider = QuickSlurmProvider(
        **options,
        init_blocks=0,
        max_blocks=1,
        exclusive=False,
        launcher=SimpleLauncher(),
    )
    engine = HighThroughputExecutor(
        label="cpu",
        address=HERE,
        max_workers_per_node=1,
        cores_per_worker=1e-6,
        heartbeat_period=1,  # what it takes to notice that one process has died
        heartbeat_threshold=120,
        provider=provider,
    )
    config = Config(executors=[engine], strategy="simple", strategy_period=0.2)
    return ParslExecutor(config)


@pytest.fixture(scope="module")
def exchange() -> Iterator[HttpExchangeFactory]:
    with spawn_http_exchange() as factory:
        yield factory


@asynccontextmanager
async def both(
    exchange: ExchangeFactory, *, max_retries: int = 0, **resources: Any
) -> AsyncIterator[Manager]:
    asked = {"walltime": "00:05:00", "memory_gb_per_node": 1} | resources
    executors = {
        "htex": htex(**asked),
        "batch": BatchExecutor("slurm", resources=asked),
    }
    async with await Manager.from_exchange_factory(
        exchange, executors, max_retries=max_retries, default_executor="batch"
    ) as manager:
        yield manager


async def launched(manager: Manager, kind: type[Agent] = Victim) -> list[Launched]:
    return [
        Launched(name, await manager.launch(kind, executor=name))
        for name in ("htex", "batch")
    ]


async def started(manager: Manager) -> list[Launched]:
    """Launch an agent on each executor, and wait until they run."""
    victims = await launched(manager)
    places = await asyncio.gather(*(one.agent.place() for one in victims))
    return [
        one._replace(job=place.job, host=place.host)
        for one, place in zip(victims, places, strict=True)
    ]


async def losses(manager: Manager, victims: list[Launched]) -> list[AgentLostError]:
    """Return what the agents failed of, which says in which job and where."""
    found = []
    for one in victims:
        with pytest.raises(AgentLostError) as caught:
            await manager.wait([one.agent], raise_error=True, timeout=SOON)
        loss = caught.value
        assert loss.job_id != ""
        if one.job:
            assert (loss.job_id, loss.host) == (one.job, one.host)
        found.append(loss)
    return found


async def all_lost(
    manager: Manager, victims: list[Launched], kind: type[LossT]
) -> list[LossT]:
    found = await losses(manager, victims)
    assert {type(loss) for loss in found} == {kind}
    return [loss for loss in found if isinstance(loss, kind)]


# --- what ends a job


async def test_a_cancelled_job(
    strict_slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    async with both(exchange) as manager:
        victims = await started(manager)
        strict_slurm.run("scancel", *(one.job for one in victims))
        found = await all_lost(manager, victims, failure.JobCancelledError)
        assert "" not in [loss.output for loss in found]
        # Whoever calls them is told the cause.
        for one in victims:
            words = rf"cancelled in job {one.job} on {one.host}"
            with pytest.raises(AgentTerminatedError, match=words):
                await one.agent.place()


async def test_a_walltime_that_is_over(
    strict_slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    async with both(exchange) as manager:
        victims = await started(manager)
        for one in victims:
            strict_slurm.expire(one.job)
        found = await all_lost(manager, victims, failure.WalltimeReachedError)
        assert "" not in [loss.output for loss in found]


async def test_memory_that_is_used_up(
    strict_slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    async with both(exchange) as manager:
        victims = await started(manager)
        calls = [asyncio.ensure_future(v.agent.take_memory(1500)) for v in victims]
        found = await all_lost(manager, victims, failure.OutOfMemoryError)
        assert all("memory" in loss.output for loss in found)
        for call, one in zip(calls, victims, strict=True):
            words = f"ran out of memory in job {one.job}"
            with pytest.raises(AgentTerminatedError, match=words):
                await call


async def test_a_job_that_makes_room_for_another(
    strict_slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    async with both(exchange, queue="low") as manager:
        victims = await started(manager)
        rival = strict_slurm.run(
            *("sbatch", "--parsable", "-p", "high", "-N", "3", "--exclusive"),
            *("-o", "/dev/null", "--wrap", "sleep 100"),
        ).strip()
        try:
            await all_lost(manager, victims, failure.PreemptedError)
        finally:
            strict_slurm.run("scancel", rival)


async def test_a_node_that_fails(
    breakable_strict_slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    lab = breakable_strict_slurm
    async with both(exchange) as manager:
        worker, job = await started(manager)
        # Slurm puts jobs back into the queue when their nodes have failed, unless that
        # is ruled out.
        final = await manager.launch(
            Victim,
            executor="batch",
            submit_kwargs={"scheduler_options": "#SBATCH --no-requeue"},
        )
        place = await final.place()
        last = Launched("batch", final, place.job, place.host)
        names = {lab.job(one.job)["NodeList"] for one in (worker, job, last)}
        for name in names:
            lab.power_off(int(name.removeprefix("n")))
        _, told = await all_lost(manager, [worker, last], failure.NodeFailedError)
        assert told.reason == "NodeDown"
        # Parsl's worker does not come back as who it was, but a batch job does.
        assert (await job.agent.place()).job == job.job


async def test_a_process_that_dies(
    strict_slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    async with both(exchange) as manager:
        victims = await started(manager)
        calls = [asyncio.ensure_future(one.agent.die()) for one in victims]
        of_worker, of_job = await losses(manager, victims)
        assert type(of_worker) is failure.WorkerDiedError
        assert type(of_job) is failure.JobFailedError
        for call, one in zip(calls, victims, strict=True):
            with pytest.raises(AgentTerminatedError, match=f"in job {one.job}"):
                await call


async def test_agents_whose_jobs_are_lost_come_back_in_others(
    strict_slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    async with both(exchange, max_retries=1) as manager:
        victims = await started(manager)
        strict_slurm.run("scancel", *(one.job for one in victims))
        async with asyncio.timeout(SOON):
            for one in victims:
                while (await one.agent.place()).job == one.job:
                    await asyncio.sleep(0.1)


# --- what keeps a job from starting


async def test_a_job_that_will_never_start(
    slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    submit = ("sbatch", "--parsable", "-o/dev/null", "--wait", "--wrap=false")
    failed = await asyncio.to_thread(slurm.run, *submit, check=False)
    resources = {"scheduler_options": f"#SBATCH --dependency=afterok:{failed.strip()}"}
    async with both(exchange, **resources) as manager:
        victims = await launched(manager)
        calls = [asyncio.ensure_future(one.agent.place()) for one in victims]
        found = await all_lost(manager, victims, failure.NeverStartedError)
        assert [loss.reason for loss in found] == ["DependencyNeverSatisfied"] * 2
        for call, loss in zip(calls, found, strict=True):
            words = f"never started in job {loss.job_id}: Dependency"
            with pytest.raises(AgentTerminatedError, match=words):
                await call


async def test_a_job_that_is_refused_registers_nothing(
    strict_slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    async with both(exchange, nodes=9) as manager:
        for name in ("htex", "batch"):
            with pytest.raises(ValueError, match="nodes"):
                await manager.launch(Victim, executor=name)
        assert manager.running() == set()
        assert await manager.exchange_client.discover(Victim) == ()


async def test_what_agents_wait_for_can_be_seen(
    slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    holder = slurm.run(
        *("sbatch", "--parsable", "-N", "4", "--exclusive", "-t", "5"),
        *("-o", "/dev/null", "--wrap", "sleep 100"),
    ).strip()
    async with both(exchange) as manager:
        victims = await launched(manager)
        for one in victims:
            async with asyncio.timeout(SOON):
                while (job := await manager.job(one.agent)) is None or not job.reason:
                    await asyncio.sleep(0.1)
            assert job.state is JobState.PENDING
            assert job.reason in ("Resources", "Priority")
        slurm.run("scancel", holder)
        for one in victims:
            place = await one.agent.place()
            job = await manager.job(one.agent)
            assert job is not None
            assert job.job_id == place.job


# --- what keeps an agent from starting


async def test_a_module_that_worker_init_does_not_find(
    slurm: SlurmLab, exchange: ExchangeFactory
) -> None:
    init = "set -e; module load no-such-compiler"
    async with both(exchange, worker_init=init) as manager:
        found = await losses(manager, await launched(manager))
        assert all(isinstance(loss, failure.StartupError) for loss in found)
        assert all("module" in loss.output for loss in found)


async def test_a_package_that_workers_do_not_have(
    slurm: SlurmLab,
    exchange: ExchangeFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "only_here.py").write_text(
        "from academy.agent import Agent\nclass Local(Agent): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    monkeypatch.delitem(sys.modules, "only_here")
    monkeypatch.setitem(sys.modules, "only_here", only_here)
    async with both(exchange) as manager:
        victims = await launched(manager, only_here.Local)
        for loss in await all_lost(manager, victims, failure.MissingModuleError):
            assert "only_here" in loss.reason
            assert loss.host != ""


# There is one Python here, so a worker is made to say that it is another one.
OTHER_PYTHON = """\
import sys

class Version(tuple):
    major, minor, micro = 3, 7, 0

sys.version_info = Version((3, 7, 0, "final", 0))
"""


async def test_a_worker_of_another_python(
    slurm: SlurmLab, exchange: ExchangeFactory, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(OTHER_PYTHON)
    init = f"export PYTHONPATH={tmp_path}"
    async with both(exchange, worker_init=init) as manager:
        of_worker, of_job = await losses(manager, await launched(manager))
        assert isinstance(of_worker, failure.StartupError)  # Parsl refuses it itself
        assert isinstance(of_job, WorkerMismatchError)
        assert "3.7" in str(of_worker)
        assert "3.7" in str(of_job)


async def test_an_exchange_that_workers_cannot_reach(
    slurm: SlurmLab, exchange: HttpExchangeFactory
) -> None:
    # What the worker does to connect fails there, and there only.
    init = f"export https_proxy=http://127.0.0.1:{free_port()}"
    impatient = exchange.with_token(exchange.find_token())
    impatient.request_timeout_s = 2.0
    async with both(impatient, worker_init=init) as manager:
        victims = await launched(manager)
        for loss in await all_lost(manager, victims, failure.ExchangeUnreachableError):
            assert exchange.url in loss.reason
            assert loss.host != ""
