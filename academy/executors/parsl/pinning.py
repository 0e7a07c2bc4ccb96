"""Which GPUs a worker sees: its share of those that its job has been given.

Workers import this module to run a task, so it must not import Parsl.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# What Parsl sets in each of its workers: for NVIDIA, AMD and Intel.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
_OPTION = "--available-accelerators"
_DONE = "ACADEMY_GPUS_PINNED"


def share_gpus(gpus: int, workers: int | None, taker: str) -> list[str]:
    """Divide the GPUs of a node among its workers; return the numbers that each gets.

    Args:
        gpus: numbered from 0, as the job sees them.
        workers: how many; one for each GPU if None.
        taker: who is asked, for error messages.

    Raises:
        ValueError: They cannot be divided evenly.
    """
    if gpus == 0:
        return []
    workers = gpus if workers is None else workers
    each, rest = divmod(gpus, workers)
    if rest:
        even = [n for n in range(1, gpus + 1) if gpus % n == 0]
        raise ValueError(
            f"gpus_per_node={gpus} cannot be divided among {workers} workers of a node "
            f"({taker}): ask for ranks_per_node={_listed(even)}. To have more workers "
            "than GPUs, put several agents into each, with an EventLoopExecutor."
        )
    first = range(0, gpus, each)
    return [",".join(str(gpu) for gpu in range(n, n + each)) for n in first]


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last


def pin_worker() -> None:
    """Take a share of the job's own GPUs, where Parsl counts a node's from 0.

    A job that was given GPUs 2 and 3 of a node is told so by its environment, unless
    its scheduler hides the others from it. Parsl's workers overwrite that with 0 and 1.
    The worker pool, which is the parent of its workers, still has it.
    """
    if _DONE in os.environ or "PARSL_WORKER_RANK" not in os.environ:
        return
    os.environ[_DONE] = "1"
    pool = Path("/proc", str(os.getppid()))
    try:
        command = _fields(pool / "cmdline")
        before = dict(f.split("=", 1) for f in _fields(pool / "environ") if "=" in f)
    except OSError:  # Not Linux.
        return
    if _OPTION in command:
        shares = command[command.index(_OPTION) + 1 :]
        os.environ.update(own_gpus(shares, before, os.environ))


def own_gpus(
    shares: list[str], before: Mapping[str, str], now: Mapping[str, str]
) -> dict[str, str]:
    """Return what a worker's variables should be, where they are not right.

    Args:
        shares: those of all workers, as the worker pool was given them.
        before: the environment that the scheduler made for the job on this node.
        now: the environment that Parsl made for the worker.
    """
    wanted = [gpu for share in shares for gpu in share.split(",")]
    right = {}
    for variable in VARIABLES:
        given = [gpu for gpu in before.get(variable, "").split(",") if gpu]
        if not given or not all(gpu.isdecimal() for gpu in wanted):
            continue
        if any(int(gpu) >= len(given) for gpu in wanted):
            continue  # They are not counted from 0, but as the node does.
        mine = now.get(variable, "").split(",")
        if all(gpu.isdecimal() and int(gpu) < len(given) for gpu in mine):
            right[variable] = ",".join(given[int(gpu)] for gpu in mine)
    return right


def _fields(path: Path) -> list[str]:
    text = path.read_bytes().decode(errors="surrogateescape")
    return text.rstrip("\0").split("\0")
