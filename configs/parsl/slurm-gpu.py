"""Blocks of GPU nodes from any Slurm: copy this file and change what is in capitals.

There is one worker for each GPU, and it sees no other one: an agent finds its own in
CUDA_VISIBLE_DEVICES (ROCR_VISIBLE_DEVICES, ZE_AFFINITY_MASK).
"""

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

PARTITION = None  # `sinfo -o "%P %G"` lists partitions and their GPUs.
ACCOUNT = None  # None: your default; `sacctmgr show associations user=$USER`.
WALLTIME = "01:00:00"  # Of a block. Slurm counts whole minutes.
NODES_PER_BLOCK = 1
GPUS_PER_NODE = 4
GRES = None  # Such as "gpu:a100:4", where --gpus-per-node is not understood.
MAX_BLOCKS = 1  # Jobs at a time.
EXCLUSIVE = True  # Whole nodes; if False, say how many cores of a node:
CORES_PER_NODE = None
WORKER_INIT = ""  # Such as "module load python; source ~/venv/bin/activate".


class Slurm(SlurmProvider):
    """A SlurmProvider that asks for the state of its jobs four times a minute."""

    status_polling_interval = 15


config = Config(
    executors=[
        HighThroughputExecutor(
            label="slurm_gpu",
            max_workers_per_node=GPUS_PER_NODE,
            available_accelerators=GPUS_PER_NODE,
            # Agents mostly wait, so the number of cores is no limit.
            cores_per_worker=1e-6,
            # A lost node is noticed within half a minute.
            heartbeat_period=5,
            heartbeat_threshold=30,
            # Not the first job that fails ends them all, but three in a row.
            block_error_handler=windowed_error_handler,
            provider=Slurm(
                partition=PARTITION,
                account=ACCOUNT,
                walltime=WALLTIME,
                nodes_per_block=NODES_PER_BLOCK,
                gpus_per_node=None if GRES else GPUS_PER_NODE,
                gres=GRES,
                cores_per_node=CORES_PER_NODE,
                exclusive=EXCLUSIVE,
                init_blocks=0,
                max_blocks=MAX_BLOCKS,
                worker_init=WORKER_INIT,
                # Since Slurm 22.05 srun does not take this over from sbatch.
                launcher=SrunLauncher(overrides="--cpus-per-task=$SLURM_CPUS_ON_NODE"),
            ),
        )
    ],
    # Not "htex_auto_scale": it can cancel a queued job at every tick.
    strategy="simple",
    strategy_period=1,
)
