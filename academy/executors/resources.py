"""What one launch asks of a scheduler, in the same words for all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from academy.executors.spellings import read_keys
from academy.executors.units import parse_memory, parse_walltime


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

    nodes: int | None = None
    ranks_per_node: int | None = None
    cpus_per_rank: int | None = None
    gpus_per_node: int | None = None
    memory_gb_per_node: float | None = None
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

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        return None if value is None else _READERS[info.field_name](value)

    @classmethod
    def parse(
        cls,
        submit_kwargs: Mapping[str, Any],
        taker: str,
        defaults: ResourceSpec | None = None,
    ) -> Self:
        """Read what a launch asks for, in any of the common spellings.

        Args:
            submit_kwargs: names of the fields, or aliases of them.
            taker: who is asked, for error messages.
            defaults: what holds where the launch says nothing.

        Raises:
            ValueError: Names the key or value that is wrong, and what would be right.
        """
        known = {} if defaults is None else defaults.given()
        asked = read_keys(submit_kwargs, _READERS, taker, known)
        values = {}
        for field, (key, value) in asked.items():
            try:
                values[field] = _READERS[field](value)
            except ValueError as e:
                also = "" if key == field else f" ({field})"
                raise ValueError(f"{key}{also} {e} ({taker}).") from None
        spec = cls.model_construct(**values)
        return spec if defaults is None else spec.over(defaults)

    def given(self) -> dict[str, Any]:
        """Return the fields that are not None."""
        return {k: v for k, v in self.__dict__.items() if v is not None}

    def over(self, defaults: ResourceSpec) -> Self:
        """Return these resources, with defaults where they say nothing.

        Lines and options add up: those of the defaults come first.
        """
        mine, theirs = self.given(), defaults.given()
        joined = {
            name: f"{theirs[name].rstrip()}{between}{mine[name]}"
            for name, between in _ADD_UP.items()
            if name in mine and name in theirs
        }
        return self.model_construct(**theirs | mine | joined)


_ADD_UP = {"scheduler_options": "\n", "worker_init": "\n", "launcher_options": " "}


# --- what values may be


def _whole(minimum: int | None) -> Callable[[Any], int]:
    words = "" if minimum is None else f" of at least {minimum}"

    def read(value: Any) -> int:
        right = isinstance(value, Integral) and not isinstance(value, bool)
        if not right or (minimum is not None and int(value) < minimum):
            raise ValueError(f"must be a whole number{words}, not {value!r}")
        return int(value)

    return read


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be True or False, not {value!r}")
    return value


def _word(others: str) -> Callable[[Any], str]:
    """Make the reader of what becomes part of a line, and must not become more.

    Args:
        others: what may be in it besides letters and digits, for people to read.
    """
    allowed = re.compile(rf"(?!-)[A-Za-z0-9{re.escape(others)}]+")

    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"must be a string, not {value!r}")
        if not allowed.fullmatch(value):
            raise ValueError(
                f"must consist of letters, digits and {' '.join(others)} and not begin "
                f"with a dash, unlike {value!r}"
            )
        return value

    return read


def _lines(value: Any) -> str:
    """Read a string of several lines, or a list of lines."""
    if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise ValueError(f"must be a string or a list of lines, not {value!r}")
    if "\0" in value or "\r" in value:
        raise ValueError(f"has characters that no script may have: {value!r}")
    return value


# What ends a command, or runs another one, unless it is in quotes.
_QUOTED = re.compile(r"""'[^']*'|"(?:[^"$`\\]|\$(?!\())*"|\\.""", re.ASCII)
_ENDS_A_COMMAND = re.compile(r"""[;&|<>()`\n\r\0#'"\\]|\$\(""")


def _options(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a string, not {value!r}")
    if "\n" in value or (end := _ENDS_A_COMMAND.search(_QUOTED.sub("", value))):
        found = "a line break" if "\n" in value else repr(end[0] if end else "")
        raise ValueError(
            f"must be options of one command, and has {found} in {value!r}; quotes "
            "help if it belongs to a value"
        )
    return value.strip()


_NAME = _word("_.,:@+/-")

_READERS: Mapping[str, Callable[[Any], Any]] = {
    "nodes": _whole(1),
    "ranks_per_node": _whole(1),
    "cpus_per_rank": _whole(1),
    "gpus_per_node": _whole(0),
    "memory_gb_per_node": parse_memory,
    "walltime": parse_walltime,
    "queue": _NAME,
    "account": _NAME,
    "qos": _NAME,
    "constraint": _word("_.,:@+/=&|()[]*!-"),
    "reservation": _NAME,
    "exclusive": _boolean,
    "priority": _whole(None),
    "scheduler_options": _lines,
    "worker_init": _lines,
    "launcher_options": _options,
}
