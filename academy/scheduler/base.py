"""What is asked of a scheduler, and how to get the one of a name."""

from __future__ import annotations

import difflib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from academy.scheduler.job import JobInfo, JobState


@dataclass(frozen=True)
class Limits:
    """The most that a job of one queue may ask for; None if there is no limit known.

    Attributes:
        queue: its name; a partition in Slurm.
        walltime: seconds.
        nodes: how many it may have, and there are.
        cpus_per_node: of the largest node.
        memory_gb_per_node: of the largest node.
        gpus_per_node: of the node with the most.
    """

    queue: str
    walltime: float | None = None
    nodes: int | None = None
    cpus_per_node: int | None = None
    memory_gb_per_node: float | None = None
    gpus_per_node: int | None = None


class Scheduler(ABC):
    """Asks a batch scheduler about jobs, by its own commands.

    Nothing is kept between two questions, so an instance may be used by any number of
    threads. Every question may take as long as its command, at most a minute; ask
    `academy.scheduler.monitor` instead if it may be asked often.

    A command that is not there, that fails, or that does not answer in time raises
    `SchedulerError`. That a job or a queue is unknown is an answer, not a failure.

    Attributes:
        name: as in `JobInfo.scheduler`.
    """

    name: str

    @abstractmethod
    def _described(self, ids: Sequence[str]) -> dict[str, JobInfo]:
        """Ask about jobs; those that are unknown may be absent."""

    def jobs(self, ids: Iterable[str]) -> dict[str, JobInfo]:
        """Describe jobs, with one command for all of them.

        Finished ones are looked for wherever the scheduler keeps them, which takes a
        second command.

        Args:
            ids: as `JobInfo.job_id` has them.

        Returns:
            All of them, by their ids. One whose state is UNKNOWN is unknown to the
            scheduler: too long ago, too new, or of another cluster.
        """
        wanted = list(dict.fromkeys(ids))
        found = self._described(wanted) if wanted else {}
        return {job: found.get(job) or self._unknown(job) for job in wanted}

    def job(self, job_id: str) -> JobInfo:
        """Describe one job, as `jobs` does."""
        return self.jobs([job_id])[job_id]

    @abstractmethod
    def cancel(self, ids: Iterable[str]) -> None:
        """End jobs, whether they run or wait; those that are over are left alone."""

    def limits(self, queue: str | None = None) -> Limits | None:
        """Return the most that a job may ask for, or None if nobody can tell.

        Args:
            queue: name of the queue; the default one if None.

        Raises:
            ValueError: There is no such queue; says which there are.
        """
        return None

    def estimate(self, script: str) -> datetime | None:
        """Ask when a job would start, without submitting it.

        Args:
            script: all of it.

        Returns:
            None if the scheduler does not tell.

        Raises:
            ValueError: It would be refused; in the scheduler's words.
        """
        return None

    def hopeless(self, reason: str) -> bool:
        """Tell whether a job that waits for this reason will never run by itself."""
        return False

    def _unknown(self, job_id: str) -> JobInfo:
        return JobInfo(self.name, job_id, JobState.UNKNOWN)


# Modules are imported when asked for: a process needs one of them at most.
_SCHEDULERS = {
    "slurm": "Slurm",
    "pbs": "PBS",
    "torque": "Torque",
    "lsf": "LSF",
    "grid_engine": "GridEngine",
    "local": "Local",
}


@cache
def get_scheduler(name: str) -> Scheduler:
    """Return the scheduler of a name: see `JobInfo.scheduler`.

    Raises:
        ValueError: There is none; says which there are.
    """
    if name not in _SCHEDULERS:
        raise ValueError(no_such("scheduler", name, _SCHEDULERS))
    module = importlib.import_module(f"academy.scheduler.{name}")
    scheduler: Scheduler = getattr(module, _SCHEDULERS[name])()
    return scheduler


def no_such(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, which is the nearest, and which there are."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"There is no {kind} {name!r}.{hint} There are: {', '.join(names)}."
