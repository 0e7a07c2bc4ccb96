"""Agents on a real Globus Compute endpoint, in jobs of a real Slurm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from academy.exchange.cloud import spawn_http_exchange
from academy.executors.globus_compute import GlobusComputeExecutor
from academy.failure import AgentLostError
from academy.manager import Manager
from tests.hpc.agents import Traveller
from tests.support.globus import VENV, ComputeLab
from tests.support.slurm import SlurmLab, until

pytestmark = [pytest.mark.hpc, pytest.mark.slow]

SHIPPED = Path(__file__).parents[2] / "configs/globus-compute/slurm-gpu"


@pytest.fixture
def compute(slurm: SlurmLab) -> Iterator[ComputeLab]:
    """An endpoint with the template that we ship, its capitals changed."""
    if (reason := ComputeLab.missing()) is not None:
        pytest.skip(reason)
    template = (SHIPPED / "user_config_template.yaml.j2").read_text()
    # As many a user does: the environment, and where nodes find the login node.
    start = template.index("{%- set WORKER_INIT %}")
    end = template.index("{% endset %}", start)
    activate = f"{{%- set WORKER_INIT %}}\nexport PATH={VENV}/bin:$PATH\n"
    template = template[:start] + activate + template[end:]
    template = template.replace("set GPUS_PER_NODE = 4", "set GPUS_PER_NODE = 0")
    template = template.replace("set INTERFACE = none", 'set INTERFACE = "lo"')
    schema = (SHIPPED / "user_config_schema.json").read_text()
    env = {name: slurm.env[name] for name in ("SLURM_CONF",)}
    with ComputeLab(template, schema, env) as lab:
        yield lab
        lab.stop(lab.user_endpoints())
        until(lambda: not slurm.jobs(), "the endpoint's jobs to be cancelled")


async def test_what_a_launch_asks_for_is_what_slurm_is_asked_for(
    slurm: SlurmLab, compute: ComputeLab
) -> None:
    executor = GlobusComputeExecutor(
        compute.endpoint_id, resources={"account": "physics"}, client=compute.client
    )
    with spawn_http_exchange() as exchange:
        async with await Manager.from_exchange_factory(exchange, executor) as manager:
            asked = {
                "walltime": "00:07:00",
                "queue": "long",
                "nodes": 2,
                "ranks_per_node": 1,
                "gpus_per_node": 2,
                "memory_gb_per_node": 1,
                "exclusive": False,
                "scheduler_options": "#SBATCH --comment=by-academy",
                "worker_init": "export SAID=ready",
            }
            agent = await manager.launch(Traveller, submit_kwargs=asked)
            place = await agent.place()
            job = await asyncio.to_thread(slurm.job, place.job)
            assert job["TimeLimit"] == "00:07:00"
            assert job["Partition"] == "long"
            assert job["Account"] == "physics"
            assert job["NumNodes"] == "2"
            assert job["MinMemoryNode"] == "1G"
            assert job["Comment"] == "by-academy"
            assert "gres:gpu:2" in job["TresPerNode"]
            assert "export SAID=ready" in await asyncio.to_thread(
                slurm.script, place.job
            )
            # When its job is cancelled, it fails, and says so.
            slurm.run("scancel", place.job)
            with pytest.raises(AgentLostError):
                await manager.wait([agent], raise_error=True)
