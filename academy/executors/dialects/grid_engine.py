"""Grid Engine, through GridEngineProvider."""

from __future__ import annotations

import re
from typing import Any

from academy.executors.dialects.base import Dialect, Table
from academy.executors.units import megabytes

_ENVIRONMENT = re.compile(r"#\$\s+-pe\s+(\S+)\s+\S+\s*")


# Source: https://manpages.ubuntu.com/manpages/jammy/man1/sge_submit.1.html
class GridEngine(Dialect):
    """Asks Grid Engine."""

    table = Table(
        title="Grid Engine",
        provider="GridEngineProvider",
        directive="#$",
        attributes={
            "nodes": "nodes_per_block",
            "walltime": "walltime",
            "queue": "queue",
        },
        lines={
            "account": "-P {}",
            "gpus_per_node": "-l gpu={}",
            "constraint": "-l {}",
            "reservation": "-ar {}",
            "exclusive": "-l exclusive=true",
            "priority": "-p {}",
        },
        absent={
            "nodes": (
                "a parallel environment of the site spreads a job over nodes, such as "
                'scheduler_options="#$ -pe mpi 64"'
            ),
            "qos": "Grid Engine has queues instead, so say queue",
        },
        says={
            "cpus_per_rank": r"-pe\b",
            "walltime": r"-l.*\bh_rt=",
            "queue": r"-q\b",
            "account": r"-P\b",
            "gpus_per_node": r"-l.*\bgpu=",
            "memory_gb_per_node": r"-l.*\bmem_free=",
            "reservation": r"-ar\b",
            "exclusive": r"-l.*\bexclusive=",
            "priority": r"-p\b",
        },
    )

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        found = filter(None, map(_ENVIRONMENT.fullmatch, self.own))
        self.environment = next((environment[1] for environment in found), None)

    def directives(self) -> list[str]:
        lines = super().directives()
        if self.spec.memory_gb_per_node is not None:
            lines.append(f"-l mem_free={megabytes(self.spec.memory_gb_per_node)}M")
        cores = self.cores_per_node or self.spec.ranks_per_node or 1
        if cores > 1:
            lines.append(self.parallel(cores))
        return lines

    def parallel(self, cores: int) -> str:
        """Ask for slots in the parallel environment that the provider names."""
        if self.environment is None:
            name = (
                "cpus_per_rank" if "cpus_per_rank" in self.asked else "ranks_per_node"
            )
            why = (
                "the names of parallel environments are the site's, so one has to be "
                'in its scheduler_options, such as "#$ -pe smp 1"'
            )
            raise self.no_place(name, why)
        self.own = [line for line in self.own if not _ENVIRONMENT.fullmatch(line)]
        return f"-pe {self.environment} {cores}"
