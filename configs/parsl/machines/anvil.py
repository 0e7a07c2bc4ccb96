"""Anvil (Purdue, Slurm): label "cpu" for whole CPU nodes, "gpu" for nodes with A100s.

Written from documentation, never run there. Change what is in capitals.
"""

import psutil
from parsl.addresses import address_by_interface
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

CPU_ACCOUNT = None  # Your allocations; `mybalance` on a login node lists them.
GPU_ACCOUNT = None
WALLTIME = "00:30:00"  # Of a block.
NODES_PER_BLOCK = 1
MAX_BLOCKS = 1  # Jobs at a time.
WORKERS_PER_CPU_NODE = 128

# Nodes of "wholenode" (which belong to one job) and of "gpu" (which are shared) have
# 128 cores; those of "gpu", four GPUs. There are "wide", "highmem", "shared" and
# "debug" besides.
# Source: https://www.rcac.purdue.edu/knowledge/anvil/run/partitions and
# https://radicalpilot.readthedocs.io/en/stable/supported/anvil.html
CPU_PARTITION = "wholenode"
GPU_PARTITION = "gpu"
CORES_PER_NODE = 128

# What to ask of a GPU node, and the modules that belong there.
# Source: https://github.com/Parsl/parsl/blob/master/parsl/configs/anvil.py
GPUS_PER_NODE = 1
CORES_OF_GPU_NODE = 4
MEMORY_GB_OF_GPU_NODE = 50
CPU_WORKER_INIT = ""  # Such as "module load modtree/cpu; source ~/venv/bin/activate".
GPU_WORKER_INIT = "module load modtree/gpu"

# srun, and the interface by which nodes reach this one.
# Source: https://github.com/globus/globus-compute/blob/main/docs/endpoints/configs/anvil.yaml
INTERFACE = "ib0"
# On other machines, as for a preview, nobody needs it.
ADDRESS = (
    address_by_interface(INTERFACE) if INTERFACE in psutil.net_if_addrs() else None
)


class Slurm(SlurmProvider):
    """A SlurmProvider that asks for the state of its jobs four times a minute."""

    status_polling_interval = 15


def executor(label: str, workers: int, **provider: object) -> HighThroughputExecutor:
    """Return what runs workers on nodes of one kind."""
    return HighThroughputExecutor(
        label=label,
        address=ADDRESS,
        max_workers_per_node=workers,
        available_accelerators=provider.get("gpus_per_node", 0),
        cores_per_worker=1e-6,
        heartbeat_period=5,
        heartbeat_threshold=30,
        block_error_handler=windowed_error_handler,
        provider=Slurm(
            walltime=WALLTIME,
            nodes_per_block=NODES_PER_BLOCK,
            init_blocks=0,
            max_blocks=MAX_BLOCKS,
            # Since Slurm 22.05 srun does not take this over from sbatch.
            launcher=SrunLauncher(overrides="--cpus-per-task=$SLURM_CPUS_ON_NODE"),
            **provider,
        ),
    )


config = Config(
    executors=[
        executor(
            "cpu",
            WORKERS_PER_CPU_NODE,
            partition=CPU_PARTITION,
            account=CPU_ACCOUNT,
            cores_per_node=CORES_PER_NODE,
            worker_init=CPU_WORKER_INIT,
        ),
        executor(
            "gpu",
            GPUS_PER_NODE,
            partition=GPU_PARTITION,
            account=GPU_ACCOUNT,
            gpus_per_node=GPUS_PER_NODE,
            cores_per_node=CORES_OF_GPU_NODE,
            mem_per_node=MEMORY_GB_OF_GPU_NODE,
            exclusive=False,
            worker_init=GPU_WORKER_INIT,
        ),
    ],
    strategy="simple",
    strategy_period=1,
)
