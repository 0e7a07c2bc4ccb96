"""Agents in Slurm jobs, on hosts that can only connect to the login node."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

from academy.exchange import ExchangeFactory
from academy.exchange.cloud import spawn_http_exchange
from academy.executors.parsl import ParslExecutor
from academy.manager import Manager
from academy.socket import reachable_addresses
from tests.hpc.agents import Place, Traveller
from tests.support.slurm import NetnsLab, SlurmLab, until

pytestmark = pytest.mark.hpc

# Where virtual nodes, which are on this machine, reach it.
HERE = next(iter(reachable_addresses()), "0.0.0.0")


class QuickSlurmProvider(SlurmProvider):
    status_polling_interval = 1


def quick_config(address: str, **provider: object) -> Config:
    """Return a configuration whose losses are noticed within five seconds."""
    options: dict[str, object] = {
        "init_blocks": 0,
        "exclusive": False,
        "walltime": "00:05:00",
        "launcher": SrunLauncher(),
    }
    return Config(
        executors=[
            HighThroughputExecutor(
                label="cpu",
                address=address,
                max_workers_per_node=1,
                cores_per_worker=1e-6,
                heartbeat_period=1,
                heartbeat_threshold=4,
                provider=QuickSlurmProvider(**options | provider),  # type: ignore[arg-type]
            )
        ],
        strategy="simple",
        strategy_period=0.2,
    )


@pytest.fixture
def exchange(hosts: NetnsLab) -> Iterator[ExchangeFactory]:
    with spawn_http_exchange(host=hosts.address) as factory:
        yield factory


def running(lab: SlurmLab) -> list[str]:
    """Return the jobs that are not over or being cleaned up."""
    return [job for job, state in lab.jobs().items() if state != "COMPLETING"]


# --- the configuration that we ship


@pytest.fixture
def shipped_config(
    hosts: NetnsLab, tmp_path: Path, pytestconfig: pytest.Config
) -> Path:
    """configs/parsl/slurm.py with its capitals changed, as its first line says."""
    text = (pytestconfig.rootpath / "configs/parsl/slurm.py").read_text()
    for name, value in {
        "PARTITION": "'debug'",
        "WALLTIME": "'00:10:00'",
        "NODES_PER_BLOCK": "3",
        "WORKERS_PER_NODE": "1",
    }.items():
        text, count = re.subn(rf"(?m)^{name} = \S+", f"{name} = {value}", text)
        assert count == 1
    path = tmp_path / "slurm.py"
    path.write_text(text)
    return path


async def test_agents_on_hosts_of_their_own_call_each_other(
    hosts: NetnsLab, exchange: ExchangeFactory, shipped_config: Path
) -> None:
    executor = ParslExecutor(shipped_config)
    async with await Manager.from_exchange_factory(exchange, executor) as manager:
        first = await manager.launch(Traveller)
        second = await manager.launch(Traveller, args=([first],))
        await first.know([second])
        [place_of_first] = await second.places_of_others()
        [place_of_second] = await first.places_of_others()
        [job] = running(hosts)
        assert {place_of_first.job, place_of_second.job} == {job}
        assert place_of_first.host != place_of_second.host
        async with manager.launch_batch() as batch:
            third = await batch.queue(Traveller, args=([first, second],))
        places = [await third.place(), *await third.places_of_others()]
        assert sorted(places) == [Place(name, job) for name in ("n1", "n2", "n3")]
        # Nobody can connect to an agent: on its node, nothing but Slurm listens.
        assert listening(hosts, place_of_first.host) <= {"slurmd", "slurmstepd", "srun"}
    assert running(hosts) == []


def listening(hosts: NetnsLab, host: str) -> set[str]:
    """Return the names of the programs that listen on a node."""
    table = hosts.node_exec(int(host.removeprefix("n")), "ss", "-Hltnp")
    programs = set(re.findall(r'users:\(\("([^"]+)"', table))
    assert "slurmd" in programs
    return programs


# --- losses


async def test_an_agent_of_a_cancelled_job_comes_back_as_itself_in_another(
    hosts: NetnsLab, exchange: ExchangeFactory
) -> None:
    executor = ParslExecutor(quick_config(hosts.address))
    async with await Manager.from_exchange_factory(
        exchange, executor, max_retries=1
    ) as manager:
        agent = await manager.launch(Traveller)
        witness = await manager.launch(
            Traveller, args=([agent],), executor="event_loop"
        )
        before = await agent.place()
        hosts.run("scancel", before.job)
        # While it is completing, the agent may still answer.
        await asyncio.to_thread(
            until, lambda: before.job not in hosts.jobs(), "its end"
        )
        # Who has its handle calls the same agent, and waits until it is back.
        [after] = await witness.places_of_others()
        assert after.job != before.job
        assert running(hosts) == [after.job]
        both = {agent.agent_id, witness.agent_id}
        assert set(await manager.exchange_client.discover(Traveller)) == both
        assert manager.running() == both
    assert running(hosts) == []


@pytest.mark.slow
async def test_an_agent_of_a_dead_node_comes_back_on_another(
    breakable_hosts: NetnsLab,
) -> None:
    lab = breakable_hosts
    executor = ParslExecutor(quick_config(lab.address))
    with spawn_http_exchange(host=lab.address) as exchange:
        async with await Manager.from_exchange_factory(
            exchange, executor, max_retries=1
        ) as manager:
            agent = await manager.launch(Traveller)
            before = await agent.place()
            lab.power_off(int(before.host.removeprefix("n")))
            # As a cluster's health check does; by itself, Slurm takes its time.
            node = ("nodename=" + before.host, "state=down", "reason=dead")
            lab.run("scontrol", "update", *node)
            after = await agent.place()
            assert after.host != before.host
    assert running(lab) == []


# --- queues


async def test_a_manager_closes_while_the_job_of_its_agent_is_queued(
    slurm: SlurmLab,
) -> None:
    later = "#SBATCH --begin=now+1hour"
    executor = ParslExecutor(quick_config(HERE, scheduler_options=later))
    with spawn_http_exchange() as exchange:
        async with await Manager.from_exchange_factory(exchange, executor) as manager:
            await manager.launch(Traveller)
            await asyncio.to_thread(until, lambda: running(slurm), "a job")
            assert set(slurm.jobs().values()) == {"PENDING"}
    assert running(slurm) == []


# --- what is submitted


async def test_slurm_gets_the_script_that_was_previewed(slurm: SlurmLab) -> None:
    executor = ParslExecutor(
        quick_config(HERE, partition="gpu", gpus_per_node=2, account="physics")
    )
    preview = executor.preview()
    future = executor.submit(os.getenv, "CUDA_VISIBLE_DEVICES")
    assert await asyncio.wrap_future(future) == "0,1"
    [job] = running(slurm)
    script = slurm.script(job)
    assert "#SBATCH --account=physics\n" in script
    assert preview.count(script) == 1
    again = executor.preview()
    await asyncio.to_thread(executor.shutdown)
    assert running(slurm) == []
    # The next block has the next number, and nothing else is new.
    again = re.sub(r"(block[-_]id=|block-)1", r"\g<1>0", again)
    assert again == preview
