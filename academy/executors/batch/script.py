"""What the script of a job runs: one agent, or many side by side.

Of a job that ends, schedulers signal all processes. So a lone agent takes the place of
the script's shell, and a shell with several agents outlives the signal until they have
ended.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from shlex import join, quote
from typing import Self

from academy.executors.resources import ResourceSpec
from academy.launch.task import SPEC

MANY_NODES = ("slurm", "pbs", "torque")
"""Schedulers whose jobs can be shared over several nodes."""

MOST_PLACES = 10_000
"""Agents that one job can have: each is a line of its script and a process."""


@dataclass(frozen=True)
class Worker:
    """The command line that runs one agent.

    Attributes:
        python: the interpreter.
        working_directory: where it runs.
    """

    python: str
    working_directory: str

    def command(self, directory: Path, *more: str) -> str:
        """Return the command that runs the task in a directory."""
        module = ("-m", "academy.run", "--spec", str(directory / SPEC))
        return join((self.python, *module, *more))


@dataclass(frozen=True)
class Slots:
    """The equal parts of a job that agents share, as many on each node."""

    spec: ResourceSpec

    @property
    def nodes(self) -> int:
        """How many nodes."""
        return self.spec.nodes or 1

    @property
    def per_node(self) -> int:
        """How many agents each of them takes."""
        return self.spec.ranks_per_node or 1

    @property
    def count(self) -> int:
        """How many agents the job takes."""
        return self.nodes * self.per_node

    def check(self, scheduler: str, taker: str) -> None:
        """Refuse what cannot be divided.

        Raises:
            ValueError: Says what, and into how many parts.
        """
        if self.count > MOST_PLACES:
            raise ValueError(
                f"{taker} has at most {MOST_PLACES} agents in one job, and "
                f"nodes={self.nodes} times ranks_per_node={self.per_node} are more. "
                "Put agents into one process, with an EventLoopExecutor."
            )
        gpus = self.spec.gpus_per_node or 0
        if gpus % self.per_node:
            raise ValueError(
                f"{taker} divides the GPUs of a node among its agents, and "
                f"gpus_per_node={gpus} cannot be divided by "
                f"ranks_per_node={self.per_node}."
            )
        if self.nodes > 1 and scheduler not in MANY_NODES:
            raise ValueError(
                f"{taker} cannot start agents on several nodes of one {scheduler} job, "
                f"as nodes={self.nodes} asks for: only on those of "
                f"{', '.join(MANY_NODES)}. Use one node, or share_job=False."
            )

    def one(self) -> Self:
        """Return the resources of a single agent."""
        gpus, memory = self.spec.gpus_per_node, self.spec.memory_gb_per_node
        part = {
            "nodes": 1,
            "ranks_per_node": 1,
            "gpus_per_node": gpus and gpus // self.per_node,
            "memory_gb_per_node": memory and memory / self.per_node,
        }
        return replace(self, spec=self.spec.model_copy(update=part))


def alone(spec: ResourceSpec, scheduler: str, worker: Worker, directory: Path) -> str:
    """Return what the job of one agent runs."""
    return "\n".join(
        [
            f"cd {quote(worker.working_directory)}",
            *(f"export {line}" for line in _mpi_variables(spec, scheduler)),
            f"exec {worker.command(directory)}",
        ]
    )


def _mpi_variables(spec: ResourceSpec, scheduler: str) -> list[str]:
    """Return variables that tell an agent how to run a program on all its nodes.

    Source: https://parsl.readthedocs.io/en/stable/userguide/apps/mpi_apps.html
    """
    nodes, ranks_per_node = spec.nodes or 1, spec.ranks_per_node or 1
    ranks = nodes * ranks_per_node
    if ranks == 1:
        return []
    if scheduler == "slurm":
        prefix = ["srun", f"--nodes={nodes}", f"--ntasks={ranks}"]
        prefix.append(f"--ntasks-per-node={ranks_per_node}")
        # Since 22.05, srun does not take this over from sbatch.
        # Source: https://slurm.schedmd.com/srun.html#OPT_cpus-per-task
        if spec.cpus_per_rank is not None:
            prefix.append(f"--cpus-per-task={spec.cpus_per_rank}")
    else:
        prefix = ["mpiexec", "-n", str(ranks), "-ppn", str(ranks_per_node)]
    if spec.launcher_options:
        prefix.append(spec.launcher_options)
    return [
        f"PARSL_MPI_PREFIX={quote(' '.join(prefix))}",
        f"PARSL_NUM_NODES={nodes}",
        f"PARSL_RANKS_PER_NODE={ranks_per_node}",
        f"PARSL_NUM_RANKS={ranks}",
    ]


_RUN = r"""run() {
    trap : TERM INT
    "${@:2}" >"$job/$1/stdout" 2>"$job/$1/stderr" &
    until wait $!; status=$?; ! kill -0 $! 2>/dev/null; do :; done
    echo $status >"$job/$1/status"
}
trap : TERM INT"""

_WAIT = 'while [ -n "$(jobs -rp)" ]; do wait; done'

_ENVIRONMENT = "environment"

# A task of pbsdsh has hardly any environment. It counts nodes by lines of this file.
# Whoever could submit the job has it on the PATH.
# Source: https://github.com/openpbs/openpbs/blob/master/doc/man1/pbsdsh.1B
_PBS_NODES = r"""PATH=$PATH:${PBS_O_PATH:-}
(umask 077; export -p >"$job/environment")
nodes=($(awk '!seen[$0]++ {print NR - 1}' "$PBS_NODEFILE"))"""


def together(
    slots: Slots, scheduler: str, worker: Worker, directories: list[Path]
) -> str:
    """Return what a job of many agents runs; each has a slot, and its own output."""
    job = directories[0].parent
    lines = [f"cd {quote(worker.working_directory)}", f"job={quote(str(job))}", _RUN]
    over_pbs = scheduler != "slurm" and slots.nodes > 1
    if over_pbs:
        lines.append(_PBS_NODES)
    for number, directory in enumerate(directories):
        if scheduler == "slurm":
            start = f"{_srun(slots.spec, slots.per_node)} {worker.command(directory)}"
        else:
            start = _on_node(slots, worker, directory, number)
        lines.append(f"run {directory.name} {start} &")
    lines.append(_WAIT)
    if over_pbs:
        lines.append('rm -f "$job/environment"')
    return "\n".join(lines)


def remove_environment(job: Path) -> None:
    """Remove what a job that was killed could not, as variables may be secret."""
    (job / _ENVIRONMENT).unlink(missing_ok=True)


def _srun(spec: ResourceSpec, per_node: int) -> str:
    """Return the command that gives a process its own cores, memory and GPUs.

    Source: https://slurm.schedmd.com/srun.html
    """
    options = ["--exact", "--nodes=1", "--ntasks=1"]
    if spec.cpus_per_rank is not None:
        options.append(f"--cpus-per-task={spec.cpus_per_rank}")
    if spec.gpus_per_node is not None:
        options.append(f"--gpus-per-node={spec.gpus_per_node // per_node}")
    # Otherwise the first step may take all the memory of the job, and others wait.
    memory = spec.memory_gb_per_node
    share = 0 if memory is None else int(memory * 1024 / per_node)
    options.append(f"--mem={share}M" if share else "--mem=0")
    if spec.launcher_options:
        options.append(spec.launcher_options)
    return " ".join(("srun", *options))


def _on_node(slots: Slots, worker: Worker, directory: Path, number: int) -> str:
    """Return the command that runs one of several agents where there is no srun."""
    node, slot = divmod(number, slots.per_node)
    more = ["--slot", f"{slot}/{slots.per_node}"]
    if slots.spec.gpus_per_node:
        more += ["--gpus-per-node", str(slots.spec.gpus_per_node)]
    command = worker.command(directory, *more)
    if node == 0:
        return command
    environment = quote(str(directory.parent / _ENVIRONMENT))
    cwd = quote(worker.working_directory)
    there = quote(f". {environment}; cd {cwd}; exec {command}")
    return f"pbsdsh -n ${{nodes[{node}]}} -- /bin/bash -c {there}"
