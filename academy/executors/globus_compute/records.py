"""Which tasks this machine's clients have with the service, kept on disk.

The service keeps a task for two weeks, and its result for half an hour after it has
been fetched. Who knows the ids of task and task group can fetch it, from any process.
Source: https://globus-compute.readthedocs.io/en/latest/limits.html
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from academy.home import get_academy_home, write_private

FORMAT = 1


def default_directory() -> Path:
    """Return where clients keep their records unless told otherwise."""
    return get_academy_home() / "globus-compute"


@dataclass(frozen=True)
class Owner:
    """A process that waits for the results of a task group."""

    host: str
    pid: int
    started: float

    @classmethod
    def of_this_process(cls) -> Self:
        """Return the one that we are."""
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def lives(self) -> bool:
        """Whether it is known to run still; of another host, nobody can tell."""
        if self.host != socket.gethostname():
            return False
        try:
            return psutil.Process(self.pid).create_time() == self.started
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True)
class GroupRecord:
    """The tasks of one task group that have not ended.

    Attributes:
        endpoint_id: where they run.
        task_group_id: as the service calls it.
        request: what their submissions asked for.
        tasks: their ids, and when they were submitted (ISO 8601).
        owner: who waits for them.
    """

    endpoint_id: str
    task_group_id: str
    request: Mapping[str, Any]
    tasks: Mapping[str, str] = field(default_factory=dict)
    owner: Owner | None = None

    @property
    def has_living_owner(self) -> bool:
        """Whether a process of this host still waits for these tasks."""
        return self.owner is not None and self.owner.lives()

    def write(self, directory: Path) -> None:
        """Replace the record on disk; without tasks, there is none."""
        path = directory / f"{self.task_group_id}.json"
        if not self.tasks:
            path.unlink(missing_ok=True)
            return
        owner = vars(self.owner) if self.owner else None
        content = {"format": FORMAT, **vars(self), "owner": owner}
        write_private(path, json.dumps(content, indent=1))


def read_records(directory: Path, endpoint_id: str) -> Iterator[GroupRecord]:
    """Read the records of an endpoint, the oldest first."""
    with contextlib.suppress(FileNotFoundError):
        paths = sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in paths:
            content = json.loads(path.read_text())
            if content.pop("format") != FORMAT or content["endpoint_id"] != endpoint_id:
                continue
            owner = content.pop("owner")
            yield GroupRecord(**content, owner=Owner(**owner) if owner else None)
