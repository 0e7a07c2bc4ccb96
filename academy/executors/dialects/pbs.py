"""PBS Pro and Torque, through PBSProProvider and TorqueProvider."""

from __future__ import annotations

import re
from typing import Any

from academy.executors.dialects.base import Dialect, Table
from academy.executors.units import megabytes

_PBS_ATTRIBUTES = {
    "nodes": "nodes_per_block",
    "walltime": "walltime",
    "queue": "queue",
    "account": "account",
}
_PBS_SAYS = {
    "walltime": r"-l.*\bwalltime=",
    "queue": r"-q",
    "account": r"-A",
    "priority": r"-p",
}


# Source: https://github.com/openpbs/openpbs/blob/master/doc/man1/pbs_resources.7B
class PBSPro(Dialect):
    """Asks PBS Pro or OpenPBS."""

    table = Table(
        title="PBS",
        provider="PBSProProvider",
        directive="#PBS",
        attributes=_PBS_ATTRIBUTES,
        lines={"priority": "-p {}"},
        absent={"qos": "PBS has queues instead, so say queue"},
        says={
            **_PBS_SAYS,
            "nodes": r"-l.*\b(?:select|nodes)=",
            "exclusive": r"-l.*\bplace=",
        },
    )

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        options = (self.fresh.select_options or "").split(":")
        pairs = (option.partition("=") for option in options if option)
        self.chunk = {name: value for name, _, value in pairs}
        self.chunk_before = dict(self.chunk)
        arranged = re.search(r"place=(free|pack|v?scatter)\b", "\n".join(self.own))
        self.arrangement = arranged[1] if arranged else None

    def directives(self) -> list[str]:
        spec = self.spec
        if spec.ranks_per_node is not None:
            self.chunk["mpiprocs"] = str(spec.ranks_per_node)
            cores = max(spec.ranks_per_node, self.fresh.cpus_per_node)
            self.fresh.cpus_per_node = cores
        if self.cores_per_node is not None:
            self.fresh.cpus_per_node = self.cores_per_node
        if spec.gpus_per_node is not None:
            self.chunk["ngpus"] = str(spec.gpus_per_node)
        if spec.memory_gb_per_node is not None:
            self.chunk["mem"] = f"{megabytes(spec.memory_gb_per_node)}mb"
        if spec.constraint is not None:
            self.constrain(spec.constraint)
        if spec.reservation is not None:
            self.reserve(spec.reservation)
        if self.chunk != self.chunk_before:
            self.write_chunk()
        return [*super().directives(), *self.place()]

    def write_chunk(self) -> None:
        before = self.fresh.select_options
        if before and "+" in before:
            changed = {
                n: v for n, v in self.chunk.items() if v != self.chunk_before.get(n)
            }
            raise ValueError(
                f"select_options={before!r} of the provider are of several chunks, so "
                f"there is no place for {changed} ({self.taker})."
            )
        options = (f"{name}={value}" for name, value in self.chunk.items())
        self.fresh.select_options = ":".join(options)

    def constrain(self, constraint: str) -> None:
        for pair in constraint.split(":"):
            if not re.fullmatch(r"[\w.]+=[\w.@/-]+", pair):
                why = "PBS reads name=value, such as 'system=polaris'"
                raise self.no_place("constraint", why)
            name, _, value = pair.partition("=")
            if name in ("ncpus", "ngpus", "mem", "mpiprocs"):
                why = f"there is a field for {name}"
                raise self.no_place("constraint", why)
            self.chunk[name] = value

    def reserve(self, reservation: str) -> None:
        """Submit to a reservation, which is a queue: R17.server is that of R17."""
        if self.spec.queue is not None:
            queue = reservation.partition(".")[0]
            why = f"a reservation of PBS is a queue, so say queue={queue!r} alone"
            raise self.no_place("reservation", why)
        self.fresh.queue = reservation.partition(".")[0]

    def place(self) -> list[str]:
        """Say that nodes are different ones, and whether they are shared."""
        spec = self.spec
        said = any(name == "exclusive" for name, _ in self.saying(self.own + self.raw))
        if said or (spec.exclusive is None and (spec.nodes or 1) == 1):
            return []
        parts = []
        if self.arrangement is not None:
            parts.append(self.arrangement)
        elif self.fresh.nodes_per_block > 1:
            parts.append("scatter")
        if spec.exclusive is not None:
            parts.append("exclhost" if spec.exclusive else "shared")
        return [f"-l place={':'.join(parts)}"]


# Source: https://docs.adaptivecomputing.com/torque/4-1-4/Content/topics/2-jobs/requestingRes.htm
# and of qos, advres and naccesspolicy, which the scheduler Moab reads:
# https://docs.adaptivecomputing.com/mwm/7-2-7/Content/topics/resourceManagers/rmextensions.html
class Torque(Dialect):
    """Asks Torque, and Moab where Torque has no word for it."""

    table = Table(
        title="Torque",
        provider="TorqueProvider",
        directive="#PBS",
        attributes=_PBS_ATTRIBUTES,
        lines={
            "qos": "-l qos={}",
            "reservation": "-l advres={}",
            "priority": "-p {}",
        },
        says={
            **_PBS_SAYS,
            "nodes": r"-l.*\bnodes=",
            "memory_gb_per_node": r"-l.*\bp?v?mem=",
            "qos": r"-l.*\bqos=",
            "reservation": r"-l.*\badvres=",
            "exclusive": r"-l.*\bnaccesspolicy=|-n\b",
        },
    )

    # What Parsl's template asks for, where there is no place for more.
    chunk = "nodes=${nodes_per_block}:ppn=${tasks_per_node}"

    def directives(self) -> list[str]:
        spec = self.spec
        ranks = spec.ranks_per_node or 1
        chunk = self.chunk
        if spec.cpus_per_rank is not None or spec.ranks_per_node is not None:
            cores = ranks * (spec.cpus_per_rank or 1)
            chunk = chunk.replace("${tasks_per_node}", str(cores))
        if spec.gpus_per_node:
            chunk += f":gpus={spec.gpus_per_node}"
        if spec.constraint is not None:
            if not re.fullmatch(r"[\w.:=-]+", spec.constraint):
                why = "Torque reads properties, such as 'ib:bigmem'"
                raise self.no_place("constraint", why)
            chunk += f":{spec.constraint}"
        if chunk != self.chunk:
            self.change_template(chunk)
        lines = super().directives()
        if spec.memory_gb_per_node is not None:
            # It is that of the job.
            of_job = spec.memory_gb_per_node * self.fresh.nodes_per_block
            lines.append(f"-l mem={megabytes(of_job)}mb")
        if spec.exclusive is not None:
            policy = "singlejob" if spec.exclusive else "shared"
            lines.append(f"-l naccesspolicy={policy}")
        return lines

    def change_template(self, chunk: str) -> None:
        template = self.fresh.template_string
        if self.chunk not in template:
            raise ValueError(
                f"The template_string of {type(self.fresh).__name__} does not ask for "
                f"{self.chunk!r}, so there is no place for {chunk!r} ({self.taker})."
            )
        self.fresh.template_string = template.replace(self.chunk, chunk)
