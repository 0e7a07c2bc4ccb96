"""Batch jobs for agents, without workers in between."""

from __future__ import annotations

import functools
import logging
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from academy.executors import base
from academy.executors.batch.listing import ListedTask, list_tasks, with_outputs
from academy.executors.batch.live import BatchFuture, LiveJob
from academy.executors.batch.plan import Plan, find_provider
from academy.executors.batch.records import JobDirectory, JobRecord, Task
from academy.executors.batch.script import Slots, Worker
from academy.executors.batch.submitting import Submitters
from academy.executors.batch.watch import Watch, cancel
from academy.executors.limits import check_limits
from academy.executors.providers import scheduler_of
from academy.executors.resources import ResourceSpec
from academy.launch import AgentSpec, run_agent
from academy.launch.task import pack_spec
from academy.scheduler.base import get_scheduler
from academy.scheduler.job import JobInfo
from academy.scheduler.monitor import monitor

if TYPE_CHECKING:
    from parsl.providers.base import ExecutionProvider

logger = logging.getLogger("academy.executors.batch")

SUBMITTERS = 4
"""How many jobs are submitted at a time; schedulers do not like many."""

CANCEL_PATIENCE = 60.0
"""Seconds that cancelled jobs have to be over before their futures fail."""


class BatchExecutor(base.AgentExecutor):
    """Runs each agent in a batch job of its own, or those of a batch in one.

    What it adds to the contract of executors: **jobs outlive the program**. When that
    is killed, or its user logs out, jobs go on until their agents end or the walltime
    is over; `jobs`, `attach` and `academy ps` find them again.

    Args:
        provider: who submits: a provider of Parsl, the name of a scheduler ("slurm",
            "pbs", "torque", "lsf", "grid_engine", "local"), or the path of a Parsl
            config file, for the provider of its executor.
        resources: fields of `ResourceSpec`, for launches that do not say otherwise.
        directory: where each job has its files; on a file system that login and
            compute nodes share. `$ACADEMY_HOME/jobs` if None.
        python: the interpreter in jobs; the one of this program if None.
        share_job: whether agents of one `launch_batch` with the same resources share
            one job of `nodes` times `ranks_per_node` places.
        label: names the executor in a config file that has several; jobs are named
            after it.

    Raises:
        ValueError: There is no such scheduler or provider, or the resources are wrong.
    """

    def __init__(
        self,
        provider: ExecutionProvider | str | os.PathLike[str],
        *,
        resources: Mapping[str, Any] | None = None,
        directory: str | os.PathLike[str] | None = None,
        python: str | None = None,
        share_job: bool = False,
        label: str | None = None,
    ) -> None:
        self._provider = find_provider(provider, label)
        self.scheduler = scheduler_of(self._provider)
        """Its name, as in `JobInfo.scheduler`."""
        # What names of jobs may be in all schedulers.
        self.label = re.sub(r"^[^A-Za-z]|[^A-Za-z0-9]", "-", label or "academy")
        self.label = self.label.lstrip("-") or "academy"
        self._directory = JobDirectory(directory)
        self._worker = Worker(python or sys.executable, os.getcwd())
        self._share_job = share_job
        self._taker = f"BatchExecutor({self.scheduler!r})"
        self._defaults = ResourceSpec.parse(resources or {}, self._taker)
        # Unpredictable, since other programs use the directory as well.
        self._series = f"{self.label}-{secrets.token_hex(3)}"
        self._lock = threading.Lock()
        self._count = 0
        self._closed = False
        self._live: set[LiveJob] = set()
        self._submitters = Submitters(SUBMITTERS)
        self._watch = Watch(self._ended)
        self.validate()

    def __repr__(self) -> str:
        shared = ", share_job=True" if self._share_job else ""
        return f"BatchExecutor({self.scheduler!r}{shared})"

    @property
    def directory(self) -> Path:
        """Where its jobs have their files."""
        return self._directory.path

    @property
    def max_workers(self) -> int | None:
        return None

    @property
    def shares_jobs(self) -> bool:
        return self._share_job

    @property
    def resumes_requeued(self) -> bool:
        return True

    # --- before anything is submitted

    def _plan(self, tasks: int | None, submit_kwargs: Mapping[str, Any]) -> Plan:
        """Check what is asked for; without a number of tasks, for one alone."""
        spec = ResourceSpec.parse(submit_kwargs, self._taker, self._defaults)
        if self._share_job and tasks is None:
            slots = Slots(spec)
            slots.check(self.scheduler, self._taker)
            spec = slots.one().spec
        if not self._share_job:
            tasks = None
        return Plan.of(self._provider, spec, self._worker, tasks, self._taker)

    def validate(self, **submit_kwargs: Any) -> None:
        self._plan(None, submit_kwargs)

    def validate_together(self, tasks: int, **submit_kwargs: Any) -> None:
        self._plan(tasks, submit_kwargs)

    def preview(self, **submit_kwargs: Any) -> str:
        """Return the script of the next job that is submitted.

        With `share_job` that is one with all its places taken.
        """
        return self._preview(submit_kwargs)[1]

    def _preview(self, submit_kwargs: Mapping[str, Any]) -> tuple[Plan, str]:
        tasks = 1
        if self._share_job:
            spec = ResourceSpec.parse(submit_kwargs, self._taker, self._defaults)
            tasks = Slots(spec).count
        plan = self._plan(tasks, submit_kwargs)
        with self._lock:
            directory = self.directory / self._name(self._count + 1)
        return plan, plan.script(directory, tasks).text

    def ask_scheduler(self, **submit_kwargs: Any) -> datetime | None:
        plan, script = self._preview(submit_kwargs)
        check_limits(plan.provider, self._taker)
        return get_scheduler(self.scheduler).estimate(script)

    # --- submitting

    def submit(self, fn: Any, /, *args: Any, **submit_kwargs: Any) -> Future[Any]:
        plan = self._plan(None, submit_kwargs)
        return self._submit(plan, fn, [args])[0]

    def submit_together(
        self, fn: Any, /, arguments: Sequence[tuple[Any, ...]], **submit_kwargs: Any
    ) -> list[Future[Any]]:
        if not self._share_job or not arguments:
            return super().submit_together(fn, arguments, **submit_kwargs)
        return self._submit(self._plan(len(arguments), submit_kwargs), fn, arguments)

    def _submit(
        self, plan: Plan, fn: Any, arguments: Sequence[tuple[Any, ...]]
    ) -> list[Future[Any]]:
        specs = [pack_spec(fn, args) for args in arguments]
        with self._lock:
            if self._closed:
                raise RuntimeError(f"Cannot submit: {self!r} has been shut down.")
            self._count += 1
            name = self._name(self._count)
            job = LiveJob(self._record(name, plan, fn, arguments))
            if self._count == 1:
                self._submitters.add(self._prune)
            self._submitters.add(functools.partial(self._submit_job, job, plan, specs))
            self._live.add(job)
        for future in job.futures:
            future.add_done_callback(self._done)
        return list(job.futures)

    def _name(self, number: int) -> str:
        return f"{self._series}-{number}"

    def _prune(self) -> None:
        try:
            self._directory.prune()
        except OSError as error:
            logger.warning("%s cannot be tidied up: %s", self.directory, error)

    def _record(
        self, name: str, plan: Plan, fn: Any, arguments: Sequence[tuple[Any, ...]]
    ) -> JobRecord:
        directory = self.directory / name
        directories = plan.directories(directory, len(arguments))
        tasks = []
        for number, args in enumerate(arguments):
            task = name if len(arguments) == 1 else f"{name}/{number}"
            tasks.append(Task(task, directories[number], *_agent(fn, args)))
        return JobRecord(name, directory, self.scheduler, self.label, tuple(tasks))

    def _submit_job(self, job: LiveJob, plan: Plan, specs: Sequence[bytes]) -> None:
        directory = job.record.directory
        job_id = ""
        try:
            self._directory.new(job.record.id)
            if job.write(specs):
                job_id = plan.submit(directory, len(specs))
        except Exception as error:
            logger.error("job %s was not submitted: %s", job.record.id, error)
            job.fail(error)
        if not job_id:
            shutil.rmtree(directory, ignore_errors=True)
            self._forget(job)
            return
        logger.info("submitted job %s as %s", job.record.id, job_id)
        try:
            job.submitted(job_id)
            self._watch.add(job)
        except Exception as error:  # a job that nobody follows is not to stay
            job.fail(error)
            cancel([job])
            self._forget(job)

    # --- what was submitted

    def _done(self, future: Future[Any]) -> None:
        self._watch.wake()

    def _ended(self, job: LiveJob) -> None:
        job.finish()
        self._forget(job)

    def _forget(self, job: LiveJob) -> None:
        with self._lock:
            self._live.discard(job)

    def job(self, future: Future[Any]) -> JobInfo | None:
        if not isinstance(future, BatchFuture):
            return None
        record = future.job.record
        job_id = record.known_job_id()
        if not job_id:
            return None
        info = record.end or monitor().info(record.scheduler, job_id)
        return with_outputs(info, record, record.tasks[future.number])

    def cancel(self, future: Future[Any]) -> bool:
        """End a task and its job, also if it runs.

        False if others still run in the job; or if it is over, or cannot be reached.
        """
        if future.cancel():
            return True
        if not isinstance(future, BatchFuture) or future.done():
            return False
        others = (f for f in future.job.futures if f is not future)
        if not all(other.done() for other in others):
            return False
        return cancel([future.job])

    def jobs(self) -> list[ListedTask]:
        """Return what is in its directory, of this program and others; asks schedulers.

        It takes as long as one command of each of them.
        """
        return list_tasks(self._directory)

    def attach(self, ids: Iterable[str] | None = None) -> dict[str, Future[Any]]:
        """Return futures for tasks of an earlier program, by the ids that `jobs` tells.

        Args:
            ids: which; all that are not over if None.

        Raises:
            ValueError: There is no such task.
            RuntimeError: The executor has been shut down.
        """
        if ids is None:
            ids = [task.id for task in list_tasks(self._directory, ended=False)]
        found: dict[str, Future[Any]] = {}
        with self._lock:
            if self._closed:
                raise RuntimeError(f"Cannot attach: {self!r} has been shut down.")
            live = {job.record.id: job for job in self._live}
            for task_id in ids:
                job = self._attached(task_id, live)
                tasks = [task.id for task in job.record.tasks]
                found[task_id] = job.futures[tasks.index(task_id)]
        return found

    def _attached(self, task_id: str, live: dict[str, LiveJob]) -> LiveJob:
        job_id = task_id.partition("/")[0]
        if (job := live.get(job_id)) is None:
            record = self._directory.find(job_id)
            if record is None or task_id not in {task.id for task in record.tasks}:
                raise ValueError(f"There is no task {task_id!r} in {self.directory}.")
            job = live[job_id] = LiveJob(record, is_written=True)
            self._live.add(job)
            for future in job.futures:
                future.add_done_callback(self._done)
            self._watch.add(job)
        return job

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._closed = True
            live = list(self._live)
        if cancel_futures:
            for job in live:
                job.give_up_after(CANCEL_PATIENCE)
            cancel(job for job in live if not job.is_done)
            self._watch.wake()
        if wait:
            self._submitters.join()
            self._watch.join()


def _agent(fn: Any, args: tuple[Any, ...]) -> tuple[str, str]:
    """Return the name and the id of the agent that a task runs, if it runs one."""
    if fn is not run_agent or len(args) != 1:
        return "", ""
    spec = args[0]
    if isinstance(spec, bytes):
        try:
            spec = AgentSpec.unpack(spec)
        except Exception:  # The job will tell.
            return "", ""
    agent_id = spec.registration.agent_id
    return agent_id.name or "", str(agent_id.uid)
