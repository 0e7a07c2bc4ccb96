"""Slurm, through SlurmProvider."""

from __future__ import annotations

import re

from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

from academy.executors.dialects.baked import Baked
from academy.executors.dialects.base import Table
from academy.executors.units import megabytes


# Source: https://slurm.schedmd.com/sbatch.html
class Slurm(Baked):
    """Asks Slurm."""

    table = Table(
        title="Slurm",
        provider="SlurmProvider",
        directive="#SBATCH",
        attributes={
            "nodes": "nodes_per_block",
            "walltime": "walltime",
            "queue": "partition",
            "account": "account",
            "qos": "qos",
            "constraint": "constraint",
            "exclusive": "exclusive",
            "gpus_per_node": "gpus_per_node",
        },
        lines={"reservation": "--reservation={}", "priority": "--priority={}"},
        says={
            "nodes": r"--nodes\b|-N",
            "ranks_per_node": r"--ntasks(?:-per-node)?(?![\w-])|-n",
            "cpus_per_rank": r"--cpus-per-task\b|-c",
            "gpus_per_node": r"--gpus(?:-per-\w+)?\b|--gres[= ]gpu\b|-G",
            "memory_gb_per_node": r"--mem(?:-per-\w+)?\b",
            "walltime": r"--time(?![\w-])|-t",
            "queue": r"--partition\b|-p",
            "account": r"--account\b|-A",
            "qos": r"--qos\b|-q",
            "constraint": r"--constraint\b|-C",
            "reservation": r"--reservation\b",
            "exclusive": r"--exclusive\b|--oversubscribe\b|-s",
            "priority": r"--priority\b",
        },
        scripted=("nodes", "ranks_per_node", "cpus_per_rank", "walltime"),
    )
    parsl = SlurmProvider

    def directives(self) -> list[str]:
        if self.spec.gpus_per_node is not None:
            self.keep_kind_of_gpu(self.spec.gpus_per_node)
        if self.cores_per_node is not None:
            # Parsl divides it by the tasks per node.
            self.fresh.cores_per_node = self.cores_per_node
            self.pass_cores_on()
        lines = super().directives()
        if (memory := self.spec.memory_gb_per_node) is not None:
            whole = memory.is_integer()
            self.fresh.mem_per_node = int(memory) if whole else None
            if not whole:
                lines.append(f"--mem={megabytes(memory)}M")
        return lines

    def pass_cores_on(self) -> None:
        """Give launched processes their cores, as srun does not by itself.

        Source: https://slurm.schedmd.com/sbatch.html#OPT_cpus-per-task
        """
        launcher = self.fresh.launcher
        if isinstance(launcher, SrunLauncher):
            options = f" {launcher.overrides} {self.spec.launcher_options or ''}"
            if not re.search(r"\s(?:-c|--cpus-per-task)", options):
                self.set_launcher("--cpus-per-task=$SLURM_CPUS_PER_TASK")

    def keep_kind_of_gpu(self, gpus: int) -> None:
        """Replace the GPUs of the provider's gres, such as gpu:a100:4,nvme:1."""
        entries = (self.fresh.gres or "").split(",")
        others = [entry for entry in entries if not re.match(r"gpu\b", entry)]
        kinds = [found for e in entries if (found := re.match(r"gpu:([A-Za-z]\w*)", e))]
        if kinds and gpus:
            others.append(f"gpu:{kinds[0][1]}:{gpus}")
            self.fresh.gpus_per_node = None
        self.fresh.gres = ",".join(filter(None, others)) or None

    def forget(self, name: str) -> None:
        if name == "gpus_per_node":
            self.keep_kind_of_gpu(0)
        if name == "memory_gb_per_node":
            self.fresh.mem_per_node = None
        if name == "exclusive":
            self.fresh.exclusive = False
        else:
            super().forget(name)
