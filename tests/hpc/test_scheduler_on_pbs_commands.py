"""What is known of jobs by OpenPBS's commands, which here a Slurm carries out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from academy import failure
from academy.scheduler.base import get_scheduler
from academy.scheduler.cause import cause_of
from academy.scheduler.job import JobInfo, JobState
from tests.support.slurm import PBS_COMMANDS, SlurmLab, until

pytestmark = pytest.mark.hpc

PBS = get_scheduler("pbs")


@pytest.fixture(autouse=True)
def pbs(slurm: SlurmLab, monkeypatch: pytest.MonkeyPatch) -> None:
    python = Path(sys.executable).parent  # Runs the commands.
    monkeypatch.setenv("PATH", f"{PBS_COMMANDS}:{python}", prepend=os.pathsep)


def submit(tmp_path: Path, *lines: str) -> str:
    script = tmp_path / "job.sh"
    lines = ("#!/bin/bash", f"#PBS -o {tmp_path}/output", *lines, "")
    script.write_text("\n".join(lines))
    done = subprocess.run(["qsub", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def shown(job: str, is_so: Callable[[JobInfo], bool]) -> JobInfo:
    def look() -> JobInfo | None:
        info = PBS.job(job)
        return info if is_so(info) else None

    info = until(look, f"job {job} to be so")
    assert info is not None
    return info


def over(job: str) -> JobInfo:
    return shown(job, lambda info: info.state.is_over)


def test_a_job_that_runs_shows_where_since_when_and_until_when(tmp_path: Path) -> None:
    job = submit(tmp_path, "#PBS -l walltime=00:10:00", "#PBS -l nodes=2", "sleep 100")
    info = shown(job, lambda info: info.state is JobState.RUNNING)
    assert info.job_id == job
    assert info.nodes == ("n1", "n2")
    assert info.started is not None
    assert abs(datetime.now(UTC) - info.started) < timedelta(minutes=1)
    assert info.ends == info.started + timedelta(minutes=10)
    assert info.stdout == f"{tmp_path}/output"
    PBS.cancel([job])
    info = over(job)
    assert info.state is JobState.CANCELLED
    assert type(cause_of(info, started=True)) is failure.JobCancelledError
    PBS.cancel([job])


@pytest.mark.parametrize(
    ("script", "state", "code"),
    [
        ("true", JobState.COMPLETED, 0),
        ("exit 3", JobState.FAILED, 3),
        ("kill -SEGV $$", JobState.FAILED, 128 + 11),
    ],
)
def test_the_exit_code_of_a_job_is_that_of_its_script(
    tmp_path: Path, script: str, state: JobState, code: int
) -> None:
    before = set(Path.home().iterdir())
    info = over(submit(tmp_path, script))
    assert (info.state, info.exit_code) == (state, code)
    # Jobs of PBS begin at home, and one that crashes must not leave its memory there.
    assert set(Path.home().glob("core*")) <= before


def test_a_job_that_will_never_run_is_told_from_its_comment(tmp_path: Path) -> None:
    job = submit(tmp_path, "#PBS -l nodes=9", "true")
    info = shown(job, lambda info: info.reason.startswith("Can Never Run"))
    assert info.state is JobState.PENDING
    assert type(cause_of(info, started=False)) is failure.NeverStartedError
    PBS.cancel([job])


def test_known_and_unknown_jobs_are_one_question(tmp_path: Path) -> None:
    jobs = [submit(tmp_path, f"exit {code}") for code in range(3)]
    for job in jobs:
        over(job)
    found = PBS.jobs([*jobs, "999999.pbs01"])
    assert [found[job].exit_code for job in jobs] == [0, 1, 2]
    assert found["999999.pbs01"].state is JobState.UNKNOWN


def test_limits_are_those_of_the_queue() -> None:
    default, longest = PBS.limits(), PBS.limits("long")
    assert default is not None
    assert (default.queue, default.walltime, default.nodes) == ("debug", 3600, 4)
    assert longest is not None
    assert longest.walltime is None
    with pytest.raises(ValueError, match="There is no queue 'nosuch'"):
        PBS.limits("nosuch")


TELLS_ITS_PLACE = (
    "import json; from academy.scheduler.here import place; p = place();"
    "print(json.dumps([p.scheduler, p.job_id]))"
)


def test_a_process_in_a_job_knows_by_which_id_to_ask_about_it(tmp_path: Path) -> None:
    # Such a job has the variables of both, and Slurm's commands would do as well.
    script = f"env -u SLURM_JOB_ID {sys.executable} -c '{TELLS_ITS_PLACE}'"
    job = submit(tmp_path, f"cd {Path.cwd()}", script)
    info = over(job)
    assert info.state is JobState.COMPLETED
    assert info.stdout is not None
    assert json.loads(Path(info.stdout).read_text()) == ["pbs", job]
