"""Perlmutter (NERSC, Slurm): label "cpu" for its CPU nodes, "gpu" for its GPU nodes.

Written from documentation, never run there. Change what is in capitals.
"""

import psutil
from parsl.addresses import address_by_interface
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

ACCOUNT = None  # Your project, such as "m1234"; None: your default, as set in Iris.
# "regular" for real work. "debug" is what a job without a QOS gets.
# Source: https://docs.nersc.gov/jobs/policy/
QOS = "debug"
WALLTIME = "00:30:00"  # Of a block.
NODES_PER_BLOCK = 1
MAX_BLOCKS = 1  # Jobs at a time.
WORKERS_PER_CPU_NODE = 64
WORKER_INIT = ""  # Such as "module load python; conda activate campaign".

# A CPU node has two EPYC 7763 (2 x 64 cores, 256 threads) and 512 GB; a GPU node one
# (64 cores, 128 threads), 256 GB and four A100.
# Source: https://docs.nersc.gov/beginner-guide/nodetypesfig
THREADS = {"cpu": 256, "gpu": 128}
GPUS_PER_NODE = 4

# The constraint that tells the two apart, --gpus-per-node, srun's "-c" with all threads
# of a node, and the interface hsn0, by which nodes reach this one.
# Source: https://github.com/globus/globus-compute/blob/main/docs/endpoints/configs/perlmutter.yaml
# and https://docs.nersc.gov/jobs/workflow/parsl/
INTERFACE = "hsn0"
# On other machines, as for a preview, nobody needs it.
ADDRESS = (
    address_by_interface(INTERFACE) if INTERFACE in psutil.net_if_addrs() else None
)


class Slurm(SlurmProvider):
    """A SlurmProvider that asks for the state of its jobs four times a minute."""

    status_polling_interval = 15


def executor(constraint: str) -> HighThroughputExecutor:
    """Return what runs workers on nodes of one kind."""
    gpus = GPUS_PER_NODE if constraint == "gpu" else 0
    return HighThroughputExecutor(
        label=constraint,
        address=ADDRESS,
        max_workers_per_node=gpus or WORKERS_PER_CPU_NODE,
        available_accelerators=gpus,
        cores_per_worker=1e-6,
        heartbeat_period=5,
        heartbeat_threshold=30,
        block_error_handler=windowed_error_handler,
        provider=Slurm(
            account=ACCOUNT,
            qos=QOS,
            constraint=constraint,
            gpus_per_node=gpus or None,
            walltime=WALLTIME,
            nodes_per_block=NODES_PER_BLOCK,
            init_blocks=0,
            max_blocks=MAX_BLOCKS,
            worker_init=WORKER_INIT,
            cmd_timeout=120,
            launcher=SrunLauncher(overrides=f"-c {THREADS[constraint]}"),
        ),
    )


config = Config(
    executors=[executor("cpu"), executor("gpu")], strategy="simple", strategy_period=1
)
