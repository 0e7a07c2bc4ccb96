"""Expanse (SDSC, Slurm): label "cpu" for its CPU nodes, "gpu" for nodes with V100s.

Written from documentation, never run there. Change what is in capitals.
"""

import psutil
from parsl.addresses import address_by_interface
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

ACCOUNT = None  # Your allocation, such as "abc123"; jobs need one.
WALLTIME = "01:00:00"  # Of a block.
NODES_PER_BLOCK = 1
MAX_BLOCKS = 1  # Jobs at a time.
WORKERS_PER_CPU_NODE = 128
# Modules differ between the two kinds of nodes: "module load cpu", "module load gpu".
# Source: https://github.com/sdsc-hpc-training-org/expanse-101
CPU_WORKER_INIT = ""
GPU_WORKER_INIT = ""

# A CPU node has 2 x 64 cores and 256 GB; a GPU node 2 x 20 cores and four V100.
# Source: https://access-ci.atlassian.net/wiki/spaces/ACCESSdocumentation/pages/467111296
CPU_CORES = 128
GPU_CORES = 40
GPUS_PER_NODE = 4

# Whole nodes; "shared" and "gpu-shared" give parts of them, "debug" and "gpu-debug" are
# for trying. The user guide's examples ask for GPUs with --gpus, which counts those of
# the whole job; --gpus-per-node is the same request in terms of a node.
# Source: https://www.sdsc.edu/support/user_guides/expanse.html#running and
# https://github.com/Parsl/parsl/blob/master/parsl/configs/expanse.py
CPU_PARTITION = "compute"
GPU_PARTITION = "gpu"

# srun, and the interface by which nodes reach this one.
# Source: https://github.com/globus/globus-compute/blob/main/docs/endpoints/configs/expanse.yaml
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
            account=ACCOUNT,
            walltime=WALLTIME,
            nodes_per_block=NODES_PER_BLOCK,
            init_blocks=0,
            max_blocks=MAX_BLOCKS,
            **provider,
        ),
    )


config = Config(
    executors=[
        executor(
            "cpu",
            WORKERS_PER_CPU_NODE,
            partition=CPU_PARTITION,
            worker_init=CPU_WORKER_INIT,
            launcher=SrunLauncher(overrides=f"--cpus-per-task={CPU_CORES}"),
        ),
        executor(
            "gpu",
            GPUS_PER_NODE,
            partition=GPU_PARTITION,
            gpus_per_node=GPUS_PER_NODE,
            worker_init=GPU_WORKER_INIT,
            launcher=SrunLauncher(overrides=f"--cpus-per-task={GPU_CORES}"),
        ),
    ],
    strategy="simple",
    strategy_period=1,
)
