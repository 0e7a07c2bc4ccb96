"""A batch job as its scheduler describes it, in the same words for all schedulers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class JobState(StrEnum):
    """What has become of a job. The words are Slurm's, which has the most of them."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    UNKNOWN = "UNKNOWN"
    """Its scheduler does not know it any more, or does not answer."""

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, however."""
        return self not in (JobState.PENDING, JobState.RUNNING, JobState.UNKNOWN)


@dataclass(frozen=True)
class JobInfo:
    """What is known about a job; None, or nothing, stands for what is not.

    Attributes:
        scheduler: "slurm", "pbs", "torque", "lsf", "grid_engine" or "local".
        job_id: as the scheduler writes it.
        state: what has become of it.
        reason: why it is in this state, in the scheduler's own words.
        nodes: names of its nodes.
        submitted: when it was submitted; times are aware (they have a time zone).
        started: when it began to run.
        ends: when it ended, or when its walltime will end it.
        exit_code: that of its script; a signal s counts as 128 + s.
        stdout: path of its standard output.
        stderr: path of its standard error.
    """

    scheduler: str
    job_id: str
    state: JobState = JobState.UNKNOWN
    reason: str = ""
    nodes: tuple[str, ...] = ()
    submitted: datetime | None = None
    started: datetime | None = None
    ends: datetime | None = None
    exit_code: int | None = None
    stdout: str | None = None
    stderr: str | None = None


@dataclass(frozen=True)
class Place:
    """Where a process runs: all that is needed to ask about its job later.

    Attributes:
        host: name of the machine.
        pid: of the process.
        scheduler: of the job, as in `JobInfo`; "" outside of any.
        job_id: of the job; "" outside of any.
    """

    host: str
    pid: int
    scheduler: str = ""
    job_id: str = ""
