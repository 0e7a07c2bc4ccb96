"""Who submits, and all of what: from the resources of a launch to a job's script."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parsl.launchers.base import Launcher
from parsl.providers import (
    GridEngineProvider,
    LocalProvider,
    LSFProvider,
    PBSProProvider,
    SlurmProvider,
    TorqueProvider,
)
from parsl.providers.base import ExecutionProvider

from academy.executors.base import unknown_key
from academy.executors.batch.script import Slots, Worker, alone, together
from academy.executors.providers import (
    Script,
    scheduler_of,
    script_of,
    submit_script,
    with_resources,
)
from academy.executors.resources import ResourceSpec

DEFAULT_WALLTIME = "01:00:00"
"""Of jobs whose provider was named only, and which do not say."""

_PROVIDERS: dict[str, tuple[Any, dict[str, Any]]] = {
    # Parsl's provider would ask for whole nodes.
    "slurm": (SlurmProvider, {"exclusive": False}),
    "pbs": (PBSProProvider, {}),
    "torque": (TorqueProvider, {}),
    # LSF reads #BSUB lines of its standard input, and of a file only if told so.
    "lsf": (LSFProvider, {"bsub_redirection": True}),
    "grid_engine": (GridEngineProvider, {}),
    "local": (LocalProvider, {}),
}


class ScriptLauncher(Launcher):
    """Leaves it to the script which processes it starts, and on which nodes."""

    def __call__(
        self,
        command: str,
        tasks_per_node: int,
        nodes_per_block: int,
        script_dir: str = "",
    ) -> str:
        return command


def find_provider(
    provider: ExecutionProvider | str | os.PathLike[str], label: str | None
) -> Any:
    """Return a provider whose script starts nothing by itself.

    Args:
        provider: the provider, the name of a scheduler, or the path of a Parsl config
            file, for the provider of its executor.
        label: of the executor in the file, if there are several.

    Raises:
        ValueError: This is no provider, or a file without one.
    """
    if isinstance(provider, str) and provider in _PROVIDERS:
        make, options = _PROVIDERS[provider]
        if provider != "local":
            options = options | {"walltime": DEFAULT_WALLTIME}
        return make(launcher=ScriptLauncher(), **options)
    if isinstance(provider, str) and os.sep not in provider and "." not in provider:
        raise unknown_key(provider, _PROVIDERS, "BatchExecutor's list of schedulers")
    if isinstance(provider, str | os.PathLike):
        provider = _provider_of_file(Path(provider).expanduser(), label)
    if not isinstance(provider, ExecutionProvider):
        raise ValueError(
            f"{provider!r} is no provider of Parsl, such as SlurmProvider(...), and "
            f"neither the name of a scheduler ({', '.join(_PROVIDERS)}) nor the path "
            "of a Parsl config file."
        )
    scheduler_of(provider)
    ours: Any = copy.copy(provider)
    ours.launcher = ScriptLauncher()
    return ours


def _provider_of_file(path: Path, label: str | None) -> Any:
    from academy.executors.parsl import choose
    from academy.executors.parsl.config import read_config

    executors = {
        engine.label: engine
        for engine in read_config(path).executors
        if getattr(engine, "provider", None) is not None
    }
    if not executors:
        raise ValueError(f"{path} has no executor with a provider.")
    engine: Any = choose(executors, label, f"the Parsl config {path}")
    return engine.provider


@dataclass(frozen=True)
class Plan:
    """A job that has been checked: all of it but what its tasks are.

    Attributes:
        provider: asks for the resources.
        scheduler: its name.
        spec: the resources.
        worker: how agents are started.
        shared: whether the job is for several agents.
    """

    provider: Any
    scheduler: str
    spec: ResourceSpec
    worker: Worker
    shared: bool

    @classmethod
    def of(
        cls,
        provider: Any,
        spec: ResourceSpec,
        worker: Worker,
        tasks: int | None,
        taker: str,
    ) -> Plan:
        """Check what a job asks for.

        Args:
            provider: asks for it.
            spec: what is asked for.
            worker: how agents are started.
            tasks: how many share the job; None if it is for one agent alone.
            taker: who is asked, for error messages.

        Raises:
            ValueError: What is wrong, or that tasks are more than the job can take.
        """
        scheduler = scheduler_of(provider)
        if tasks is not None:
            slots = Slots(spec)
            slots.check(scheduler, taker)
            if tasks > slots.count:
                raise ValueError(
                    f"{tasks} agents are to share one job of {taker}, which has a "
                    f"place for {slots.count}: nodes={slots.nodes} times "
                    f"ranks_per_node={slots.per_node}. Give submit_kwargs with more."
                )
        # What starts processes is our script, so the options are for that.
        asked = spec.model_copy(update={"launcher_options": None})
        return cls(
            with_resources(provider, asked, taker),
            scheduler,
            spec,
            worker,
            tasks is not None,
        )

    def directories(self, directory: Path, tasks: int) -> list[Path]:
        """Return where each task has its files."""
        if not self.shared:
            return [directory]
        return [directory / str(number) for number in range(tasks)]

    def _arguments(self, directory: Path, tasks: int) -> tuple[Any, str, int, str, str]:
        directories = self.directories(directory, tasks)
        if self.shared:
            slots = Slots(self.spec)
            command = together(slots, self.scheduler, self.worker, directories)
        else:
            command = alone(self.spec, self.scheduler, self.worker, directory)
        per_node = self.spec.ranks_per_node or 1
        return self.provider, command, per_node, directory.name, str(directory)

    def script(self, directory: Path, tasks: int) -> Script:
        """Return what `submit` would submit."""
        return script_of(*self._arguments(directory, tasks))

    def submit(self, directory: Path, tasks: int) -> str:
        """Submit the job; return its id.

        Raises:
            ValueError: The scheduler refuses it.
            OSError: It cannot be asked.
        """
        return submit_script(*self._arguments(directory, tasks))
