"""Runs that have not begun: what they wait for, and which of them never will begin."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any

from academy.executors.base import AgentExecutor
from academy.manager import losses
from academy.scheduler.cause import cause_of
from academy.scheduler.job import JobInfo, JobState

if TYPE_CHECKING:
    from academy.manager.watching import Run

logger = logging.getLogger("academy.manager")

FIRST_LOOK = 2.0
"""Seconds after which somebody asks for what a run waits."""

LONGEST_PAUSE = 20.0
"""Seconds between two such questions, when there is no news."""

LOOKS = {JobState.PENDING: 2}
"""How often in a row a job has to look hopeless; schedulers change their minds."""
_LOOKS_OTHERWISE = 3


class Queues:
    """Looks after the runs that have not begun, all of one executor together."""

    def __init__(self) -> None:
        self._queues: dict[Executor, _Queue] = {}
        self._cancelling: set[asyncio.Task[None]] = set()

    def add(self, run: Run) -> None:
        """Look after a run until it begins or ends."""
        if not losses.tells_jobs(run.executor):
            return
        queue = self._queues.get(run.executor)
        if queue is None:
            queue = self._queues[run.executor] = _Queue(run.executor)
        queue.add(run)

    def discard(self, run: Run) -> None:
        """Let go of a run."""
        queue = self._queues.get(run.executor)
        if queue is not None:
            queue.runs.pop(run, None)

    def cancel(self, executor: Executor, future: Future[Any]) -> None:
        """Have an executor end a task that is of no use any more."""
        task = asyncio.create_task(_cancel(executor, future))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    async def close(self) -> None:
        """Ask nobody any more; what is being cancelled has been when this returns."""
        tasks = {q.task for q in self._queues.values() if q.task is not None}
        for task in tasks:
            task.cancel()
        if tasks := tasks | self._cancelling:
            await asyncio.wait(tasks)


async def _cancel(executor: Executor, future: Future[Any]) -> None:
    if not isinstance(executor, AgentExecutor):
        future.cancel()
        return
    try:
        await losses.in_thread(lambda: executor.cancel(future))
    except Exception as error:
        logger.warning("%r could not cancel a task: %s", executor, error)


class _Queue:
    """The runs of one executor that have not begun, and how each looked last."""

    def __init__(self, executor: Executor) -> None:
        self.runs: dict[Run, _Look] = {}
        self.task: asyncio.Task[None] | None = None
        self._executor = executor
        self._new = asyncio.Event()

    def add(self, run: Run) -> None:
        self.runs[run] = _Look()
        self._new.set()
        if self.task is None:
            self.task = asyncio.create_task(self._look_after())

    async def _look_after(self) -> None:
        try:
            pause = FIRST_LOOK
            while self.runs:
                if await self._pause(pause):
                    pause = FIRST_LOOK
                    continue
                news = await self._look()
                pause = FIRST_LOOK if news else min(pause * 1.5, LONGEST_PAUSE)
        finally:
            self.task = None

    async def _pause(self, seconds: float) -> bool:
        """Wait; tell if a run has come meanwhile, which makes a long wait short."""
        self._new.clear()
        if seconds <= FIRST_LOOK:
            await asyncio.sleep(seconds)
            return False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._new.wait(), seconds)
        return self._new.is_set()

    async def _look(self) -> bool:
        """Ask about all of them; tell if there is news."""
        executor, runs = self._executor, list(self.runs)
        assert isinstance(executor, AgentExecutor)

        def ask() -> list[JobInfo | None]:
            return [executor.job(run.future) for run in runs]

        try:
            jobs = await losses.in_thread(ask)
        except Exception as error:
            logger.warning("%r does not tell about jobs: %s", executor, error)
            return False
        news = False
        for run, job in zip(runs, jobs, strict=True):
            if job is not None and run in self.runs:
                news = await self._learn(run, job) or news
        return news

    async def _learn(self, run: Run, job: JobInfo) -> bool:
        look = self.runs[run]
        news = look.is_new(job)
        if news and job.state is JobState.PENDING:
            reason = job.reason or "no reason given"
            logger.info("%s waits in job %s: %s", run.agent_id, job.job_id, reason)
        if look.count < LOOKS.get(job.state, _LOOKS_OTHERWISE):
            return news
        cause = await losses.in_thread(lambda: cause_of(job, started=False))
        if cause is not None and run in self.runs:
            logger.warning("%s will not start: %s", run.agent_id, cause)
            run.lose(cause)
        return news


class _Look:
    """How a run's job looked last, and how often in a row."""

    def __init__(self) -> None:
        self.count = 0
        self._last: tuple[str, JobState, str] | None = None

    def is_new(self, job: JobInfo) -> bool:
        looks = (job.job_id, job.state, job.reason)
        if looks == self._last:
            self.count += 1
            return False
        self._last = looks
        self.count = 1
        return True
