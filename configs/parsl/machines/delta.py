"""Delta (NCSA, Slurm): label "cpu" for its CPU nodes, "gpu" for nodes with A100s.

Written from documentation, never run there. Change what is in capitals.
"""

import psutil
from parsl.addresses import address_by_interface
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

CPU_ACCOUNT = None  # Such as "abcd-delta-cpu"; jobs need one.
GPU_ACCOUNT = None  # Such as "abcd-delta-gpu".
WALLTIME = "00:30:00"  # Of a block.
NODES_PER_BLOCK = 1
MAX_BLOCKS = 1  # Jobs at a time.
WORKERS_PER_CPU_NODE = 128
WORKER_INIT = ""  # Such as "module load python; source ~/venv/bin/activate".

# A CPU node has 2 x 64 cores (one thread each) and 256 GB; a node of four A100 has 64
# cores and 256 GB. There are nodes of four A40, eight A100 and eight MI100 besides.
# Source: https://docs.ncsa.illinois.edu/systems/delta/en/latest/user_guide/architecture.html
CPU_CORES = 128
GPU_CORES = 64
GPUS_PER_NODE = 4

# The partitions, and the constraint, which is a file system that a job needs.
# Source: https://github.com/Parsl/parsl/blob/master/parsl/configs/delta.py and
# https://docs.ncsa.illinois.edu/systems/delta/en/latest/user_guide/running_jobs.html
CPU_PARTITION = "cpu"
GPU_PARTITION = "gpuA100x4"
CONSTRAINT = "scratch"

# The interface by which nodes reach this one.
# Source: https://github.com/globus/globus-compute/blob/main/docs/endpoints/configs/delta.yaml
INTERFACE = "eth6.560"
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
            constraint=CONSTRAINT,
            walltime=WALLTIME,
            nodes_per_block=NODES_PER_BLOCK,
            init_blocks=0,
            max_blocks=MAX_BLOCKS,
            worker_init=WORKER_INIT,
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
            launcher=SrunLauncher(overrides=f"-c {CPU_CORES}"),
        ),
        executor(
            "gpu",
            GPUS_PER_NODE,
            partition=GPU_PARTITION,
            account=GPU_ACCOUNT,
            gpus_per_node=GPUS_PER_NODE,
            launcher=SrunLauncher(overrides=f"-c {GPU_CORES}"),
        ),
    ],
    strategy="simple",
    strategy_period=1,
)
