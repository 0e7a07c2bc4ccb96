"""Following many batch jobs with few questions to their schedulers."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from academy.scheduler.base import get_scheduler
from academy.scheduler.command import SchedulerError
from academy.scheduler.job import JobInfo, JobState

logger = logging.getLogger(__name__)

Callback = Callable[[JobInfo], None]

# What nobody has asked about for so many seconds is forgotten.
_FORGET = 600.0


@dataclass
class _Job:
    """What is known of one job."""

    info: JobInfo
    asked: float = -float("inf")
    """When its scheduler last answered, by the monotonic clock."""
    misses: int = 0
    """How often in a row its scheduler did not know it, or did not answer."""
    used: float = 0.0
    """When somebody last wanted to know it."""
    watchers: dict[object, Callback] = field(default_factory=dict)
    told: dict[object, tuple[JobState, str]] = field(default_factory=dict)


class _Queue:
    """What is known of one scheduler's jobs, and when to ask it again."""

    def __init__(self, first: float) -> None:
        self.jobs: dict[str, _Job] = {}
        self.asking = threading.Lock()
        self.interval = first
        self.due = 0.0
        self.hints = 0
        self.answers = True

    @property
    def watched(self) -> list[str]:
        return [name for name, job in self.jobs.items() if job.watchers]


class JobMonitor:
    """Tells what becomes of batch jobs, whoever asks and however often.

    All questions that come together are one command for each scheduler. Its methods
    may be called by any thread. While jobs are watched, one thread asks about them:
    often at first and after a hint or a change, and less and less in between. Without
    anything to watch there is no thread.

    A scheduler that does not answer, or that does not know a job for once, changes
    nothing. Only after several times in a row is the state UNKNOWN, which is not an
    end: it is asked again and again.

    Args:
        first: seconds between the first questions.
        longest: seconds between questions about jobs of which there is no news.
        misses: how many times in a row make a job UNKNOWN.
    """

    def __init__(
        self, *, first: float = 1.0, longest: float = 20.0, misses: int = 3
    ) -> None:
        self._first = first
        self._longest = longest
        self._misses = misses
        self._changed = threading.Condition()
        self._queues: dict[str, _Queue] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def info(self, scheduler: str, job_id: str, max_age: float = 5.0) -> JobInfo:
        """Describe a job; may take as long as a command of its scheduler.

        Args:
            scheduler: its name, as in `JobInfo.scheduler`.
            job_id: as in `JobInfo`.
            max_age: seconds since the answer that is good enough. What has been told
                of a job that is over stays good.

        Returns:
            The last that was known if the scheduler does not answer; if that is
            nothing, its state is UNKNOWN and the reason says why.

        Raises:
            ValueError: There is no such scheduler.
        """
        get_scheduler(scheduler)
        with self._changed:
            queue = self._queue(scheduler)
            job = self._job(queue, scheduler, job_id)
            job.used = time.monotonic()
        asked_for = time.monotonic() - max_age
        if not self._is_fresh(job, asked_for):
            with queue.asking:  # Whoever waits here finds the answer afterwards.
                if not self._is_fresh(job, asked_for):
                    self._ask(scheduler, queue)
        return job.info

    def watch(
        self, scheduler: str, job_id: str, callback: Callback
    ) -> Callable[[], None]:
        """Call back whenever the state of a job, or its reason, has changed.

        The first call is when it is first known, the last one when it is over. They
        come from the monitor's thread, so a callback returns soon; in an event loop let
        it be `call_soon_threadsafe`.

        Returns:
            Ends the calls; may be called at any time and more than once. One call may
            be on its way then.

        Raises:
            ValueError: There is no such scheduler.
            RuntimeError: The monitor is closed.
        """
        get_scheduler(scheduler)
        key = object()
        with self._changed:
            if self._closed:
                raise RuntimeError("the monitor of jobs is closed")
            queue = self._queue(scheduler)
            self._job(queue, scheduler, job_id).watchers[key] = callback
            self._hurry(queue)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._follow, name="academy-jobs", daemon=True
                )
                self._thread.start()

        def unwatch() -> None:
            with self._changed:
                job = queue.jobs.get(job_id)
                if job is not None:
                    job.watchers.pop(key, None)
                    job.told.pop(key, None)
                self._changed.notify_all()

        return unwatch

    def look_now(self, scheduler: str, job_id: str) -> None:
        """Give a hint that something may have happened to a job that is watched."""
        with self._changed:
            queue = self._queues.get(scheduler)
            if queue is not None and job_id in queue.jobs:
                self._hurry(queue)

    def close(self) -> None:
        """End all calls back; `info` goes on."""
        with self._changed:
            self._closed = True
            thread = self._thread
            for queue in self._queues.values():
                for job in queue.jobs.values():
                    job.watchers.clear()
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # --- under the lock

    def _queue(self, scheduler: str) -> _Queue:
        return self._queues.setdefault(scheduler, _Queue(self._first))

    def _job(self, queue: _Queue, scheduler: str, job_id: str) -> _Job:
        if job_id not in queue.jobs:
            queue.jobs[job_id] = _Job(JobInfo(scheduler, job_id))
        return queue.jobs[job_id]

    def _hurry(self, queue: _Queue) -> None:
        queue.hints += 1
        queue.interval = self._first
        # Several hints that come together are worth one question.
        queue.due = min(queue.due, time.monotonic() + 0.1 * self._first)
        self._changed.notify_all()

    def _wanted(self, queue: _Queue) -> list[str]:
        """Return what to ask about, and forget what nobody wants to know."""
        now = time.monotonic()
        for name, job in list(queue.jobs.items()):
            if not job.watchers and now - job.used > _FORGET:
                del queue.jobs[name]
        return [
            name
            for name, job in queue.jobs.items()
            if not job.info.state.is_over and (job.watchers or now - job.used < 60.0)
        ]

    # --- without the lock

    def _is_fresh(self, job: _Job, asked_for: float) -> bool:
        return job.info.state.is_over or job.asked >= asked_for

    def _ask(self, scheduler: str, queue: _Queue) -> bool:
        """Ask about all jobs that somebody wants to know; tell if there is news."""
        with self._changed:
            wanted = self._wanted(queue)
        now = time.monotonic()
        try:
            found = get_scheduler(scheduler).jobs(wanted)
        except SchedulerError as error:
            level = logging.WARNING if queue.answers else logging.DEBUG
            logger.log(level, "cannot ask %s about jobs: %s", scheduler, error)
            queue.answers = False
            reason = f"{scheduler} does not answer: {error}"
            found = {name: JobInfo(scheduler, name, reason=reason) for name in wanted}
        else:
            queue.answers = True
        news = False
        with self._changed:
            for name, info in found.items():
                if (job := queue.jobs.get(name)) is not None:
                    news = self._learn(job, info, now) or news
        return news and queue.answers

    def _learn(self, job: _Job, info: JobInfo, now: float) -> bool:
        """Take what a scheduler said; tell if it is worth asking again soon."""
        job.asked = now
        before = job.info
        job.misses = job.misses + 1 if info.state is JobState.UNKNOWN else 0
        if 0 < job.misses < self._misses and before.state is not JobState.UNKNOWN:
            return True
        # History knows less than the queue did.
        job.info = replace(
            info,
            nodes=info.nodes or before.nodes,
            submitted=before.submitted or info.submitted,
            started=info.started or before.started,
            stdout=info.stdout or before.stdout,
            stderr=info.stderr or before.stderr,
        )
        return (before.state, before.reason) != (info.state, info.reason)

    # --- the thread

    def _follow(self) -> None:
        while (next_up := self._next()) is not None:
            scheduler, queue = next_up
            hints = queue.hints
            with queue.asking:
                news = self._ask(scheduler, queue)
            self._tell(queue)
            with self._changed:
                if queue.hints != hints:
                    continue  # It came too late for this answer.
                if news:
                    queue.interval = self._first
                queue.due = time.monotonic() + queue.interval
                queue.interval = min(1.5 * queue.interval, self._longest)

    def _next(self) -> tuple[str, _Queue] | None:
        """Wait until a scheduler is to be asked; None if nothing is watched."""
        with self._changed:
            while True:
                watched = [
                    (queue.due, name)
                    for name, queue in self._queues.items()
                    if queue.watched
                ]
                if not watched:
                    self._thread = None
                    return None
                due, name = min(watched)
                wait = due - time.monotonic()
                if wait <= 0:
                    return name, self._queues[name]
                self._changed.wait(wait)

    def _tell(self, queue: _Queue) -> None:
        calls: list[tuple[Callback, JobInfo]] = []
        with self._changed:
            for job in queue.jobs.values():
                if job.info.state is JobState.UNKNOWN and job.misses < self._misses:
                    continue
                said = (job.info.state, job.info.reason)
                for key, callback in list(job.watchers.items()):
                    if job.told.get(key) != said:
                        job.told[key] = said
                        calls.append((callback, job.info))
                if job.info.state.is_over:
                    job.used = time.monotonic()
                    job.watchers.clear()
                    job.told.clear()
        for callback, info in calls:
            try:
                callback(info)
            except Exception:  # One that fails must not keep others from being told.
                logger.exception("a callback for job %s failed", info.job_id)


_monitor = JobMonitor()


def monitor() -> JobMonitor:
    """Return the monitor that all of this process shares."""
    return _monitor


def _forked() -> None:
    # The thread is the parent's, and so may be whatever lock is held.
    global _monitor
    _monitor = JobMonitor()


os.register_at_fork(after_in_child=_forked)
