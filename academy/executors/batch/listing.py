"""What is in a directory of jobs, and what their schedulers say of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from academy.executors.batch.records import JobDirectory, JobRecord, Task
from academy.launch.task import remove_spec, was_success, withdraw_spec
from academy.scheduler.base import get_scheduler
from academy.scheduler.command import SchedulerError
from academy.scheduler.job import JobInfo, JobState


@dataclass(frozen=True)
class ListedTask:
    """One task of a job, as `academy ps` shows it.

    Attributes:
        id: names it, for `BatchExecutor.attach` and `academy cancel`.
        name: of the agent; "" if it has none.
        agent_id: the UUID of the agent; "" if it is none.
        job: its job, with the task's own state and outputs.
        directory: its files.
    """

    id: str
    name: str
    agent_id: str
    job: JobInfo
    directory: Path

    @property
    def state(self) -> JobState:
        """What has become of it."""
        return self.job.state


def with_outputs(info: JobInfo, record: JobRecord, task: Task) -> JobInfo:
    """Return what is known of a job, with the outputs of one task."""
    stdout, stderr = record.outputs(task)
    return replace(
        info,
        submitted=info.submitted or record.submitted,
        stdout=str(stdout) if stdout else info.stdout,
        stderr=str(stderr) if stderr else info.stderr,
    )


def list_tasks(directory: JobDirectory, *, ended: bool = True) -> list[ListedTask]:
    """Return the tasks of a directory, the latest last; asks each scheduler once.

    Args:
        directory: where they are.
        ended: whether to return those that are over as well.
    """
    # The files of a job that is known to be over need not be read to leave it out.
    records = [r for r in directory.records() if ended or r.end is None]
    ids: dict[str, list[str]] = {}
    for record in records:
        if record.end is None and (job_id := record.known_job_id()):
            ids.setdefault(record.scheduler, []).append(job_id)
    found = {scheduler: _ask(scheduler, jobs) for scheduler, jobs in ids.items()}
    listed = []
    for record in records:
        job_id = record.known_job_id()
        unknown = JobInfo(record.scheduler, job_id)
        info = record.end or found.get(record.scheduler, {}).get(job_id) or unknown
        if record.end is None and info.state.is_over:
            record.ended(info)
            for task in record.tasks:
                remove_spec(task.directory)
        listed += [_listed(record, task, info) for task in record.tasks]
    return [task for task in listed if ended or not task.state.is_over]


def _ask(scheduler: str, ids: list[str]) -> dict[str, JobInfo]:
    try:
        return get_scheduler(scheduler).jobs(ids)
    except SchedulerError as error:
        return {job: JobInfo(scheduler, job, reason=str(error)) for job in ids}


def _listed(record: JobRecord, task: Task, info: JobInfo) -> ListedTask:
    info = with_outputs(info, record, task)
    place = task.place()
    if place:
        host, started = str(place["host"]), datetime.fromisoformat(place["started"])
        info = replace(info, nodes=(host,), started=started)
    success = was_success(task.directory)
    if success is not None:
        state = JobState.COMPLETED if success else JobState.FAILED
        if not info.state.is_over or info.state is JobState.COMPLETED:
            info = replace(info, state=state)
    elif task.has_ended or info.state is JobState.COMPLETED:
        # Its script may end well without it, but an agent that does leaves its outcome.
        info = replace(info, state=JobState.FAILED)
    return ListedTask(task.id, task.name, task.uid, info, task.directory)


def cancel_job(directory: JobDirectory, job: str) -> JobRecord:
    """Cancel a job by its name in the directory, or by its scheduler's id.

    Raises:
        ValueError: There is none.
        SchedulerError: It cannot be cancelled.
    """
    record = directory.find(job.partition("/")[0])
    if record is None:
        raise ValueError(
            f"There is no job {job!r} in {directory.path}; academy ps shows them."
        )
    for task in record.tasks:
        withdraw_spec(task.directory)
    if job_id := record.known_job_id():
        get_scheduler(record.scheduler).cancel([job_id])
    return record
