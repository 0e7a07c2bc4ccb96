"""Workers on all nodes of the batch job in which the program itself runs.

For a job script that starts manager and exchange as well: see examples/hpc. Outside of
a job, the workers are on this machine.
"""

import os

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import SimpleLauncher, SrunLauncher, WrappedLauncher
from parsl.launchers.base import Launcher
from parsl.providers import LocalProvider

WORKERS_PER_NODE = 8  # An agent each, or many with an EventLoopExecutor.
GPUS_PER_NODE = 0  # If there are some: as many workers, and each sees one of them.


def nodes_and_launcher() -> tuple[int, Launcher]:
    """Return how many nodes the job has, and what starts a worker pool on each."""
    if nodefile := os.environ.get("PBS_NODEFILE"):
        with open(nodefile) as file:
            nodes = len(set(file))
        # Every PBS has pbsdsh; it does not pass the environment on.
        return nodes, WrappedLauncher('pbsdsh -- /usr/bin/env "PATH=$PATH"')
    if nodes := int(os.environ.get("SLURM_JOB_NUM_NODES", 0)):
        each = "--ntasks-per-node=1 --cpus-per-task=$SLURM_CPUS_ON_NODE"
        return nodes, SrunLauncher(overrides=f"--nodes={nodes} {each}")
    return 1, SimpleLauncher()


NODES, LAUNCHER = nodes_and_launcher()

config = Config(
    executors=[
        HighThroughputExecutor(
            label="in_job",
            max_workers_per_node=GPUS_PER_NODE or WORKERS_PER_NODE,
            available_accelerators=GPUS_PER_NODE,
            # Agents mostly wait, so the number of cores is no limit.
            cores_per_worker=1e-6,
            # A lost node is noticed within half a minute.
            heartbeat_period=5,
            heartbeat_threshold=30,
            block_error_handler=windowed_error_handler,
            provider=LocalProvider(
                nodes_per_block=NODES,
                init_blocks=1,
                min_blocks=1,
                max_blocks=1,
                launcher=LAUNCHER,
            ),
        )
    ],
    strategy="simple",
    strategy_period=1,
)
