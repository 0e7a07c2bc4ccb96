"""What a launch asks for is what Slurm says of its job."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parsl.launchers import SimpleLauncher, SrunLauncher
from parsl.providers import PBSProProvider, SlurmProvider

from academy.agent import Agent
from academy.exchange import LocalExchangeFactory
from academy.executors.parsl import ParslExecutor
from academy.executors.providers import (
    Script,
    script_of,
    submit_script,
    with_resources,
)
from academy.executors.resources import ResourceSpec
from academy.manager import Manager
from tests.hpc.test_parsl_on_slurm import quick_config
from tests.support.slurm import PBS_COMMANDS, SlurmLab, until

pytestmark = pytest.mark.hpc

# Such a job stays in the queue, where Slurm tells what it asks for.
LATER = "#SBATCH --begin=now+1hour"


@pytest.fixture
def queue(slurm: SlurmLab, tmp_path: Path) -> Iterator[Queue]:
    """Submits jobs, and ends them with the test."""
    yield Queue(slurm, tmp_path)
    slurm.cancel_all()


class Queue:
    """A cluster, as one who submits to it sees it."""

    def __init__(self, lab: SlurmLab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory

    def submit(
        self, command: str = "true", provider: Any = None, **kw: Any
    ) -> tuple[Script, str]:
        """Submit a job with these resources; return its script and its id."""
        spec = ResourceSpec.parse(kw, "this test")
        if provider is None:
            provider = SlurmProvider(launcher=SimpleLauncher(), exclusive=False)
        job = (
            with_resources(provider, spec, "this test"),
            command,
            spec.ranks_per_node or 1,
            "job-1",
            str(self.directory),
        )
        return script_of(*job), submit_script(*job)

    def submit_later(self, **kw: Any) -> dict[str, str]:
        """Submit a job that does not run yet; return what Slurm says of it."""
        _, job = self.submit(scheduler_options=LATER, **kw)
        return self.lab.job(job)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"nodes": 3}, {"NumNodes": "3-3"}),
        ({"ranks_per_node": 2}, {"NtasksPerN:B:S:C": "2:0:*:*", "NumTasks": "2"}),
        ({"cpus_per_rank": 3}, {"CPUs/Task": "3", "MinCPUsNode": "3"}),
        (
            {"ranks_per_node": 2, "cpus_per_rank": 3, "nodes": 2},
            {"CPUs/Task": "3", "NumTasks": "4", "MinCPUsNode": "6"},
        ),
        ({"gpus_per_node": 2, "queue": "gpu"}, {"TresPerNode": "gres:gpu:2"}),
        ({"memory_gb_per_node": 2}, {"MinMemoryNode": "2G"}),
        ({"memory_gb_per_node": 1.5}, {"MinMemoryNode": "1.50G"}),
        ({"mem": "700M"}, {"MinMemoryNode": "700M"}),
        ({"walltime": "00:30:00"}, {"TimeLimit": "00:30:00"}),
        ({"walltime": "00:00:30"}, {"TimeLimit": "00:01:00"}),
        ({"walltime": "1-12:00:00", "queue": "long"}, {"TimeLimit": "1-12:00:00"}),
        ({"queue": "long"}, {"Partition": "long"}),
        ({"account": "proj"}, {"Account": "proj"}),
        ({"constraint": "bigmem&ib"}, {"Features": "bigmem&ib"}),
        ({"reservation": "training"}, {"Reservation": "training"}),
        ({"exclusive": True}, {"OverSubscribe": "NO"}),
        ({"exclusive": False}, {"OverSubscribe": "OK"}),
        ({"priority": 77}, {"Priority": "77"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if value else "",
)
def test_slurm_says_of_a_job_what_its_launch_asked_for(
    queue: Queue, features: None, asked: dict[str, Any], said: dict[str, str]
) -> None:
    job = queue.submit_later(**asked)
    assert job["JobState"] == "PENDING"
    assert {name: job[name] for name in said} == said


@pytest.fixture
def features(slurm: SlurmLab) -> Iterator[None]:
    """Give the cluster features and a reservation to be asked for."""
    have = "AvailableFeatures={0} ActiveFeatures={0}"
    update = ("scontrol", "update", "NodeName=n3")
    reservation = "ReservationName=training"
    slurm.run(*update, *have.format("bigmem,ib").split())
    slurm.run(
        *("scontrol", "create", "reservation", reservation, "StartTime=now"),
        *("Duration=60", "Users=root", "Nodes=n3", "Flags=ignore_jobs"),
    )
    yield
    slurm.cancel_all()
    slurm.run("scontrol", "delete", reservation)
    slurm.run(*update, *have.format("").split())


def test_sbatch_reads_the_quality_of_service(queue: Queue) -> None:
    # Without an accounting database Slurm keeps none, but sbatch tells what it reads.
    script, job = queue.submit(qos="high", scheduler_options=LATER)
    done = subprocess.run(
        ["sbatch", "-v", "--test-only", script.path],
        env=queue.lab.env,
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line.split() for line in done.stderr.splitlines()]
    assert ["sbatch:", "qos", ":", "high"] in said
    assert "#SBATCH --qos=high\n" in queue.lab.script(job)


def test_what_prepares_and_launches_a_job_is_run(queue: Queue) -> None:
    provider = SlurmProvider(
        launcher=SrunLauncher(), exclusive=False, worker_init="export WHO=nobody"
    )
    script, job = queue.submit(
        "printenv WHO MARK SLURM_CPUS_PER_TASK SLURM_JOB_NAME",
        provider,
        nodes=2,
        ranks_per_node=2,
        cpus_per_rank=2,
        memory_gb_per_node=0.25,
        worker_init="export WHO=ada",
        launcher_options="--export=ALL,MARK='x y' --overcommit",
    )
    until(lambda: job not in queue.lab.jobs(), "the end of the job")
    assert queue.lab.job(job)["JobState"] == "COMPLETED", Path(
        script.stderr
    ).read_text()
    printed = Path(script.stdout).read_text().splitlines()
    for rank in range(4):
        lines = [line for line in printed if line.startswith(f"{rank}: ")]
        assert lines == [f"{rank}: {said}" for said in ("ada", "x y", "2", "job-1")]


def test_the_previewed_script_is_what_slurm_has_byte_for_byte(queue: Queue) -> None:
    script, job = queue.submit(
        "echo 'ä $HOME'",
        SlurmProvider(launcher=SrunLauncher(), scheduler_options="#SBATCH --nice=5"),
        nodes=2,
        ranks_per_node=2,
        cpus_per_rank=2,
        gpus_per_node=0,
        memory_gb_per_node=1.5,
        walltime=5,
        queue="debug",
        account="proj",
        qos="high",
        exclusive=True,
        priority=5,
        scheduler_options=LATER,
        worker_init="module() { :; }\nmodule load python",
        launcher_options="--cpu-bind=none",
    )
    assert queue.lab.script(job) == script.text
    assert queue.lab.job(job)["StdOut"] == script.stdout
    assert queue.lab.job(job)["StdErr"] == script.stderr
    assert queue.lab.job(job)["JobName"] == "job-1"


def test_the_previewed_script_is_what_qsub_gets(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = Path(sys.executable).parent  # Runs the commands.
    monkeypatch.setenv("PATH", f"{PBS_COMMANDS}:{python}", prepend=os.pathsep)
    monkeypatch.setenv("HOME", str(queue.directory))
    provider: Any = PBSProProvider
    script, job = queue.submit(
        "printenv WHO PBS_JOBID",
        provider(launcher=SimpleLauncher()),
        nodes=2,
        cpus_per_rank=2,
        walltime="00:05:00",
        queue="long",
        account="proj",
        worker_init="export WHO=ada",
    )
    number = job.removesuffix(".pbs01")
    until(lambda: number not in queue.lab.jobs(), "the end of the job")
    assert queue.lab.script(number) == script.text
    said = queue.lab.job(number)
    assert (said["Partition"], said["Account"]) == ("long", "proj")
    assert (said["TimeLimit"], said["JobName"]) == ("00:05:00", "job-1")
    assert Path(script.stdout).read_text() == f"ada\n{job}\n"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"queue": "nowhere"}, "invalid partition specified: nowhere"),
        ({"constraint": "quantum"}, "Invalid feature specification"),
        ({"reservation": "nobodys"}, "Requested reservation is invalid"),
        ({"gpus_per_node": 9}, "Requested node configuration is not available"),
        ({"scheduler_options": "#SBATCH --nosuch"}, "unrecognized option '--nosuch'"),
    ],
)
def test_a_refusal_comes_in_slurms_own_words(
    queue: Queue, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match="The job was refused: sbatch: ") as caught:
        queue.submit(**asked)
    assert words in str(caught.value)
    assert queue.lab.jobs() == {}


class Idle(Agent):
    """An agent."""


async def test_a_typo_submits_nothing_and_registers_nothing(slurm: SlurmLab) -> None:
    executor = ParslExecutor(quick_config("127.0.0.1"))
    async with await Manager.from_exchange_factory(
        LocalExchangeFactory(), executor
    ) as manager:
        with pytest.raises(ValueError, match="Did you mean 'nodes_per_block'"):
            await manager.launch(Idle, submit_kwargs={"node_per_block": 2})
        with pytest.raises(ValueError, match="walltime"):
            await manager.launch(Idle, submit_kwargs={"walltime": "30:00"})
        assert await manager.exchange_client.discover(Idle) == ()
    assert slurm.jobs() == {}
