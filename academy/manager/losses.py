"""Why an agent is gone: what its executor, its job and its output say together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from datetime import datetime, timedelta
from typing import Any, TypeVar

from academy import failure
from academy.executors.base import AgentExecutor
from academy.failure import AgentLostError
from academy.launch import AgentInterruptedError
from academy.scheduler.cause import cause_of
from academy.scheduler.job import JobInfo, JobState, Place
from academy.scheduler.monitor import monitor
from academy.scheduler.output import tail_of

logger = logging.getLogger("academy.manager")

T = TypeVar("T")

PATIENCE = 6.0
"""Seconds that a scheduler has to say what became of a job whose agent is lost.

It may take that long to notice itself that the job is over.
"""
_PAUSE = 0.5

_SKEW = timedelta(seconds=30)
"""What clocks of a scheduler and a login node may differ by."""

_VAGUE = (AgentInterruptedError, BrokenExecutor)
_VAGUE_LOSSES = (AgentLostError, failure.WorkerDiedError)


def is_vague(error: BaseException) -> bool:
    """Whether an error says that an agent was lost, and the cause may be found."""
    return isinstance(error, _VAGUE) or type(error) in _VAGUE_LOSSES


async def explain(
    error: Exception,
    place: Place | None,
    executor: Executor | None,
    future: Future[Any],
    *,
    in_order: bool,
) -> Exception:
    """Return the cause of a loss that an executor has told, as well as it is known.

    Args:
        error: what the executor says.
        place: where the agent was; None if it never came.
        executor: where it was launched.
        future: that of its run.
        in_order: whether the agent could still take its leave.

    Returns:
        An error whose `__cause__` is the executor's, or that one itself. It takes some
        seconds at most.
    """
    if isinstance(error, ModuleNotFoundError) and place is None:
        return await _missing_module(error, executor, future)
    if not is_vague(error):
        return error
    host = "" if place is None else place.host
    try:
        async with asyncio.timeout(PATIENCE):
            job, cause = await _investigate(error, place, executor, future)
            if cause is None and job is not None and place is not None:
                cause = requeued(job, place, in_order=in_order)
    except TimeoutError:
        job, cause = await _last_known(place, executor, future), None
    if cause is None:
        cause = _in_place(error, job, host)
    if cause is None:
        return error
    cause.__cause__ = error
    return cause


async def _investigate(
    error: Exception,
    place: Place | None,
    executor: Executor | None,
    future: Future[Any],
) -> tuple[JobInfo | None, AgentLostError | None]:
    host = "" if place is None else place.host
    while True:
        # What was known a moment ago, when the agent ran or waited, is no answer.
        job = await job_of(place, executor, future, max_age=0)
        if job is None or not job.job_id:
            return job, None
        cause = await in_thread(
            lambda job=job: cause_of(  # type: ignore[misc]  # a lambda's default
                job, host=host, started=place is not None, error=error
            )
        )
        # Only a job that seems to run may be one whose end is not known yet.
        if cause is not None or job.state is not JobState.RUNNING:
            return job, cause
        await asyncio.sleep(_PAUSE)


async def _last_known(
    place: Place | None, executor: Executor | None, future: Future[Any]
) -> JobInfo | None:
    try:
        async with asyncio.timeout(1):
            return await job_of(place, executor, future, max_age=60.0)
    except TimeoutError:
        return None


def _in_place(
    error: Exception, job: JobInfo | None, host: str
) -> AgentLostError | None:
    """Return a loss of unknown cause with what is known of where it was."""
    if isinstance(error, AgentLostError):
        job_id = error.job_id or ("" if job is None else job.job_id)
        output = error.output or ("" if job is None else tail_of(job))
        return type(error)(job_id, error.host or host, error.reason, output)
    if not isinstance(error, BrokenExecutor) or job is None:
        return None
    if job.state is not JobState.UNKNOWN:
        return failure.WorkerDiedError(job.job_id, host, str(error), tail_of(job))
    return None


async def _missing_module(
    error: ModuleNotFoundError, executor: Executor | None, future: Future[Any]
) -> Exception:
    """Name the job of a worker that lacks what every agent needs."""
    if isinstance(error, AgentLostError):
        return error
    job = await _last_known(None, executor, future)
    if job is None:
        return error
    cause = failure.MissingModuleError(
        job.job_id, ", ".join(job.nodes[:1]), str(error), tail_of(job)
    )
    cause.__cause__ = error
    return cause


# --- jobs


async def job_of(
    place: Place | None,
    executor: Executor | None,
    future: Future[Any] | None,
    max_age: float = 5.0,
) -> JobInfo | None:
    """Describe the job that an agent is in, or waits for.

    Args:
        place: where the agent is or was.
        executor: where it was launched.
        future: that of its run.
        max_age: seconds that the answer may be old.

    Returns:
        None if there is none, or nobody can tell.
    """
    if place is not None and place.job_id:
        scheduler, job_id = place.scheduler, place.job_id
        try:
            return await in_thread(lambda: monitor().info(scheduler, job_id, max_age))
        except ValueError:  # nobody knows how to ask this one
            return JobInfo(scheduler, job_id)
    if future is None or not tells_jobs(executor):
        return None
    assert isinstance(executor, AgentExecutor)
    return await in_thread(lambda: executor.job(future))


def tells_jobs(executor: Executor | None) -> bool:
    """Whether an executor knows the jobs of its tasks."""
    if not isinstance(executor, AgentExecutor):
        return False
    return type(executor).job is not AgentExecutor.job


def requeued(
    job: JobInfo, place: Place, *, in_order: bool, seen: datetime | None = None
) -> AgentLostError | None:
    """Return the loss of an agent whose job is to begin, or has begun, once more.

    Schedulers do so with jobs whose nodes have failed, and with those that make room
    for others; and only these have the time to end in order.

    Args:
        job: which the agent was in.
        place: where it was.
        in_order: whether the agent could still take its leave.
        seen: when it was first seen there.
    """
    again = job.state is JobState.RUNNING and None not in (job.started, seen)
    if again:
        assert job.started is not None
        assert seen is not None
        again = job.started > seen + _SKEW
    if job.state is not JobState.PENDING and not again:
        return None
    said = f" ({job.reason})" if job.reason else ""
    reason = f"its scheduler has put the job back into the queue{said}"
    kind = failure.PreemptedError if in_order else failure.NodeFailedError
    return kind(job.job_id, place.host, reason, tail_of(job))


def resumes(executor: Executor | None) -> bool:
    """Whether an executor's task begins anew in a job that is requeued."""
    return isinstance(executor, AgentExecutor) and executor.resumes_requeued


async def in_thread(work: Callable[[], T]) -> T:
    """Run what waits for a scheduler's command, in a thread of its own.

    Neither the event loop nor the end of the program waits for it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]  # T may be None
        else:
            done.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as problem:
            error = problem
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=run, name="academy-ask", daemon=True).start()
    return await done
