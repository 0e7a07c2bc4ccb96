"""What is known of jobs across programs: a directory with a file for each job."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from academy.home import get_academy_home, private_directory, write_private
from academy.launch.task import OUTCOME, PLACE, STATUS
from academy.scheduler.job import JobInfo, JobState

logger = logging.getLogger("academy.executors.batch")

RECORD = "job.json"

KEPT_FOR = 7 * 24 * 3600.0
"""Seconds that the files of an ended job are kept."""

KEPT_JOBS = 1000
"""How many ended jobs keep their files, the latest ones."""

STDOUT = ("stdout", "*.stdout", "*.out")
STDERR = ("stderr", "*.stderr", "*.err")


def default_directory() -> Path:
    """Return where jobs are, unless an executor is told otherwise."""
    return get_academy_home() / "jobs"


@dataclass(frozen=True)
class Task:
    """One task of a job.

    Attributes:
        id: names it in the directory of jobs.
        directory: its own files.
        name: of the agent; "" if it has none.
        uid: of the agent; "" if it is none.
    """

    id: str
    directory: Path
    name: str = ""
    uid: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether it has told its outcome, or its process is gone."""
        return any((self.directory / name).exists() for name in (OUTCOME, STATUS))

    def place(self) -> Mapping[str, Any]:
        """Return what the process wrote of itself when it began; empty before."""
        try:
            found: dict[str, Any] = json.loads((self.directory / PLACE).read_text())
        except (OSError, ValueError):
            return {}
        return found


@dataclass(frozen=True)
class JobRecord:
    """A job, as the program that submitted it has written it down.

    Attributes:
        id: names its directory.
        directory: its script and outputs.
        scheduler: as in `JobInfo`.
        job_id: as the scheduler writes it; "" before it has answered.
        label: of the executor.
        submitted: when.
        tasks: what runs in it.
        end: what the scheduler last said of it, if it is over.
    """

    id: str
    directory: Path
    scheduler: str
    label: str
    tasks: tuple[Task, ...]
    job_id: str = ""
    submitted: datetime = field(default_factory=lambda: datetime.now(UTC))
    end: JobInfo | None = None

    def write(self) -> None:
        """Write it into its directory."""
        shown = asdict(self) | {"tasks": [self._shown(task) for task in self.tasks]}
        del shown["directory"]
        write_private(self.directory / RECORD, json.dumps(shown, default=str, indent=1))

    def _shown(self, task: Task) -> dict[str, str]:
        directory = os.path.relpath(task.directory, self.directory)
        return asdict(task) | {"directory": directory}

    @classmethod
    def read(cls, directory: Path) -> JobRecord | None:
        """Read it; None if there is none, or another version wrote it."""
        try:
            found = json.loads((directory / RECORD).read_text())
            tasks = [
                Task(**task | {"directory": directory / task["directory"]})
                for task in found["tasks"]
            ]
            end = found["end"] and _job_info(found["end"])
            submitted = datetime.fromisoformat(found["submitted"])
            rest = {"tasks": tuple(tasks), "end": end, "submitted": submitted}
            return cls(**found | rest | {"directory": directory})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("%s cannot be read: %r", directory / RECORD, error)
            return None

    def known_job_id(self) -> str:
        """Return the scheduler's id of the job, also if only the job has told it."""
        told = (str(task.place().get("job_id", "")) for task in self.tasks)
        return self.job_id or next(filter(None, told), "")

    def ended(self, info: JobInfo) -> JobRecord:
        """Return it with its end, which is written down as well."""
        record = replace(self, end=info)
        try:
            record.write()
        except OSError as error:  # removed by somebody who tidied up
            logger.warning("%s cannot be written: %r", self.directory, error)
        return record

    def outputs(self, task: Task) -> tuple[Path | None, Path | None]:
        """Return the files that hold what a task, or else its job, has printed."""
        return (
            _first(task.directory, STDOUT) or _first(self.directory, STDOUT),
            _first(task.directory, STDERR) or _first(self.directory, STDERR),
        )

    @property
    def is_over(self) -> bool:
        """Whether all of it has ended, as far as the files tell."""
        return self.end is not None or all(task.has_ended for task in self.tasks)


def _job_info(found: Mapping[str, Any]) -> JobInfo:
    times = {
        name: found[name] and datetime.fromisoformat(found[name])
        for name in ("submitted", "started", "ends")
    }
    state = {"state": JobState(found["state"]), "nodes": tuple(found["nodes"])}
    return JobInfo(**{**found, **times, **state})


def _first(directory: Path, patterns: tuple[str, ...]) -> Path | None:
    for pattern in patterns:
        for path in sorted(directory.glob(pattern)):
            return path
    return None


class JobDirectory:
    """The directory in which jobs of several programs may be.

    Args:
        path: on a file system that login and compute nodes share.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        given = default_directory() if path is None else Path(path).expanduser()
        self.path = given.absolute()

    def new(self, job: str) -> Path:
        """Make the directory of a job, which only its owner can read."""
        private_directory(self.path)
        directory = self.path / job
        directory.mkdir(mode=0o700)
        return directory

    def records(self) -> list[JobRecord]:
        """Return all jobs that are there, the oldest first."""
        found = filter(None, map(JobRecord.read, self._directories()))
        return sorted(found, key=lambda record: record.submitted)

    def find(self, job: str) -> JobRecord | None:
        """Return the job of this directory's name, or of this id of a scheduler."""
        if (record := JobRecord.read(self.path / job)) is not None:
            return record
        return next((r for r in self.records() if r.known_job_id() == job), None)

    def _directories(self) -> Iterator[Path]:
        try:
            with os.scandir(self.path) as entries:
                yield from [Path(e.path) for e in entries if e.is_dir()]
        except FileNotFoundError:
            return

    def prune(self, kept_jobs: int = KEPT_JOBS) -> None:
        """Remove ended jobs which are old, or more than are kept."""
        now = time.time()
        ended = [record for record in self.records() if record.is_over]
        for number, record in enumerate(reversed(ended)):
            age = now - (record.directory / RECORD).stat().st_mtime
            if age > KEPT_FOR or number >= kept_jobs:
                shutil.rmtree(record.directory, ignore_errors=True)
