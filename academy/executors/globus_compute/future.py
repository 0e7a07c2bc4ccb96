"""The future of a task on an endpoint."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from academy.executors.globus_compute.limits import encoded_size


class TaskFuture(Future[Any]):
    """A future that can be cancelled until its task has been handed to the service.

    Attributes:
        task_id: what the service calls the task; None until it has accepted it.
    """

    task_id: str | None = None


@dataclass(frozen=True)
class Task:
    """A packed call on its way to the service.

    Attributes:
        packed: what `run_task` takes.
        future: gets the outcome.
    """

    packed: bytes
    future: TaskFuture

    @property
    def size(self) -> int:
        """How many bytes of a request it is."""
        return encoded_size(self.packed)
