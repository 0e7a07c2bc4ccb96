"""LSF, through LSFProvider."""

from __future__ import annotations

from parsl.providers import LSFProvider

from academy.executors.dialects.baked import Baked
from academy.executors.dialects.base import Table
from academy.executors.units import megabytes


# Source: https://www.ibm.com/docs/SSWRJV_10.1.0/lsf_command_ref/bsub.man_top.1.html and
# of "/host": https://www.ibm.com/docs/en/SSWRJV_10.1.0/lsf_release_notes/lsf_relnotes_resourcemanagement10.1.0.9.html
class LSF(Baked):
    """Asks LSF."""

    table = Table(
        title="LSF",
        provider="LSFProvider",
        directive="#BSUB",
        attributes={
            "nodes": "nodes_per_block",
            "walltime": "walltime",
            "queue": "queue",
            "account": "project",
        },
        lines={
            "gpus_per_node": '-gpu "num={}/host"',
            "constraint": '-R "select[{}]"',
            "reservation": "-U {}",
            "exclusive": "-x",
            "priority": "-sp {}",
        },
        absent={"qos": "LSF has queues instead, so say queue"},
        says={
            "nodes": r"-nnodes\b|-n\b",
            "gpus_per_node": r"-gpu\b",
            "memory_gb_per_node": r"-R.*\brusage\[[^\]]*mem=|-M\b",
            "walltime": r"-W\b",
            "queue": r"-q\b",
            "account": r"-P\b",
            "constraint": r"-R.*\bselect\[",
            "reservation": r"-U\b",
            "exclusive": r"-x\b",
            "priority": r"-sp\b",
        },
    )
    parsl = LSFProvider

    def directives(self) -> list[str]:
        cores, fresh = self.cores_per_node, self.fresh
        if fresh.request_by_nodes:
            if cores is not None:
                why = (
                    "it asks for whole nodes, whose cores are all there; with "
                    "request_by_nodes=False it asks for cores"
                )
                raise self.no_place("cpus_per_rank", why)
        elif cores is not None or self.spec.nodes is not None:
            if cores is not None:
                fresh.cores_per_node = cores
            fresh.cores_per_block = fresh.cores_per_node * fresh.nodes_per_block
        lines = super().directives()
        if self.spec.memory_gb_per_node is not None:
            memory = megabytes(self.spec.memory_gb_per_node)
            lines.append(f'-R "rusage[mem={memory}MB/host]"')
        return lines
