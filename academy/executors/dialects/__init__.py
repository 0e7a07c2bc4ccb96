"""How each scheduler is asked for what a launch says, through Parsl's provider.

`DIALECTS` has the class of the provider, the name of the scheduler (see `JobInfo`), and
how to ask it. A provider is found by its nearest ancestor: that of PBS Pro is one of
Torque, too.
"""

from __future__ import annotations

from typing import Any

from parsl import providers

from academy.executors.dialects.base import Dialect
from academy.executors.dialects.grid_engine import GridEngine
from academy.executors.dialects.local import Local
from academy.executors.dialects.lsf import LSF
from academy.executors.dialects.pbs import PBSPro, Torque
from academy.executors.dialects.slurm import Slurm

__all__ = ["DIALECTS", "Dialect", "find"]

DIALECTS: dict[Any, tuple[str, type[Dialect]]] = {
    providers.SlurmProvider: ("slurm", Slurm),
    providers.PBSProProvider: ("pbs", PBSPro),
    providers.TorqueProvider: ("torque", Torque),
    providers.LSFProvider: ("lsf", LSF),
    providers.GridEngineProvider: ("grid_engine", GridEngine),
    providers.LocalProvider: ("local", Local),
}


def find(provider: Any) -> tuple[str, type[Dialect]] | None:
    """Return the scheduler's name and dialect for a provider; None if there is none."""
    known = (DIALECTS[kind] for kind in type(provider).__mro__ if kind in DIALECTS)
    return next(known, None)
