"""What one launch asks of a scheduler, in the same words for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field


class ResourceSpec(BaseModel):
    """The resources of one launch; what is None is left to the executor.

    Attributes:
        nodes: how many nodes.
        ranks_per_node: how many workers, or MPI ranks, on each of them.
        cpus_per_rank: cores of each of these.
        gpus_per_node: how many GPUs of each node.
        memory_gb_per_node: memory of each node, in GB (of 1024 MB).
        walltime: for how long, "HH:MM:SS".
        queue: Slurm's partition, or the queue of another scheduler.
        account: who is charged.
        qos: quality of service (Slurm).
        constraint: features that nodes must have.
        reservation: name of a reservation.
        exclusive: whether nodes are not shared with other jobs.
        priority: for the scheduler, or among the tasks of a Parsl executor.
        scheduler_options: lines for the job script, as the scheduler reads them.
        worker_init: commands that prepare a job, after those of the executor.
        launcher_options: for the command that launches processes on nodes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int | None = Field(None, ge=1)
    ranks_per_node: int | None = Field(None, ge=1)
    cpus_per_rank: int | None = Field(None, ge=1)
    gpus_per_node: int | None = Field(None, ge=0)
    memory_gb_per_node: float | None = Field(None, gt=0)
    walltime: str | None = None
    queue: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclusive: bool | None = None
    priority: int | None = None
    scheduler_options: str | None = None
    worker_init: str | None = None
    launcher_options: str | None = None

    @classmethod
    def parse(cls, submit_kwargs: Mapping[str, Any], taker: str) -> Self:
        """Read what a launch asks for, in any of the common spellings.

        Args:
            submit_kwargs: names of the fields, or aliases of them.
            taker: who is asked, for error messages.

        Raises:
            ValueError: Names the key or value that is wrong, and what would be right.
        """
        return cls.model_validate(dict(submit_kwargs))

    def given(self) -> dict[str, Any]:
        """Return the fields that are not None."""
        return self.model_dump(exclude_none=True)
