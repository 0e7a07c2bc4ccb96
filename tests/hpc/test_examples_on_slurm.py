"""The examples for clusters, run as their users would run them.

PBS is OpenPBS's commands over Slurm. What a user has to fill in is filled in: the
virtual environment, the address of the login node, the number of workers.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from academy.agent import Agent, action
from academy.exception import ExchangeError
from academy.exchange.cloud import HttpExchangeFactory, find_url
from academy.handle import Handle
from academy.manager import Manager
from tests.support.globus import ComputeLab
from tests.support.slurm import PBS_COMMANDS, NetnsLab, SlurmLab, until

pytestmark = pytest.mark.hpc

BIN = Path(sys.executable).parent


class Counter(Agent):
    """Counts, in this process."""

    def __init__(self) -> None:
        self.count = 0

    @action
    async def add(self, number: int) -> int:
        self.count += number
        return self.count


class Desk:
    """A copy of the examples and configurations in a user's directory.

    Attributes:
        examples: the directory of the examples.
        configs: that of the configurations.
    """

    def __init__(self, directory: Path, root: Path) -> None:
        self.examples = directory / "examples" / "hpc"
        self.configs = directory / "configs"
        shutil.copytree(root / "examples" / "hpc", self.examples)
        shutil.copytree(root / "configs", self.configs)
        for script in self.examples.glob("*.sh"):
            self.change(script, "~/venv", sys.prefix)
        for script in (
            *self.examples.glob("*_agent.sh"),
            *self.examples.glob("*_exchange.sh"),
        ):
            self.change(script, "24:00:00", "00:30:00")  # More is not to be had here.

    def change(self, file: Path, old: str, new: str) -> None:
        text = file.read_text()
        assert old in text, f"{file.name} has no {old}"
        file.write_text(text.replace(old, new))

    def run(self, *command: object) -> str:
        """Run a command beside the examples, and return what it prints."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.examples,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, *arguments: object) -> str:
        return self.run(sys.executable, *arguments)


@pytest.fixture
def desk(
    tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> Desk:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.delenv("ACADEMY_HOME", raising=False)
    # As in an environment that is active.
    monkeypatch.setenv("PATH", str(BIN), prepend=os.pathsep)
    return Desk(tmp_path, pytestconfig.rootpath)


@pytest.fixture
def pbs(hosts: NetnsLab, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> NetnsLab:
    """The cluster with hosts of their own, where PBS's commands are found as well."""
    monkeypatch.setenv("PATH", str(PBS_COMMANDS), prepend=os.pathsep)
    # Jobs of PBS start with a short PATH; on a cluster, /etc/profile mends that.
    profile = Path(os.environ["HOME"], ".profile")
    profile.write_text(f'PATH="{PBS_COMMANDS}:$PATH"\n')
    return hosts


def queue(lab: SlurmLab) -> list[str]:
    """Return the jobs that are not over or being cleaned up."""
    return [job for job, state in lab.jobs().items() if state != "COMPLETING"]


def wait_for_empty_queue(lab: SlurmLab) -> None:
    until(lambda: not queue(lab), "all jobs to end", timeout=100)


# --- the manager on the login node


@pytest.mark.slow
def test_a_parsl_campaign_has_blocks_of_two_shapes(hosts: NetnsLab, desk: Desk) -> None:
    command = ("campaign_parsl.py", desk.configs / "parsl" / "slurm.py")
    preview = desk.python(*command, "--preview")
    assert re.findall(r"--nodes=(\d) *\n#SBATCH --time=(\d+)", preview) == [
        ("2", "10"),
        ("1", "20"),
    ]
    desk.change(command[1], "EXCLUSIVE = True", "EXCLUSIVE = False")
    printed = desk.python(*command, "--host", hosts.address)
    assert "40 minima of 7 atoms" in printed
    assert "lowest: -16.505384 ε, found by AgentId<searcher-" in printed
    assert "published: -16.505384 ε" in printed
    assert queue(hosts) == []


@pytest.mark.slow
def test_batch_jobs_take_an_agent_each_or_all_of_them(
    hosts: NetnsLab, desk: Desk
) -> None:
    command = ("batch_jobs.py", "slurm", "--host", hosts.address)
    alone = desk.python(*command)
    assert len(set(re.findall(r"job (\d+) on n\d", alone))) == 4
    shared = desk.python(*command, "--share")
    assert len(set(re.findall(r"job (\d+) on n\d", shared))) == 1
    assert len(set(re.findall(r"job \d+ on (n\d)", shared))) == 2
    for printed in (alone, shared):
        [spread] = re.findall(r"per step: ([\d.]+) ± [\d.]+ \(exact: 3\)", printed)
        assert float(spread) == pytest.approx(3, abs=0.3)
    wait_for_empty_queue(hosts)


# --- all of it in one job


def fill_in(desk: Desk, script: str) -> None:
    """Have two workers on each of the two nodes, and as many agents."""
    in_job = desk.configs / "parsl" / "in-job.py"
    desk.change(in_job, "WORKERS_PER_NODE = 8", "WORKERS_PER_NODE = 2")
    host = '--host "$address"'
    desk.change(desk.examples / script, host, f"{host} --temperatures 4")


def check_in_job(printed: str) -> None:
    assert "7 atoms on 2 nodes: " in printed
    energies = re.findall(r"E = +(-[\d.]+) ε", printed)
    assert len(energies) == 3
    assert float(energies[0]) < float(energies[-1]) < -8


@pytest.mark.slow
def test_a_slurm_job_has_manager_exchange_and_workers_in_it(
    hosts: NetnsLab, desk: Desk
) -> None:
    fill_in(desk, "sbatch_manager_in_job.sh")
    desk.run("sbatch", "sbatch_manager_in_job.sh")
    wait_for_empty_queue(hosts)
    [output] = desk.examples.glob("campaign-*.out")
    check_in_job(output.read_text())


@pytest.mark.slow
def test_a_pbs_job_has_manager_exchange_and_workers_in_it(
    pbs: NetnsLab, desk: Desk
) -> None:
    fill_in(desk, "qsub_manager_in_job.sh")
    output = desk.examples / "output"
    desk.run("qsub", "-o", output, "qsub_manager_in_job.sh")
    wait_for_empty_queue(pbs)
    check_in_job(output.read_text())


# --- a persistent agent without a manager


@pytest.fixture
def exchange(hosts: NetnsLab, desk: Desk) -> Iterator[str]:
    """The address of an exchange on the login node, which agent.toml names."""
    start = ("academy", "exchange", "start", "--host", hosts.address, "--port", "0")
    [url] = re.findall(r"Exchange at (\S+) ", desk.run(*start))
    desk.change(desk.examples / "agent.toml", "https://login1:8700", url)
    yield url
    desk.run("academy", "exchange", "stop", url)


async def check_that_it_goes_on(
    url: str, desk: Desk, end_time: Callable[[str], object]
) -> None:
    """Follow the ledger from one job into the next, and end it there.

    Args:
        url: of the exchange.
        desk: where its files are.
        end_time: makes the time of a job be over.
    """
    async with await HttpExchangeFactory(url).create_user_client() as client:
        while not (found := await client.discover("ledger.Ledger")):
            await asyncio.sleep(0.1)
        ledger: Handle[Any] = Handle(found[0])
        first = await ledger.where()
        assert await ledger.record(13, -44.0) == -44.0
        end_time(first)
        # Calls wait while it is in no job.
        while (second := await ledger.where()) == first:
            await asyncio.sleep(0.1)
        assert await ledger.record(13, -43.0) == -44.0
        shown = await asyncio.to_thread(desk.python, "ledger.py", url)
        assert shown == f"{found[0]} in job {second}: {{13: -44.0}}\n"
        await ledger.shutdown()
    written = (desk.examples / "agent.toml").read_text()
    assert written.count("\nuid = ") == 1, "it has had two mailboxes"


@pytest.mark.slow
async def test_an_agent_goes_on_in_the_next_slurm_job(
    hosts: NetnsLab, desk: Desk, exchange: str
) -> None:
    desk.run("sbatch", "sbatch_agent.sh")

    def end_time(job: str) -> None:
        hosts.run("scancel", "--batch", "--signal=USR1", job)

    await check_that_it_goes_on(exchange, desk, end_time)
    wait_for_empty_queue(hosts)
    assert len(list(desk.examples.glob("ledger-*.out"))) == 2


async def test_an_agent_that_is_cancelled_does_not_come_back(
    hosts: NetnsLab, desk: Desk, exchange: str
) -> None:
    desk.run("sbatch", "sbatch_agent.sh")
    async with await HttpExchangeFactory(exchange).create_user_client() as client:
        while not (found := await client.discover("ledger.Ledger")):
            await asyncio.sleep(0.1)
        ledger: Handle[Any] = Handle(found[0])
        hosts.run("scancel", await ledger.where())
    wait_for_empty_queue(hosts)
    assert len(list(desk.examples.glob("ledger-*.out"))) == 1


@pytest.mark.slow
async def test_an_agent_goes_on_in_the_next_pbs_job(
    pbs: NetnsLab, desk: Desk, exchange: str
) -> None:
    # The walltime of the first job, in effect.
    desk.run("qsub", "-v", "AGENT_SECONDS=6", "qsub_agent.sh")
    await check_that_it_goes_on(exchange, desk, lambda job: None)
    wait_for_empty_queue(pbs)


# --- an exchange in one job after the other


async def url_of_exchange() -> str:
    while True:
        try:
            return find_url("campaign")
        except ExchangeError:
            await asyncio.sleep(0.1)


def running_jobs(lab: SlurmLab) -> list[str]:
    return [job for job, state in lab.jobs().items() if state == "RUNNING"]


async def check_that_the_exchange_goes_on(
    lab: SlurmLab, end_time: Callable[[str], object]
) -> None:
    """Follow the exchange from one job into the next, with a program and its agent."""
    async with asyncio.timeout(100):
        first = await url_of_exchange()
        [job] = running_jobs(lab)
        factory = HttpExchangeFactory(first, retries=8)
        async with await Manager.from_exchange_factory(factory) as manager:
            counter = await manager.launch(Counter)
            assert await counter.action(Counter.add, 1) == 1
            end_time(job)
            while find_url("campaign") == first:
                await asyncio.sleep(0.1)
            # The next job takes up where the one before has stopped.
            assert await counter.action(Counter.add, 1) == 2
        [following] = running_jobs(lab)
    assert following != job
    lab.run("scancel", following)


@pytest.mark.slow
async def test_an_exchange_goes_on_in_the_next_slurm_job(
    hosts: NetnsLab, desk: Desk
) -> None:
    desk.run("sbatch", "sbatch_exchange.sh")

    def end_time(job: str) -> None:
        hosts.run("scancel", "--batch", "--signal=USR1", job)

    await check_that_the_exchange_goes_on(hosts, end_time)
    wait_for_empty_queue(hosts)
    assert len(list(desk.examples.glob("exchange-*.out"))) == 2


@pytest.mark.slow
async def test_an_exchange_goes_on_in_the_next_pbs_job(
    pbs: NetnsLab, desk: Desk
) -> None:
    # The walltime of the first job, in effect.
    desk.run("qsub", "-v", "EXCHANGE_SECONDS=8", "qsub_exchange.sh")
    await check_that_the_exchange_goes_on(pbs, lambda job: None)
    wait_for_empty_queue(pbs)


# --- several sites


# As a user with an account runs it: what differs is where the service is.
WITH_OUR_SERVICE = """
import os, runpy, sys
import globus_compute_sdk.sdk.client as client
client.get_web_service_url = lambda envname=None: os.environ["TEST_COMPUTE_URL"]
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def compute_lab() -> Iterator[ComputeLab]:
    if (reason := ComputeLab.missing()) is not None:
        pytest.skip(reason)
    with ComputeLab() as lab:
        yield lab


@pytest.fixture
def compute(
    compute_lab: ComputeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ComputeLab]:
    """An endpoint, for programs that are run by `WITH_OUR_SERVICE`."""
    for name, value in {
        "TEST_COMPUTE_URL": compute_lab.cloud.url,
        "GLOBUS_SDK_SERVICE_URL_AUTH": f"{compute_lab.cloud.url}/",
        "GLOBUS_COMPUTE_CLIENT_ID": "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee",
        "GLOBUS_COMPUTE_CLIENT_SECRET": "none",
        "GLOBUS_COMPUTE_USER_DIR": str(tmp_path / "globus"),
    }.items():
        monkeypatch.setenv(name, value)
    yield compute_lab
    compute_lab.stop(compute_lab.user_endpoints())


@pytest.mark.slow
def test_a_globus_compute_campaign_studies_a_parameter(
    desk: Desk, compute: ComputeLab
) -> None:
    command = ("campaign_globus_compute.py", compute.endpoint_id, "--agents", 2)
    workers = ("--user-endpoint-config", '{"workers": 2}')
    printed = desk.python("-c", WITH_OUR_SERVICE, *command, *workers)
    assert "r = 2.8: period 1 (on " in printed
    assert "r = 3.2: period 2 (on " in printed
    assert "the period doubles from the first to the second: True" in printed


@pytest.mark.slow
def test_one_campaign_spans_laptop_slurm_gpu_pbs_and_globus_compute(
    slurm: SlurmLab, desk: Desk, compute: ComputeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory in (PBS_COMMANDS, BIN):
        monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)
    toml = desk.configs / "executors.toml"
    nobody = "00000000-0000-0000-0000-000000000000"
    desk.change(toml, nobody, compute.endpoint_id)
    desk.change(toml, 'walltime = "00:30:00"', "")  # Our endpoint has no jobs.
    parsl = desk.configs / "parsl"
    desk.change(parsl / "slurm-gpu.py", "GPUS_PER_NODE = 4", "GPUS_PER_NODE = 2")
    for file in (parsl / "slurm.py", parsl / "pbs.py"):
        desk.change(file, "WORKERS_PER_NODE = 8", "WORKERS_PER_NODE = 1")
    sites = ("laptop", "slurm", "gpu", "pbs", "elsewhere")
    campaign = ("campaign_mixed.py", toml, *sites)
    printed = desk.python("-c", WITH_OUR_SERVICE, *campaign)
    found = re.findall(
        r"^(\w+) +T = [\d.]+  E = +(\S+) \(exact: +(\S+)\) +(\d+) swaps "
        r" host \S+  job (\S+)  GPUs (\S+)$",
        printed,
        flags=re.MULTILINE,
    )
    assert tuple(site for site, *_ in found) == sites
    for _, mean, exact, swaps, *_ in found:
        assert float(mean) == pytest.approx(float(exact), abs=0.15)
        assert int(swaps) > 0
    jobs = {site: job for site, *_, job, _ in found}
    assert jobs["laptop"] == jobs["elsewhere"] == "-"
    assert jobs["pbs"].endswith(".pbs01")
    assert len({jobs["slurm"], jobs["gpu"], jobs["pbs"]}) == 3
    gpus = {site: gpus for site, *_, gpus in found}
    assert gpus["gpu"] in ("0", "1")
    assert gpus["slurm"] == "-"
    wait_for_empty_queue(slurm)
