"""Which error stands for what became of a job."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from academy import failure
from academy.scheduler.cause import cause_of
from academy.scheduler.job import JobInfo, JobState

JOB = JobInfo(
    "slurm",
    "12",
    JobState.FAILED,
    nodes=("n1", "n2"),
    started=datetime.now(UTC),
    exit_code=1,
)
Lost = type[failure.AgentLostError]


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (JobState.OUT_OF_MEMORY, failure.OutOfMemoryError),
        (JobState.TIMEOUT, failure.WalltimeReachedError),
        (JobState.PREEMPTED, failure.PreemptedError),
        (JobState.NODE_FAIL, failure.NodeFailedError),
        (JobState.CANCELLED, failure.JobCancelledError),
        (JobState.FAILED, failure.JobFailedError),
        (JobState.COMPLETED, failure.JobFailedError),
    ],
)
def test_states_have_their_errors(state: JobState, error: Lost) -> None:
    cause = cause_of(replace(JOB, state=state, reason="because"), started=True)
    assert type(cause) is error
    assert (cause.job_id, cause.host) == ("12", "n1, n2")
    assert "because" in cause.reason


@pytest.mark.parametrize(
    "state", [JobState.PENDING, JobState.RUNNING, JobState.UNKNOWN]
)
def test_a_job_that_is_not_over_is_no_cause(state: JobState) -> None:
    assert cause_of(replace(JOB, state=state), started=True) is None


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (
            "slurmstepd: error: *** JOB 12 CANCELLED AT 17:00 DUE TO TIME LIMIT ***",
            failure.WalltimeReachedError,
        ),
        (
            "slurmstepd: error: *** JOB 12 CANCELLED AT 17:00 DUE TO PREEMPTION ***",
            failure.PreemptedError,
        ),
        (
            "slurmstepd: error: *** JOB 12 CANCELLED DUE TO NODE FAILURE, SEE LOG ***",
            failure.NodeFailedError,
        ),
        (
            "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.batch.",
            failure.OutOfMemoryError,
        ),
        ("slurmstepd: error: Exceeded job memory limit", failure.OutOfMemoryError),
        ("=>> PBS: job killed: mem 9kb exceeded limit 8kb", failure.OutOfMemoryError),
        (
            "=>> PBS: job killed: walltime 61 exceeded limit 60",
            failure.WalltimeReachedError,
        ),
        (
            "TERM_RUNLIMIT: job killed after reaching LSF run time limit.",
            failure.WalltimeReachedError,
        ),
        ("TERM_MEMLIMIT: job killed after reaching", failure.OutOfMemoryError),
    ],
)
@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_what_a_scheduler_printed_says_more_than_the_state(
    tmp_path: Path, line: str, error: Lost, state: JobState
) -> None:
    output = tmp_path / "output"
    output.write_text(f"working\n{line}\n")
    job = replace(JOB, state=state, stdout=str(output))
    cause = cause_of(job, host="n1", started=True)
    assert type(cause) is error
    assert cause.reason == line
    assert cause.host == "n1"
    assert str(cause).splitlines()[-2:] == ["  | working", f"  | {line}"]


@pytest.mark.parametrize(
    ("line", "error", "reason"),
    [
        ("bash: line 3: module: command not found", failure.StartupError, "module: "),
        (
            "Lmod has detected the following error:  These module(s) are unknown",
            *(failure.StartupError, "Lmod"),
        ),
        (
            "ModuleCmd_Load.c(213):ERROR:105: No modulefile for 'conda'",
            *(failure.StartupError, "'conda'"),
        ),
        ("bash: python3.11: command not found", failure.StartupError, "python3.11"),
        (
            "EnvironmentNameNotFound: Could not find agents",
            failure.StartupError,
            "agents",
        ),
        (
            "slurmstepd: error: execve(): /opt/python: No such file or directory",
            *(failure.StartupError, "/opt/python"),
        ),
        (
            "ModuleNotFoundError: No module named 'torch.cuda'",
            *(failure.MissingModuleError, "'torch.cuda'"),
        ),
        (
            "/usr/bin/python3: No module named academy",
            *(failure.MissingModuleError, "'academy'"),
        ),
        (
            "academy.failure.ExchangeUnreachableError: It cannot: no route to host",
            *(failure.ExchangeUnreachableError, "no route to host"),
        ),
        ("nothing of the kind", failure.StartupError, "it ended with status 1"),
    ],
)
def test_a_job_that_ended_before_its_agent_began_says_why(
    tmp_path: Path, line: str, error: Lost, reason: str
) -> None:
    output = tmp_path / "output"
    output.write_text(f"{line}\n")
    cause = cause_of(replace(JOB, stderr=str(output)), started=False)
    assert type(cause) is error
    assert reason in cause.reason
    assert cause.output == line


def test_what_was_printed_before_an_agent_began_is_not_what_it_ended_of(
    tmp_path: Path,
) -> None:
    output = tmp_path / "output"
    output.write_text("bash: module: command not found\n")
    job = replace(JOB, stderr=str(output), exit_code=128 + 9)
    cause = cause_of(job, started=True)
    assert type(cause) is failure.JobFailedError
    assert "signal 9" in cause.reason
    assert "memory" in cause.reason


def test_a_job_that_was_cancelled_because_it_could_never_run_never_started() -> None:
    job = JobInfo("slurm", "12", JobState.CANCELLED, "DependencyNeverSatisfied")
    cause = cause_of(job, started=False)
    assert type(cause) is failure.NeverStartedError
    assert str(cause) == (
        "The agent's job never started in job 12: DependencyNeverSatisfied"
    )


def test_a_job_that_is_about_to_end_tells_its_cause_already(tmp_path: Path) -> None:
    output = tmp_path / "output"
    job = replace(JOB, state=JobState.RUNNING, reason="COMPLETING", stdout=str(output))
    assert cause_of(job, started=True) is None
    output.write_text("slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 17:00 ***\n")
    cause = cause_of(job, host="n1", started=True)
    assert type(cause) is failure.JobCancelledError
    assert cause.output == output.read_text().rstrip()
    # One of its steps may say the same and the job go on.
    assert cause_of(replace(job, reason=""), started=True) is None


def test_who_cancelled_a_job_is_in_the_reason() -> None:
    job = replace(JOB, state=JobState.CANCELLED, reason="cancelled by admin")
    cause = cause_of(job, started=True)
    assert type(cause) is failure.JobCancelledError
    assert cause.reason == "cancelled by admin"


def test_a_job_of_another_scheduler_has_a_cause_too() -> None:
    job = replace(JOB, scheduler="flux")
    assert type(cause_of(job, started=True)) is failure.JobFailedError
    assert cause_of(replace(job, state=JobState.PENDING), started=False) is None
