"""What Parsl's errors mean for an agent, and which job of a pool it is in."""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

from parsl.executors.errors import BadStateException
from parsl.executors.high_throughput.errors import (
    ManagerLost,
    VersionMismatch,
    WorkerLost,
)
from parsl.jobs.states import JobState as ParslState

from academy import failure
from academy.executors.parsl.engine import has_script
from academy.executors.providers import scheduler_of
from academy.scheduler.cause import cause_of
from academy.scheduler.job import JobInfo, JobState
from academy.scheduler.monitor import monitor
from academy.scheduler.output import tail_of

# What Parsl writes for a block that could not be submitted.
_NOT_SUBMITTED = re.compile(r"Failed to start block \d+: (.*)", re.DOTALL)


class InterchangeLost(BrokenExecutor):  # as Parsl's ManagerLost
    """The process between a Parsl executor and its workers has ended."""


def translate(
    error: BaseException,
    engine: Any,
    answer: Future[Any],
    use: Callable[[BaseException], None],
) -> None:
    """Find the cause of a loss, and have it used; other errors as they are.

    It is used at once, or if the scheduler is asked, by a thread that waits for it.
    """
    if isinstance(error, WorkerLost | ManagerLost):
        use(_caused(_lost(error, engine, answer), error))
    elif isinstance(error, BadStateException):
        cause = engine.executor_exception
        if isinstance(cause, InterchangeLost):
            use(_caused(failure.AgentLostError(reason=str(cause)), error))
        elif isinstance(cause, VersionMismatch):
            use(_caused(_mismatch(cause, engine, answer), error))
        else:
            Thread(
                target=lambda: use(_caused(_failed(engine, answer), error)),
                name=f"academy-parsl-{engine.label}-cause",
                daemon=True,
            ).start()
    else:
        use(error)


def _caused(loss: BaseException, error: BaseException) -> BaseException:
    loss.__cause__ = error
    return loss


def _lost(
    error: WorkerLost | ManagerLost, engine: Any, answer: Future[Any]
) -> failure.AgentLostError:
    if isinstance(error, ManagerLost):
        manager = error.manager_id.decode()
        job = _job_of(engine, _block_of_manager(engine, manager) or _newest(engine))
        kind = failure.AgentLostError
        reason = (
            f"its workers have not been heard of for {engine.heartbeat_threshold} s; "
            "their node or their job may be gone"
        )
    else:
        job = located(engine, answer)
        kind = failure.WorkerDiedError
        reason = f"Parsl lost its worker {error.worker_id}"
    job_id = "" if job is None else job.job_id
    output = "" if job is None else tail_of(job)
    return kind(job_id, error.hostname, reason, output)


def _mismatch(
    error: VersionMismatch, engine: Any, answer: Future[Any]
) -> failure.StartupError:
    job = located(engine, answer)
    reason = (
        f"its workers have {_versions(error.manager_version)}, and this program "
        f"{_versions(error.interchange_version)}; let worker_init activate the same"
    )
    return failure.StartupError("" if job is None else job.job_id, "", reason)


def _versions(text: str) -> str:
    return re.sub(r"py\.v=(\S+)\s+parsl\.v=(\S+)", r"Python \1 and Parsl \2", text)


def _failed(engine: Any, answer: Future[Any]) -> failure.AgentLostError:
    """Explain why Parsl gave an executor up: its blocks have failed."""
    blocks = dict(engine.status_facade)
    submitted = engine.blocks_to_job_id
    refused = [
        _NOT_SUBMITTED.sub(r"\1", state.message or "")
        for block, state in blocks.items()
        if block not in submitted
    ]
    failed = [block for block in blocks if block in submitted]
    if not failed:
        reason = refused[-1].strip() if refused else str(engine.executor_exception)
        return failure.NeverStartedError(reason=reason)
    job = _job_of(engine, failed[-1])
    assert job is not None
    # Workers of this block have never connected.
    started = blocks[failed[-1]].state is not ParslState.MISSING
    info = _asked(job)
    if not info.state.is_over:
        info = replace(info, state=JobState.FAILED, reason=job.reason)
    return cause_of(info, started=started) or failure.JobFailedError(job.job_id)


# --- jobs


def located(engine: Any, answer: Future[Any] | None) -> JobInfo | None:
    """Return the job that a task is in, as far as we know without asking.

    If it does not run yet, or nobody can tell where, that is the newest of the pool.
    """
    if not hasattr(engine, "blocks_to_job_id"):
        return None
    return _job_of(engine, _block_of_task(engine, answer) or _newest(engine))


def asked(engine: Any, answer: Future[Any] | None) -> JobInfo | None:
    """Return the job that a task is in, or waits for, as its scheduler knows it."""
    job = located(engine, answer)
    return None if job is None else _asked(job)


def _asked(job: JobInfo) -> JobInfo:
    if not job.scheduler:
        return job
    info = monitor().info(job.scheduler, job.job_id)
    return replace(
        info, stdout=info.stdout or job.stdout, stderr=info.stderr or job.stderr
    )


def _newest(engine: Any) -> str | None:
    blocks = list(engine.blocks_to_job_id)
    state = engine.status_facade
    alive = [block for block in blocks if block in state and not state[block].terminal]
    return str((alive or blocks)[-1]) if blocks else None


def _job_of(engine: Any, block: str | None) -> JobInfo | None:
    job_id = engine.blocks_to_job_id.get(block)
    if job_id is None:
        return None
    noted = getattr(engine.provider, "resources", {}).get(job_id, {})
    out, err = noted.get("job_stdout_path"), noted.get("job_stderr_path")
    if "script_path" in noted:  # As Parsl's LocalProvider has it.
        out, err = f"{noted['script_path']}.out", f"{noted['script_path']}.err"
    known = has_script(engine.provider)
    scheduler = scheduler_of(engine.provider) if known else ""
    return JobInfo(scheduler, str(job_id), stdout=out, stderr=err)


def _block_of_manager(engine: Any, manager: str) -> str | None:
    """Find the block of a worker pool by the directory of its logs."""
    logs = glob.escape(str(engine.worker_logdir))
    for path in glob.iglob(f"{logs}/block-*/{glob.escape(manager)}"):
        return Path(path).parent.name.removeprefix("block-")
    return None


def _block_of_task(engine: Any, answer: Future[Any] | None) -> str | None:
    """Find the block in which a worker has taken a task, by the logs of workers.

    Parsl does not tell. Where workers write no such logs, there is nothing to find.
    """
    if len(engine.blocks_to_job_id) < 2:
        return None
    record: Any = getattr(answer, "task_record", None) or {}
    task = getattr(record.get("exec_fu"), "parsl_executor_task_id", None)
    if task is None:
        return None
    line = re.compile(rf"Received executor task {task}\s*$", re.MULTILINE)
    logs = glob.escape(str(engine.worker_logdir))
    for path in glob.iglob(f"{logs}/block-*/*/worker_*.log"):
        with contextlib.suppress(OSError):
            if line.search(Path(path).read_text(errors="replace")):
                return Path(path).parents[1].name.removeprefix("block-")
    return None
