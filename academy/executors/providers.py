"""Parsl's providers: copied before use, given resources, and asked for their scripts.

A provider writes a job script and submits it. Parsl's blocks and our own batch jobs go
through the same ones.
"""

from __future__ import annotations

import copy
import shlex
import sysconfig
from typing import Any

from parsl.providers import LocalProvider
from parsl.providers.cluster_provider import ClusterProvider

from academy.executors import dialects
from academy.executors.resources import ResourceSpec
from academy.executors.scripts import Script, script_of, submit_script

__all__ = [
    "Script",
    "clone",
    "scheduler_of",
    "script_of",
    "submit_script",
    "with_resources",
]


def clone(provider: Any) -> Any:
    """Return a copy with no jobs, whose workers find this Python environment.

    Calling the constructor again would repeat the directives that it adds to
    scheduler_options. Providers of cloud machines hold live clients and stay shared.
    """
    if not isinstance(provider, ClusterProvider | LocalProvider):
        return provider
    fresh: Any = copy.copy(provider)
    fresh.resources = {}
    worker_init: str = fresh.worker_init
    scripts = shlex.quote(sysconfig.get_path("scripts"))
    if worker_init.strip():
        # What it activates comes first; ours helps if it activates nothing.
        line = f'export PATH="$PATH":{scripts}\n'
    else:
        line = f'export PATH={scripts}:"$PATH"\n'
    fresh.worker_init = f"{worker_init.rstrip()}\n{line}".lstrip()
    return fresh


def scheduler_of(provider: Any) -> str:
    """Return the name of a provider's scheduler (see `JobInfo.scheduler`).

    Raises:
        ValueError: It is the provider of something else.
    """
    return _known(provider, type(provider).__name__)[0]


def with_resources(provider: Any, spec: ResourceSpec, taker: str) -> Any:
    """Return a fresh copy of a provider that asks for these resources.

    Fields that are None stay as the provider has them; scheduler_options and
    worker_init come after its own. `ranks_per_node` with `cpus_per_rank` make the
    cores of a node. `launcher_options` go to its launcher.

    Raises:
        ValueError: This provider has no place for one of them; says what it has.
    """
    _, dialect = _known(provider, taker)
    return dialect(provider, spec, taker).apply()


def _known(provider: Any, taker: str) -> tuple[str, type[dialects.Dialect]]:
    found = dialects.find(provider)
    if found is None:
        names = ", ".join(kind.__name__ for kind in dialects.DIALECTS)
        raise ValueError(
            f"{type(provider).__name__} cannot be asked for resources ({taker}); "
            f"these providers can: {names}."
        )
    return found
