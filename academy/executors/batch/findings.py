"""Why a task has no outcome, from all that is known of its job."""

from __future__ import annotations

from dataclasses import dataclass, replace

from academy.executors.batch.listing import with_outputs
from academy.executors.batch.records import JobRecord, Task
from academy.failure import (
    AgentLostError,
    JobCancelledError,
    JobFailedError,
    NeverStartedError,
    WorkerDiedError,
)
from academy.launch.task import STATUS
from academy.scheduler.cause import cause_of
from academy.scheduler.job import JobInfo, JobState
from academy.scheduler.output import tail_of


def hopeless(job: JobInfo) -> NeverStartedError | None:
    """Return why a job will never run, if that is so."""
    if job.state is not JobState.PENDING:
        return None
    cause = cause_of(job, started=False)
    return cause if isinstance(cause, NeverStartedError) else None


@dataclass(frozen=True)
class Findings:
    """What is known when a task ends that has not told how.

    Attributes:
        record: of its job.
        task: itself.
        job: what the scheduler said last, if anything.
        cancelled: whether this program has cancelled the job.
    """

    record: JobRecord
    task: Task
    job: JobInfo | None
    cancelled: bool

    def _described(self) -> JobInfo:
        job = self.job or JobInfo(self.record.scheduler, self.record.known_job_id())
        return with_outputs(job, self.record, self.task)

    def lost(self, error: Exception | None = None) -> AgentLostError:
        """Return the error for a job that is over."""
        job, place = self._described(), self.task.place()
        host = str(place.get("host", ""))
        cause = None
        if job.state.is_over:
            cause = cause_of(job, host=host, started=bool(place), error=error)
        if cause is None:
            reason = f"{job.scheduler} does not know its job any more"
            return AgentLostError(job.job_id, host, reason, tail_of(job))
        # Some schedulers do not tell our own doing from a failure.
        if self.cancelled and type(cause) is JobFailedError:
            return _as(JobCancelledError, cause)
        return cause

    def died(self) -> AgentLostError:
        """Return the error for a process that is gone though its job goes on."""
        try:
            status = int((self.task.directory / STATUS).read_text())
        except (OSError, ValueError):
            status = 1
        job = replace(
            self._described(), state=JobState.FAILED, exit_code=status, reason=""
        )
        cause = replace(self, job=job).lost()
        if isinstance(cause, JobFailedError | JobCancelledError):
            return _as(WorkerDiedError, cause)
        return cause

    def interruption(self, error: Exception) -> Exception:
        """Return why an agent got the signal of which it ended, if anybody knows."""
        cause = self.lost(error)
        if type(cause) in (AgentLostError, JobFailedError):
            return error
        cause.__cause__ = error
        return cause

    def removed(self) -> AgentLostError:
        """Return the error for a task whose directory is not there any more."""
        reason = f"{self.task.directory} was removed"
        return JobFailedError(self.record.known_job_id(), reason=reason)


def _as(kind: type[AgentLostError], cause: AgentLostError) -> AgentLostError:
    return kind(cause.job_id, cause.host, cause.reason, cause.output)
