"""Midway3 (University of Chicago, Slurm): label "cpu" for CPU nodes, "gpu" for GPUs.

Written from documentation, never run there. Change what is in capitals.
"""

import psutil
from parsl.addresses import address_by_interface
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

# Such as "pi-drpepper"; jobs on Midway3 need one.
# Source: https://rcc-uchicago.github.io/user-guide/midway23/midway_jobs_overview/
ACCOUNT = None
WALLTIME = "01:00:00"  # Of a block; 36 hours at most on these partitions.
NODES_PER_BLOCK = 1
MAX_BLOCKS = 1  # Jobs at a time.
WORKERS_PER_CPU_NODE = 48
WORKER_INIT = ""  # Such as "module load python; source ~/venv/bin/activate".

# Nodes of both have 48 cores and 192 GB; those of "gpu", four V100 or four RTX 6000,
# between which a constraint chooses. There are "amd" (128 cores) and "bigmem" besides.
# Source: https://rcc-uchicago.github.io/user-guide/partitions/ and
# https://rcc-uchicago.github.io/user-guide/midway23/midway_partitions/
CPU_PARTITION = "caslake"
GPU_PARTITION = "gpu"
GPU_CONSTRAINT = None  # Such as "v100" or "rtx6000".
CORES_PER_NODE = 48
GPUS_PER_NODE = 4

# srun, and the interface by which nodes reach this one.
# Source: https://github.com/Parsl/parsl/blob/master/parsl/configs/midway.py and
# https://github.com/globus/globus-compute/blob/main/docs/endpoints/configs/midway.yaml
INTERFACE = "bond0"
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
        # The documentation asks for GPUs with --gres.
        available_accelerators=GPUS_PER_NODE if "gres" in provider else 0,
        cores_per_worker=1e-6,
        heartbeat_period=5,
        heartbeat_threshold=30,
        block_error_handler=windowed_error_handler,
        provider=Slurm(
            account=ACCOUNT,
            walltime=WALLTIME,
            nodes_per_block=NODES_PER_BLOCK,
            cores_per_node=CORES_PER_NODE,
            init_blocks=0,
            max_blocks=MAX_BLOCKS,
            worker_init=WORKER_INIT,
            # Since Slurm 22.05 srun does not take this over from sbatch.
            launcher=SrunLauncher(overrides=f"--cpus-per-task={CORES_PER_NODE}"),
            **provider,
        ),
    )


config = Config(
    executors=[
        executor("cpu", WORKERS_PER_CPU_NODE, partition=CPU_PARTITION),
        executor(
            "gpu",
            GPUS_PER_NODE,
            partition=GPU_PARTITION,
            constraint=GPU_CONSTRAINT,
            gres=f"gpu:{GPUS_PER_NODE}",
        ),
    ],
    strategy="simple",
    strategy_period=1,
)
