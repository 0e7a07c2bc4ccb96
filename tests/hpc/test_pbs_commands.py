"""OpenPBS's commands, as Parsl's providers and job scripts meet them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.slurm import PBS_COMMANDS, SlurmLab, until

pytestmark = pytest.mark.hpc


@pytest.fixture(autouse=True)
def pbs(slurm: SlurmLab, monkeypatch: pytest.MonkeyPatch) -> None:
    python = Path(sys.executable).parent  # Runs the commands.
    monkeypatch.setenv("PATH", f"{PBS_COMMANDS}:{python}", prepend=os.pathsep)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def described(job: str) -> dict[str, Any]:
    answer = json.loads(run("qstat", "-x", "-f", "-F", "json", job).stdout)
    found: dict[str, Any] = answer["Jobs"][job]
    return found


def submit(script: Path, *lines: str) -> str:
    script.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    done = run("qsub", script)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ended(job: str) -> dict[str, Any]:
    until(lambda: described(job)["job_state"] == "F", f"the end of {job}")
    return described(job)


def test_a_script_with_pbs_lines_runs_as_in_openpbs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SUBMITTER", "1")
    job = submit(
        tmp_path / "job.sh",
        "#PBS -N census",
        "#PBS -l walltime=00:02:00",
        "#PBS -l select=1:ncpus=2",
        f"#PBS -o {tmp_path}/output",
        "echo $PBS_JOBID",
        "echo $PBS_O_WORKDIR",
        "pwd",
        "cat $PBS_NODEFILE",
        "echo secret=$SECRET_OF_THE_SUBMITTER",
        "exit 3",
    )
    shown = ended(job)
    assert shown["Job_Name"] == "census"
    assert shown["Resource_List"]["walltime"] == "00:02:00"
    assert shown["Exit_status"] == 3
    printed = (tmp_path / "output").read_text().splitlines()
    here, home = os.getcwd(), os.environ["HOME"]
    [node] = shown["exec_host"].split("+")
    assert printed == [job, here, home, node.partition("/")[0], "secret="]


def test_a_job_gets_the_environment_that_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOUR", "green")
    output = tmp_path / "output"
    job = submit(tmp_path / "job.sh", "#PBS -V", f"#PBS -o {output}", "echo $COLOUR")
    ended(job)
    assert output.read_text() == "green\n"


def test_qdel_ends_a_running_job_which_only_history_then_shows(tmp_path: Path) -> None:
    job = submit(tmp_path / "job.sh", "#PBS -o /dev/null", "sleep 615")
    until(lambda: described(job)["job_state"] == "R", "the job to run")
    assert [line.split()[4] for line in run("qstat").stdout.splitlines()[2:]] == ["R"]
    assert run("qdel", job).returncode == 0
    ended(job)
    gone = run("qstat", "-f", "-F", "json", job)
    assert "Jobs" not in json.loads(gone.stdout)
    assert gone.returncode == 35
    assert "finished" in gone.stderr


def test_what_is_unknown_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\n")
    refused = run("qsub", "-q", "nosuch", script)
    assert refused.returncode == 170
    assert refused.stderr.startswith("qsub: ")
    assert run("qdel", "999.pbs01").returncode == 153
    assert run("qstat", "-x", "999.pbs01").returncode == 153
    assert "illegal option" in run("qsub", "--wait", script).stderr


def test_a_program_runs_on_all_nodes_of_a_job_or_on_one(tmp_path: Path) -> None:
    output = tmp_path / "output"
    job = submit(
        tmp_path / "job.sh",
        *("#PBS -V", "#PBS -l nodes=3", f"#PBS -o {output}"),
        "pbsdsh -- printenv SLURMD_NODENAME | sort",
        "pbsdsh -n 1 printenv SLURMD_NODENAME",
    )
    ended(job)
    assert output.read_text().split() == ["n1", "n2", "n3", "n2"]


def test_queues_tell_the_most_that_a_job_may_ask_for() -> None:
    answer = json.loads(run("qstat", "-Q", "-f", "-F", "json").stdout)
    assert answer["Queue"]["debug"]["resources_max"] == {
        "nodect": 4,
        "walltime": "01:00:00",
    }
    assert "walltime" not in answer["Queue"]["long"]["resources_max"]
