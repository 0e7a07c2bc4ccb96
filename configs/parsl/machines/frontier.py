"""Frontier (OLCF, Slurm): nodes with eight GPUs, one worker on each of them.

Written from documentation, never run there. Change what is in capitals.
"""

import psutil
from parsl.addresses import address_by_interface
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

ACCOUNT = None  # Your project, such as "ABC123"; jobs need one.
# "batch" or "extended" (for long jobs on few nodes).
# Source: https://docs.olcf.ornl.gov/systems/frontier_user_guide.html#batch-partition-queue-policy
PARTITION = "batch"
WALLTIME = "01:00:00"  # Of a block.
NODES_PER_BLOCK = 1
MAX_BLOCKS = 1  # Jobs at a time.
WORKER_INIT = ""  # Such as "module load cray-python; source ~/venv/bin/activate".

# Four MI250X of two dies are eight GPUs to Slurm and in ROCR_VISIBLE_DEVICES, where a
# worker finds its own. Of 64 cores, eight are kept for the system (-S 8).
# Source: https://docs.olcf.ornl.gov/systems/frontier_user_guide.html#frontier-compute-nodes
GPUS_PER_NODE = 8
CORES_PER_NODE = 56
# The cores next to each GPU: with a worker on each of the eight, and only then,
# CPU_AFFINITY = "list:49-55:57-63:17-23:25-31:1-7:9-15:33-39:41-47".
# Source: the same.
CPU_AFFINITY = "none"

# srun, and the interface hsn0, by which nodes reach this one.
# Source: https://docs.olcf.ornl.gov/software/workflows/parsl.html
INTERFACE = "hsn0"
# On other machines, as for a preview, nobody needs it.
ADDRESS = (
    address_by_interface(INTERFACE) if INTERFACE in psutil.net_if_addrs() else None
)


class Slurm(SlurmProvider):
    """A SlurmProvider that asks for the state of its jobs four times a minute."""

    status_polling_interval = 15


config = Config(
    executors=[
        HighThroughputExecutor(
            label="frontier",
            address=ADDRESS,
            max_workers_per_node=GPUS_PER_NODE,
            available_accelerators=GPUS_PER_NODE,
            cpu_affinity=CPU_AFFINITY,
            cores_per_worker=1e-6,
            heartbeat_period=5,
            heartbeat_threshold=30,
            block_error_handler=windowed_error_handler,
            provider=Slurm(
                partition=PARTITION,
                account=ACCOUNT,
                walltime=WALLTIME,
                nodes_per_block=NODES_PER_BLOCK,
                gpus_per_node=GPUS_PER_NODE,
                init_blocks=0,
                max_blocks=MAX_BLOCKS,
                worker_init=WORKER_INIT,
                cmd_timeout=60,
                launcher=SrunLauncher(overrides=f"-c {CORES_PER_NODE}"),
            ),
        )
    ],
    strategy="simple",
    strategy_period=1,
)
