"""This machine, through LocalProvider."""

from __future__ import annotations

from academy.executors.dialects.base import Dialect, Table

_NO_SCHEDULER = "there is no scheduler on this machine"


class Local(Dialect):
    """Asks nobody."""

    table = Table(
        title="this machine",
        provider="LocalProvider",
        directive="#",
        attributes={"nodes": "nodes_per_block"},
        absent={
            "nodes": "this machine is one node",
            "cpus_per_rank": "all processes share the cores of this machine",
            "gpus_per_node": "all processes share the GPUs of this machine",
            "memory_gb_per_node": "all processes share the memory of this machine",
            **dict.fromkeys(
                (
                    *(
                        "walltime",
                        "queue",
                        "account",
                        "qos",
                        "constraint",
                        "reservation",
                    ),
                    *("exclusive", "priority", "scheduler_options"),
                ),
                f"{_NO_SCHEDULER}; it takes nodes=1, ranks_per_node, worker_init and "
                "launcher_options",
            ),
        },
    )

    def own_lines(self) -> list[str]:
        return []

    def raw_lines(self) -> list[str]:
        return []
