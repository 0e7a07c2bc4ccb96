"""A job whose end somebody waits for."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from typing import Any

from academy.executors.batch.findings import Findings, hopeless
from academy.executors.batch.records import JobRecord, Task
from academy.executors.batch.script import remove_environment
from academy.failure import NeverStartedError
from academy.launch import AgentInterruptedError
from academy.launch.task import (
    OUTCOME,
    SPEC,
    STATUS,
    Outcome,
    read_outcome,
    remove_spec,
    withdraw_spec,
    write_spec,
)
from academy.scheduler.job import JobInfo, JobState

logger = logging.getLogger("academy.executors.batch")

LAST_WORDS = 10.0
"""Seconds that a job has to end, for its scheduler to say why, once a signal has."""

LATE_FILES = 1.0
"""Seconds that a file may take to be seen here, when its job is known to be over."""

FORGOTTEN_AFTER = 60.0
"""Seconds since its submission after which a job that is unknown is lost."""


class BatchFuture(Future[Any]):
    """The end of one task. Cancelling it takes it back, if its job has not begun it."""

    def __init__(self, job: LiveJob, number: int) -> None:
        super().__init__()
        self.job = job
        self.number = number

    def cancel(self) -> bool:
        return self.job.withdraw(self)

    def really_cancel(self) -> None:
        """Cancel it, and tell those who wait for it."""
        if super().cancel():
            self.set_running_or_notify_cancel()


class LiveJob:
    """A job of this program, or of an earlier one, and the futures of its tasks.

    A thread submits it, the executor's watcher calls `look`, the monitor of jobs calls
    `learn`, and anybody may cancel a future.

    Attributes:
        record: what is written down of it.
        futures: of its tasks, in their order.
        info: what its scheduler said last.
    """

    def __init__(self, record: JobRecord, is_written: bool = False) -> None:
        self.record = record
        self.futures = [BatchFuture(self, n) for n in range(len(record.tasks))]
        self.info: JobInfo | None = None
        self.is_written = is_written
        self.cancel_wanted = False
        self._lock = threading.Lock()
        self._withdrawn: set[int] = set()
        self._ran = False
        self._give_up = float("inf")
        self._done_since: float | None = None
        self._over_since: float | None = None
        self._interrupted: dict[int, tuple[float, Outcome]] = {}

    @property
    def is_done(self) -> bool:
        """Whether all its futures are."""
        return all(future.done() for future in self.futures)

    @property
    def is_useless(self) -> bool:
        """Whether nobody can ever learn what becomes of it, or wants to."""
        if not self.is_done or self.is_withdrawn:
            return self.is_withdrawn
        return self._is_requeued or not self.record.directory.exists()

    def has_left(self, patience: float) -> bool:
        """Whether its scheduler said that it is over; or has not, for so many seconds.

        It is asked when all futures are done.
        """
        now = time.monotonic()
        self._done_since = self._done_since or now
        return self._is_over or now - self._done_since > patience

    @property
    def is_withdrawn(self) -> bool:
        """Whether nothing of it is to run any more."""
        return len(self._withdrawn) == len(self.futures)

    @property
    def has_begun(self) -> bool:
        """Whether one of its tasks runs or has run."""
        return any(
            f.running() or (f.done() and not f.cancelled()) for f in self.futures
        )

    def write(self, specs: Sequence[bytes]) -> bool:
        """Write what its tasks are; False if all have been cancelled by now."""
        with self._lock:
            if self.is_withdrawn:
                return False
            self.record.write()
            for task, spec in zip(self.record.tasks, specs, strict=True):
                task.directory.mkdir(mode=0o700, exist_ok=True)
                write_spec(task.directory, spec)
            self.is_written = True
            for number in self._withdrawn:
                withdraw_spec(self.record.tasks[number].directory)
        return True

    def withdraw(self, future: BatchFuture) -> bool:
        """Take a task back; tell if that was possible."""
        with self._lock:
            if future.number in self._withdrawn:
                return True
            if future.running() or future.done():
                return False
            directory = self.record.tasks[future.number].directory
            if self.is_written and not withdraw_spec(directory):
                return False
            self._withdrawn.add(future.number)
        # Without the lock, as there may be callbacks.
        future.really_cancel()
        return True

    def _begin(self, future: BatchFuture) -> bool:
        """Take note that a task runs; False if it has been taken back."""
        with self._lock:
            if future.number in self._withdrawn or future.done():
                return False
            return future.running() or future.set_running_or_notify_cancel()

    def _end(self, future: BatchFuture, outcome: Outcome) -> None:
        if not self._begin(future):
            return
        if outcome.error is None:
            future.set_result(outcome.value)
        else:
            future.set_exception(outcome.error)

    def fail(self, error: Exception) -> None:
        """End all futures that have no end yet, and leave no secret behind."""
        for future, task in zip(self.futures, self.record.tasks, strict=True):
            self._end(future, Outcome(error=error))
            remove_spec(task.directory)

    def submitted(self, job_id: str) -> None:
        """Take note of the scheduler's id."""
        self.record = replace(self.record, job_id=job_id)
        self.record.write()

    def finish(self) -> None:
        """Leave nothing secret behind, and of a job that never ran nothing at all."""
        if self.is_withdrawn:
            shutil.rmtree(self.record.directory, ignore_errors=True)
            return
        for task in self.record.tasks:
            remove_spec(task.directory)
        remove_environment(self.record.directory)
        if self.info is not None and self.info.state.is_over:
            self.record = self.record.ended(self.info)

    def give_up_after(self, patience: float) -> None:
        """Take back what has not begun, and let the rest fail after so many seconds."""
        self._give_up = time.monotonic() + patience
        for future in self.futures:
            self.withdraw(future)

    # --- what has become of it

    def look(self) -> bool:
        """Look for outcomes, and make them the ends of futures; tell if there is news.

        Reading a directory, rather than asking for a file, gets past what network file
        systems remember of files that are not there.
        Source: https://man7.org/linux/man-pages/man5/nfs.5.html (lookupcache)
        """
        if not self.is_written:
            return False
        return sum(map(self._look_at, self.futures)) > 0

    def _look_at(self, future: BatchFuture) -> bool:
        if future.done():
            return False
        task = self.record.tasks[future.number]
        try:
            names = set(os.listdir(task.directory))
        except FileNotFoundError:
            self._end(future, Outcome(error=self._found(task).removed()))
            return True
        except OSError as error:  # a file system that hangs or is away
            logger.warning("%s cannot be read: %s", task.directory, error)
            return False
        outcome = None
        if names & {OUTCOME, STATUS}:
            outcome = read_outcome(task.directory)
        if outcome is not None:
            return self._told(future, outcome)
        if STATUS in names:
            return self._give_up_on(future, self._found(task).died())
        if self._is_over_for_sure():
            return self._give_up_on(future, self._found(task).lost())
        if time.monotonic() > self._give_up:
            return self._give_up_on(future, self._cut_off())
        if SPEC not in names and not future.running():
            return self._begin(future)
        return False

    def _give_up_on(self, future: BatchFuture, error: Exception) -> bool:
        """End a task without an outcome, which is not to begin again if requeued."""
        remove_spec(self.record.tasks[future.number].directory)
        self._end(future, Outcome(error=error))
        return True

    def _cut_off(self) -> BrokenExecutor:
        return BrokenExecutor(
            f"The executor was shut down without waiting for job "
            f"{self.record.known_job_id()}, and {self.record.scheduler} has not said "
            "yet that it is over."
        )

    def _told(self, future: BatchFuture, outcome: Outcome) -> bool:
        """Take an outcome, once it is known why an agent was interrupted."""
        if isinstance(outcome.error, AgentInterruptedError):
            now = time.monotonic()
            since, _ = self._interrupted.setdefault(future.number, (now, outcome))
            settled = self._is_over or self._is_requeued
            if not settled and now - since < LAST_WORDS:
                return False
            if self._is_over:
                task = self.record.tasks[future.number]
                outcome = Outcome(error=self._found(task).interruption(outcome.error))
        self._end(future, outcome)
        return True

    def learn(self, info: JobInfo) -> None:
        """Take note of what its scheduler says."""
        self._ran = self._ran or info.state is JobState.RUNNING
        self.info = info

    @property
    def _is_requeued(self) -> bool:
        state = JobState.UNKNOWN if self.info is None else self.info.state
        return self._ran and state is JobState.PENDING

    @property
    def waits_for_cause(self) -> bool:
        """Whether an agent was interrupted, and only the scheduler knows why."""
        return bool(self._interrupted) and not self._is_over

    @property
    def _is_over(self) -> bool:
        info = self.info
        if info is None:
            return False
        if info.state is not JobState.UNKNOWN:
            return info.state.is_over
        # It was told several times that nobody knows it, and not because of an error.
        age = time.time() - self.record.submitted.timestamp()
        return not info.reason and age > FORGOTTEN_AFTER

    def _is_over_for_sure(self) -> bool:
        """Whether it is over, and what it has written can be seen from here."""
        if not self._is_over:
            return False
        now = time.monotonic()
        self._over_since = self._over_since or now
        return now - self._over_since > LATE_FILES

    def hopeless(self) -> NeverStartedError | None:
        """Return why the job will never run, if that is so."""
        # One that was requeued may be released by whoever has done that.
        return None if self.info is None or self.has_begun else hopeless(self.info)

    def _found(self, task: Task) -> Findings:
        return Findings(self.record, task, self.info, self.cancel_wanted)
