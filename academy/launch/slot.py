"""An equal part of a node for each of the agents that share it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

GPU_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
)
"""Where a scheduler tells a job which GPUs of the node are its own."""


def take_slot(slot: str, gpus_per_node: int) -> None:
    """Keep this process to its part of the node's cores and GPUs.

    Args:
        slot: "I/N" for the I-th of N parts, counted from 0.
        gpus_per_node: how many there are, where no variable names them.

    Raises:
        ValueError: This is no slot.
    """
    try:
        index, count = map(int, slot.split("/"))
    except ValueError:
        raise ValueError(f'A slot is like "0/4"; not {slot!r}.') from None
    if not 0 <= index < count:
        raise ValueError(f"Slots are counted from 0, and {slot!r} is behind the last.")
    if hasattr(os, "sched_setaffinity"):  # not on macOS
        cores = part(sorted(os.sched_getaffinity(0)), index, count)
        if cores:
            os.sched_setaffinity(0, cores)
    told = {name: os.environ[name] for name in GPU_VARIABLES if os.environ.get(name)}
    if not told and gpus_per_node:
        every = ",".join(map(str, range(gpus_per_node)))
        told = {"CUDA_VISIBLE_DEVICES": every, "ZE_AFFINITY_MASK": every}
    for name, gpus in told.items():
        os.environ[name] = ",".join(part(gpus.split(","), index, count))


def part(things: Sequence[T], index: int, count: int) -> Sequence[T]:
    """Return one of so many disjoint parts, as equal as they can be."""
    size, rest = divmod(len(things), count)
    first = index * size + min(index, rest)
    return things[first : first + size + (index < rest)]
