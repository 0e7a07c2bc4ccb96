"""What Parsl's executors accept for one task, and the function that they run.

Workers import this module to run a task, so it must not import Parsl.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from academy.executors.base import unknown_key
from academy.executors.parsl.pinning import pin_worker

NATIVE = "parsl_resource_specification"


def run_task(packed: bytes, *, parsl_resource_specification: object = None) -> Any:
    """Run a pickled `(function, arguments)`.

    Parsl gives the resource specification to the function as well as to the executor;
    here it ends.
    """
    pin_worker()
    function, arguments = pickle.loads(packed)
    return function(*arguments)


@dataclass(frozen=True)
class Amount:
    """What a value must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _whole(minimum: int) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, Integral):
            return False
        return int(value) >= minimum

    return holds


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return not math.isnan(float(value))


COUNT = Amount("a whole number of at least 1", _whole(1))
COUNT_OR_NONE = Amount("a whole number, 0 or more", _whole(0))
NUMBER = Amount("a number", _is_number)
QUANTITY = Amount("a number, 0 or more", lambda value: _is_number(value) and value >= 0)
TEXT = Amount("a string", lambda value: isinstance(value, str))

_WORK_QUEUE = {
    "cores": QUANTITY,
    "memory": QUANTITY,  # MB
    "disk": QUANTITY,  # MB
    "gpus": QUANTITY,
    "priority": NUMBER,
    "running_time_min": QUANTITY,  # seconds
}

# By the name of the class, since the classes of engines that are not installed cannot
# be imported. Subclasses take what their nearest ancestor here takes.
# Source: https://parsl.readthedocs.io/en/stable/userguide/apps/python.html and the
# validate_resource_spec and submit methods of these classes.
ACCEPTED: Mapping[str, Mapping[str, Amount]] = {
    "HighThroughputExecutor": {"priority": NUMBER},  # Lower runs earlier.
    "MPIExecutor": {
        "num_nodes": COUNT,
        "ranks_per_node": COUNT,
        "num_ranks": COUNT,
        "launcher_options": TEXT,
    },
    "ThreadPoolExecutor": {},
    "WorkQueueExecutor": _WORK_QUEUE,
    "TaskVineExecutor": _WORK_QUEUE,
    "FluxExecutor": {
        "num_tasks": COUNT,
        "cores_per_task": COUNT,
        "gpus_per_task": COUNT_OR_NONE,
        "num_nodes": COUNT_OR_NONE,
    },
}

_BLOCK_HINT = (
    "Nodes, walltime, queue and the like belong to the block, so they are set on the "
    "provider in the Parsl config."
)


def taker_of(executor: Any) -> str:
    """Return what to call a Parsl executor in an error."""
    return f"Parsl executor {executor.label!r} ({type(executor).__name__})"


def task_specification(
    executor: Any, submit_kwargs: Mapping[str, Any], nodes: int | None = None
) -> dict[str, Any]:
    """Return the resource specification to give to a Parsl executor with one task.

    Args:
        executor: The Parsl executor that would run the task.
        submit_kwargs: Keys that this executor knows, or all of them as one dictionary
            under Parsl's own name for it, parsl_resource_specification.
        nodes: How many a block has; as many as its provider says if None.

    Raises:
        ValueError: Says which key or value is wrong, and what would be right.
    """
    kind = _kind(executor)
    taker = taker_of(executor)
    specification = _merge(submit_kwargs, taker)
    if kind is None:
        # An executor from elsewhere. It knows what it takes, and we do not.
        named = [key for key in submit_kwargs if key != NATIVE]
        if named:
            raise unknown_key(named[0], [NATIVE], taker)
        return specification
    # What has blocks of nodes has a provider.
    hint = _BLOCK_HINT if hasattr(executor, "provider") else ""
    _check(specification, ACCEPTED[kind], taker, hint)
    if kind == "MPIExecutor":
        if nodes is None:
            nodes = getattr(executor.provider, "nodes_per_block", 1)
        return _mpi(specification, nodes, taker)
    return specification


def _kind(executor: Any) -> str | None:
    names = (cls.__name__ for cls in type(executor).__mro__)
    return next((name for name in names if name in ACCEPTED), None)


def _merge(submit_kwargs: Mapping[str, Any], taker: str) -> dict[str, Any]:
    """Put the native dictionary and the named keys together, in a new dictionary."""
    named = {key: value for key, value in submit_kwargs.items() if key != NATIVE}
    native = submit_kwargs.get(NATIVE)
    if native is None:
        return named
    if not isinstance(native, Mapping):
        raise ValueError(f"{NATIVE} must be a dictionary, not {native!r}.")
    for key in named:
        if key in native:
            raise ValueError(f"{taker} was given {key!r} twice, once in {NATIVE}.")
    return {**native, **named}


def _check(
    specification: Mapping[str, Any],
    accepted: Mapping[str, Amount],
    taker: str,
    hint: str,
) -> None:
    for key, value in specification.items():
        if key not in accepted:
            error = unknown_key(str(key), accepted, f"{taker}, for one task,")
            raise ValueError(f"{error} {hint}".rstrip())
        if not accepted[key].holds(value):
            raise ValueError(
                f"{key} must be {accepted[key].words}, not {value!r} ({taker})."
            )


def _mpi(specification: dict[str, Any], block: int, taker: str) -> dict[str, Any]:
    """Complete what an MPI task asks for, and refuse what would hang Parsl.

    Without any specification Parsl never starts the task. For more nodes than a block
    has, its worker pool recurses until it dies, and no later task runs.
    """
    nodes = specification.get("num_nodes")
    ranks = specification.get("num_ranks")
    per_node = specification.get("ranks_per_node")
    if nodes is None or (ranks is None and per_node is None):
        raise ValueError(
            f"{taker} needs num_nodes and ranks_per_node for every task, and was "
            f"given {specification or 'neither'}."
        )
    if nodes > block:
        raise ValueError(
            f"num_nodes={nodes} is more than the {block} of a block ({taker}): raise "
            "nodes_per_block of its provider."
        )
    if per_node is None:
        per_node, rest = divmod(ranks, nodes)
        if rest:
            raise ValueError(
                f"num_ranks={ranks} does not divide by num_nodes={nodes} ({taker})."
            )
    if ranks is None:
        ranks = nodes * per_node
    if ranks != nodes * per_node:
        raise ValueError(
            f"num_ranks={ranks} is not num_nodes * ranks_per_node = "
            f"{nodes} * {per_node} ({taker})."
        )
    return {**specification, "num_ranks": ranks, "ranks_per_node": per_node}
