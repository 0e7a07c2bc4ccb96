"""The clusters that other tests run on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.slurm import NetnsLab, SlurmLab, until

pytestmark = pytest.mark.hpc

# What our jobs sleep is told from the sleep of others by its length.
NIGHT = f"613.{os.getpid()}"


def test_a_job_runs_on_all_nodes(slurm: SlurmLab) -> None:
    names = slurm.run("srun", "-N4", "printenv", "SLURMD_NODENAME")
    assert sorted(names.split()) == ["n1", "n2", "n3", "n4"]


def test_a_job_gets_the_gpus_that_it_asked_for(slurm: SlurmLab) -> None:
    ask = ("srun", "--partition=gpu", "--exact")
    visible = ("printenv", "CUDA_VISIBLE_DEVICES")
    assert slurm.run(*ask, "--gpus=2", *visible) == "0,1\n"
    assert slurm.run(*ask, "--gpus=1", *visible) == "0\n"


def test_slurm_shows_a_job_and_its_script_after_its_end(
    slurm: SlurmLab, tmp_path: Path
) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\n#SBATCH --output=/dev/null\nexit 3\n")
    job = slurm.run("sbatch", "--parsable", script).strip()
    until(lambda: job not in slurm.jobs(), "the end of the job")
    assert slurm.job(job)["JobState"] == "FAILED"
    assert slurm.job(job)["ExitCode"] == "3:0"
    assert slurm.script(job) == script.read_text()


def test_a_cluster_ignores_the_job_that_it_is_started_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if (reason := SlurmLab.missing()) is not None:
        pytest.skip(reason)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_NNODES", "200")
    monkeypatch.setenv("SBATCH_ACCOUNT", "somebody")
    with SlurmLab(nodes=1) as lab:
        assert lab.run("srun", "printenv", "SLURM_JOB_ID") == f"{lab.port}\n"


def test_clusters_do_not_see_each_other(slurm: SlurmLab, hosts: NetnsLab) -> None:
    job = ("sbatch", "--parsable", "-o/dev/null", "--wrap=exec sleep 612")
    first, second = slurm.run(*job, "-N4").strip(), hosts.run(*job, "-N3").strip()
    assert list(slurm.jobs()) == [first]
    assert list(hosts.jobs()) == [second]
    slurm.cancel_all()
    assert list(hosts.jobs()) == [second]
    hosts.cancel_all()


# --- nodes that die


def test_a_node_without_power_takes_its_jobs_along(breakable_slurm: SlurmLab) -> None:
    lab = breakable_slurm
    submit = ("sbatch", "--parsable", "-o/dev/null", "-wn1")
    job = lab.run(*submit, f"--wrap=exec sleep {NIGHT}")
    [sleeping] = until(lambda: processes("sleep", NIGHT), "the job to run")
    lab.power_off(1)
    assert not sleeping.is_running()
    assert lab.jobs() == {job.strip(): "RUNNING"}, "somebody has told Slurm"
    lab.start_node(1)
    lab.cancel_all()
    assert lab.run("srun", "-wn1", "printenv", "SLURMD_NODENAME") == "n1\n"


def processes(*command: str) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if process.info["cmdline"] == list(command)]


STARTS_A_CLUSTER = """
import sys
from tests.support.slurm import NetnsLab, SlurmLab

with {kind}(nodes=2) as lab:
    lab.run("sbatch", "-N2", "-o/dev/null", "--wrap=srun setsid sleep {night}")
    print(lab.directory, lab._link_prefix(), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", [SlurmLab, NetnsLab])
def test_nothing_is_left_when_the_test_run_is_killed(kind: type[SlurmLab]) -> None:
    if (reason := kind.missing()) is not None:
        pytest.skip(reason)
    program = STARTS_A_CLUSTER.format(kind=kind.__name__, night=NIGHT)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        directory, *links = line.split()
        until(lambda: len(processes("sleep", NIGHT)) == 2, "the job to run")
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) > 6
        process.send_signal(signal.SIGKILL)
    until(lambda: not Path(directory).exists(), "its directory to be removed")
    assert not any(name.startswith(tuple(links)) for _, name in socket.if_nameindex())
    until(lambda: not any(map(runs, started)), "its processes to end")


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- nodes that are hosts


def test_nodes_that_are_hosts_have_names_and_a_tmp_of_their_own(
    hosts: NetnsLab,
) -> None:
    look = "hostname; touch /tmp/from-$(hostname); ls -d /tmp/from-*"
    shown = hosts.run("srun", "-N3", "--label", "sh", "-c", look)
    for task, name in enumerate(["n1", "n2", "n3"]):
        lines = [line for line in shown.splitlines() if line.startswith(f"{task}: ")]
        assert lines == [f"{task}: {name}", f"{task}: /tmp/from-{name}"]


def test_nodes_that_are_hosts_see_the_shared_directories(
    hosts: NetnsLab, tmp_path: Path
) -> None:
    hosts.run("srun", "-N3", "sh", "-c", f"hostname > {tmp_path}/$(hostname)")
    assert sorted(os.listdir(tmp_path)) == ["n1", "n2", "n3"]
    found = hosts.run("srun", "-N1", sys.executable, "-c", "import academy; print(1)")
    assert found == "1\n"


def test_nodes_that_are_hosts_reach_the_login_node_each_other_and_nobody_else(
    hosts: NetnsLab,
) -> None:
    with socket.create_server((hosts.address, 0)) as server:
        port = server.getsockname()[1]
        assert connects(hosts, hosts.address, port)
        # Its loopback is not ours.
        assert not connects(hosts, "127.0.0.1", port)
    assert connects(hosts, hosts.node_address(2), hosts.port + 1)
    assert "unreachable" in hosts.node_exec(
        1, "sh", "-c", "ip route get 8.8.8.8 2>&1 ||:"
    )


def connects(hosts: NetnsLab, address: str, port: int) -> bool:
    attempt = f"exec 3<>/dev/tcp/{address}/{port} && echo connected"
    said = hosts.node_exec(1, "bash", "-c", f"({attempt}) 2>/dev/null || echo refused")
    return said == "connected\n"
