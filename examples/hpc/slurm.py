"""A Parsl configuration: one Slurm job whose workers host all agents.

Fill in what your cluster asks for (partition, account, modules) and try it with

    academy demo examples/hpc/replica_exchange.toml --parsl-config examples/hpc/slurm.py
"""

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

config = Config(
    executors=[
        HighThroughputExecutor(
            label="slurm",
            # No address: listen on every interface of this login node, and let the
            # workers try all of them. The connection is encrypted and authenticated.
            encrypted=True,
            # One worker for each agent: 6 replicas and their coordinator.
            max_workers_per_node=7,
            provider=SlurmProvider(
                partition=None,  # --partition
                account=None,  # --account
                nodes_per_block=1,
                exclusive=False,
                cores_per_node=7,
                walltime="00:10:00",
                # What a job has to do before Python can import academy.
                worker_init="",
                init_blocks=1,
                max_blocks=1,
                launcher=SrunLauncher(),
            ),
        )
    ],
    # The block is there from the start; nothing has to be scaled.
    strategy="none",
)
