"""Parsl's providers: copied before use, given resources, and asked for their scripts.

A provider writes a job script and submits it. Parsl's blocks and our own batch jobs go
through the same ones.
"""

from __future__ import annotations

import copy
import shlex
import sysconfig
from dataclasses import dataclass
from typing import Any

from parsl.providers import LocalProvider
from parsl.providers.cluster_provider import ClusterProvider

from academy.executors.resources import ResourceSpec


@dataclass(frozen=True)
class Script:
    """A job script, and the command that submits it.

    Attributes:
        text: all of the file.
        command: what the provider would run, such as "sbatch /path/of/the/script".
    """

    text: str
    command: str


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
    """Return the name of a provider's scheduler (see `JobInfo.scheduler`)."""
    raise NotImplementedError


def with_resources(provider: Any, spec: ResourceSpec, taker: str) -> Any:
    """Return a fresh copy of a provider that asks for these resources.

    Fields that are None stay as the provider has them; scheduler_options and
    worker_init come after its own. `ranks_per_node` with `cpus_per_rank` make the
    cores of a node. `launcher_options` go to its launcher.

    Raises:
        ValueError: This provider has no place for one of them; says what it has.
    """
    raise NotImplementedError


def script_of(
    provider: Any, command: str, tasks_per_node: int, name: str, directory: str
) -> Script:
    """Return what `submit` of this provider would submit, without submitting it.

    Args:
        provider: of a cluster, or of this machine; not changed.
        command: what the job runs.
        tasks_per_node: as for `submit`.
        name: of the job; the script says exactly this, without a time stamp.
        directory: where its script and outputs are.
    """
    raise NotImplementedError


def submit_script(
    provider: Any, command: str, tasks_per_node: int, name: str, directory: str
) -> str:
    """Submit the very script that `script_of` returns; return the job's id.

    Raises:
        ValueError: The scheduler refuses it; in its words.
        OSError: Its command cannot be run.
    """
    raise NotImplementedError
