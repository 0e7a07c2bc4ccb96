"""The thread that waits for the ends of an executor's jobs."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable

from academy.executors.batch.live import LiveJob
from academy.scheduler.base import get_scheduler
from academy.scheduler.command import SchedulerError
from academy.scheduler.job import JobInfo
from academy.scheduler.monitor import monitor

logger = logging.getLogger("academy.executors.batch")

SHORTEST = 0.05
"""Seconds between two looks at files after there was news."""

LONGEST = 1.0
"""Seconds between two looks at files when there is none."""

LINGER = 10.0
"""Seconds that a job has to be over when all in it has ended."""

SHARE = 0.1
"""The part of its time that the thread may spend looking, where files are slow."""


class Watch:
    """Follows jobs until all their futures are done.

    Its thread is there as long as there is something to follow.

    Args:
        ended: called for each job that has been followed to its end.
    """

    def __init__(self, ended: Callable[[LiveJob], None]) -> None:
        self._ended = ended
        self._changed = threading.Condition()
        self._jobs: dict[LiveJob, Callable[[], None] | None] = {}
        self._thread: threading.Thread | None = None
        self._news = False

    def add(self, job: LiveJob) -> None:
        """Follow a job that its scheduler has."""
        unwatch = self._ask_scheduler(job)
        with self._changed:
            self._jobs[job] = unwatch
            self._wake()
            if self._thread is None:
                # A program that forgets to shut down may end; its jobs go on.
                self._thread = threading.Thread(
                    target=self._follow, name="academy-batch", daemon=True
                )
                self._thread.start()

    def _ask_scheduler(self, job: LiveJob) -> Callable[[], None] | None:
        job_id = job.record.known_job_id()
        if not job_id:  # who submitted it was killed at that moment
            return None
        told = functools.partial(self._told, job)
        return monitor().watch(job.record.scheduler, job_id, told)

    def wake(self) -> None:
        """Look at once."""
        with self._changed:
            self._wake()

    def _wake(self) -> None:
        self._news = True
        self._changed.notify_all()

    def jobs(self) -> list[LiveJob]:
        """Return the jobs that are followed."""
        with self._changed:
            return list(self._jobs)

    def join(self) -> None:
        """Wait until there is nothing to follow."""
        with self._changed:
            thread = self._thread
        pause = SHORTEST
        while thread is not None and thread.is_alive():
            # What is left is to see that jobs, which have nothing to do, are over.
            for job in self.jobs():
                if job.is_done:
                    _ask_about(job)
            thread.join(pause)
            pause = min(1.5 * pause, LONGEST)

    def _told(self, job: LiveJob, info: JobInfo) -> None:
        job.learn(info)
        self.wake()

    def _follow(self) -> None:
        interval = SHORTEST
        while self._wait(interval):
            begun = time.monotonic()
            news = False
            for job in self.jobs():
                news = self._look(job) or news
            took = time.monotonic() - begun
            interval = SHORTEST if news else min(1.5 * interval, LONGEST)
            interval = max(interval, took / SHARE)

    def _wait(self, interval: float) -> bool:
        """Wait for news or the time; False if there is nothing to follow any more."""
        with self._changed:
            if not self._jobs:
                self._thread = None
                return False
            if not self._news:
                self._changed.wait(interval)
            self._news = False
            return True

    def _look(self, job: LiveJob) -> bool:
        try:
            news = job.look()
            if not job.cancel_wanted and job.is_useless:
                cancel([job])
            if (error := job.hopeless()) is not None:
                cancel([job])
                job.fail(error)
            if job.waits_for_cause:
                _ask_about(job)
        except Exception as error:  # the futures of other jobs must go on
            logger.exception("job %s cannot be followed", job.record.id)
            job.fail(error)
            news = True
        if job.is_done and job.has_left(LINGER):
            with self._changed:
                unwatch = self._jobs.pop(job)
            if unwatch is not None:
                unwatch()
            self._ended(job)
        elif job.is_done and news:
            _ask_about(job)
        elif self._jobs[job] is None:
            self._jobs[job] = self._ask_scheduler(job)
        return news


def _ask_about(job: LiveJob) -> None:
    monitor().look_now(job.record.scheduler, job.record.known_job_id())


def cancel(jobs: Iterable[LiveJob]) -> bool:
    """Cancel jobs in their scheduler; tell if that worked."""
    worked = True
    by_scheduler: dict[str, list[str]] = {}
    for job in jobs:
        job.cancel_wanted = True
        if job_id := job.record.known_job_id():
            by_scheduler.setdefault(job.record.scheduler, []).append(job_id)
    for scheduler, ids in by_scheduler.items():
        try:
            get_scheduler(scheduler).cancel(ids)
        except SchedulerError as error:
            logger.error("jobs %s could not be cancelled: %s", ", ".join(ids), error)
            worked = False
        for job_id in ids:
            monitor().look_now(scheduler, job_id)
    return worked
