"""What a launch asks for: some of it goes with the task, the rest shapes its block."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parsl.executors import HighThroughputExecutor, MPIExecutor
from parsl.launchers import SimpleLauncher, SingleNodeLauncher, SrunLauncher
from parsl.providers import LocalProvider, SlurmProvider

from academy.executors.parsl.engine import NotKeptError, arguments_of
from academy.executors.parsl.pinning import share_gpus
from academy.executors.parsl.tasks import NATIVE, taker_of, task_specification
from academy.executors.providers import with_resources
from academy.executors.resources import ResourceSpec

# Names for MPIExecutor's own, for one task.
_OF_MPI_TASKS = {
    "nodes": "num_nodes",
    "ranks_per_node": "ranks_per_node",
    "launcher_options": "launcher_options",
}
# Agents mostly wait, so that the number of cores is no limit to the number of workers.
_NO_CORES = 1e-6


@dataclass(frozen=True)
class Request:
    """What a launch asks for.

    Attributes:
        specification: what Parsl is given with the task.
        block: what only the scheduler can give; None if the block is to be as it is
            configured.
    """

    specification: dict[str, Any] = field(default_factory=dict)
    block: ResourceSpec | None = None


def has_pools(engine: Any) -> bool:
    """Tell whether blocks of other shapes can be made for a Parsl executor."""
    return isinstance(engine, HighThroughputExecutor)


def read_request(
    engine: Any, submit_kwargs: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Request:
    """Divide what a launch asks for into what its task and what its block gets.

    Args:
        engine: the Parsl executor as configured.
        submit_kwargs: what this kind of Parsl executor takes for a task, and the names
            of a ResourceSpec if it has blocks.
        defaults: the same, where the launch says nothing.

    Raises:
        ValueError: Names the key or value that is wrong, and what would be right.
    """
    if not has_pools(engine):
        return Request(task_specification(engine, {**defaults, **submit_kwargs}))
    if isinstance(engine, MPIExecutor):
        return _mpi_request(engine, submit_kwargs, defaults)
    kwargs, usual = dict(submit_kwargs), dict(defaults)
    task = {key: kwargs.pop(key) for key in (NATIVE, "priority") if key in kwargs}
    if "priority" in usual:
        task.setdefault("priority", usual.pop("priority"))
    return Request(task_specification(engine, task), _block(engine, kwargs, usual))


def _block(
    engine: Any, kwargs: Mapping[str, Any], defaults: Mapping[str, Any]
) -> ResourceSpec | None:
    taker = taker_of(engine)
    usual = ResourceSpec.parse(defaults, taker) if defaults else None
    if not kwargs:
        return usual
    return ResourceSpec.parse(kwargs, taker, usual)


def _mpi_request(
    engine: Any, submit_kwargs: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Request:
    kwargs = {**submit_kwargs}
    task = {key: kwargs.pop(key) for key in (NATIVE, "num_ranks") if key in kwargs}
    block = _block(engine, kwargs, defaults)
    asked = {} if block is None else block.given()
    for name, of_task in _OF_MPI_TASKS.items():
        if name in asked:
            task[of_task] = asked.pop(name)
    largest = engine.provider.nodes_per_block
    nodes = task.get("num_nodes", 0)
    if not asked and (nodes <= largest or NATIVE in task):
        return Request(task_specification(engine, task))
    specification = task_specification(engine, task, nodes=nodes)
    # One agent holds all nodes of its block, and programs start on them.
    ranks = specification["ranks_per_node"]
    asked |= {"nodes": nodes, "ranks_per_node": ranks}
    if _has_few_cores(engine.provider):
        asked.setdefault("cpus_per_rank", 1)  # Or they would not fit into the job.
    return Request(specification, ResourceSpec.model_construct(**asked))


def _has_few_cores(provider: Any) -> bool:
    """Tell whether a job has no more than a core of each node by itself."""
    if getattr(provider, "exclusive", False):
        return False
    cores = (getattr(provider, f"{c}_per_node", None) for c in ("cores", "cpus"))
    return all(number in (None, 1) for number in cores)


# --- pools of blocks


def pool_label(label: str, block: ResourceSpec) -> str:
    """Return a name for blocks of a shape: the same for the same one, and readable."""
    asked = block.given()
    words = [label]
    for name, unit in {
        "nodes": "n",
        "ranks_per_node": "r",
        "gpus_per_node": "gpu",
    }.items():
        if name in asked:
            words.append(f"{asked[name]}{unit}")
    if block.walltime is not None:
        hours, minutes, _ = block.walltime.split(":")
        words.append(f"{hours}h{minutes}")
    if block.queue is not None:
        words.append(re.sub(r"\W", "_", block.queue)[:16])
    canonical = json.dumps(asked, sort_keys=True).encode()
    return "-".join([*words, hashlib.sha256(canonical).hexdigest()[:6]])


def describe(block: ResourceSpec) -> str:
    """Return what a shape asks for, in a few words."""
    return ", ".join(f"{name}={value!r}" for name, value in block.given().items())


def changes_for(engine: Any, label: str, block: ResourceSpec) -> dict[str, Any]:
    """Return the arguments in which the executor of a pool differs from its pattern.

    Raises:
        ValueError: The provider or the launcher cannot give that; says what it can.
    """
    taker = taker_of(engine)
    try:
        arguments_of(engine)
    except NotKeptError as e:
        raise ValueError(
            f"{taker} cannot be copied, as it does not keep its argument {e}; so all "
            "its blocks are as they are configured."
        ) from None
    changes: dict[str, Any] = {"label": label, "worker_port": None}
    if isinstance(engine, MPIExecutor):
        changes["max_workers_per_block"] = 1
        provided = block
    else:
        changes |= _workers(engine, block, taker)
        provided = _without_own(engine.provider, block)
    provider: Any = with_resources(engine.provider, provided, taker)
    if block.nodes is not None and not isinstance(engine, MPIExecutor):
        provider.launcher = _launcher(provider, block.nodes, taker)
    provider.min_blocks = provider.init_blocks = 0
    return {**changes, "provider": provider}


def _workers(engine: Any, block: ResourceSpec, taker: str) -> dict[str, Any]:
    """Return how many workers a node has, and what each of them gets of it."""
    changes: dict[str, Any] = {}
    workers, cores = block.ranks_per_node, block.cpus_per_rank
    if workers is not None:
        changes["max_workers_per_node"] = workers
        changes["cores_per_worker"] = _NO_CORES
    if cores is not None:
        changes["cores_per_worker"] = float(cores)
    if block.gpus_per_node is not None:
        if workers is None and not math.isinf(engine.max_workers_per_node):
            usual = engine.max_workers_per_node
            workers = min(usual, block.gpus_per_node) or usual
        shares = share_gpus(block.gpus_per_node, workers, taker)
        changes["available_accelerators"] = shares
        if shares:
            changes["max_workers_per_node"] = len(shares)
    return changes


def _without_own(provider: Any, block: ResourceSpec) -> ResourceSpec:
    """Leave out what workers of this machine share, for nobody else gives it."""
    if not isinstance(provider, LocalProvider):
        return block
    return block.model_copy(update={"gpus_per_node": None, "cpus_per_rank": None})


def _launcher(provider: Any, nodes: int, taker: str) -> Any:
    """Return a launcher that starts workers on all nodes, as not all of them do."""
    launcher = provider.launcher
    if nodes == 1 or not isinstance(launcher, SimpleLauncher | SingleNodeLauncher):
        return launcher
    if isinstance(provider, SlurmProvider):
        # Since Slurm 22.05 srun does not take this over from sbatch.
        return SrunLauncher(overrides="--cpus-per-task=$SLURM_CPUS_ON_NODE")
    raise ValueError(
        f"nodes={nodes} needs a launcher that starts workers on each node, and the "
        f"provider of {taker} has a {type(launcher).__name__}: give it a "
        "MpiExecLauncher, AprunLauncher or the like."
    )
