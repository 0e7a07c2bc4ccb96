"""Blocks of GPU nodes from any PBS Pro or OpenPBS: copy this file, change the capitals.

There is one worker for each GPU, and it sees no other one: an agent finds its own in
CUDA_VISIBLE_DEVICES (ROCR_VISIBLE_DEVICES, ZE_AFFINITY_MASK).
"""

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import MpiExecLauncher, SimpleLauncher
from parsl.providers import PBSProProvider

QUEUE = None  # None: the server's default; `qstat -Q` lists them.
ACCOUNT = None  # None: your default project.
WALLTIME = "01:00:00"  # Of a block.
NODES_PER_BLOCK = 1
CORES_PER_NODE = 8  # The ncpus to ask for; `pbsnodes -a` shows what nodes have.
GPUS_PER_NODE = 4  # The ngpus to ask for.
SELECT = ""  # More for the select line, such as "gpu_model=a100".
DIRECTIVES = ""  # More lines, such as "#PBS -l place=scatter:excl".
MAX_BLOCKS = 1  # Jobs at a time.
WORKER_INIT = ""  # Such as "module load python; source ~/venv/bin/activate".
# What starts one worker pool on each node, where a block has several: these are the
# options of MPICH's mpiexec; Cray's has "--cpu-bind", and Open MPI's
# "--map-by ppr:1:node".
BIND = "--bind-to"
ONE_PER_NODE = "-ppn 1"


class PBS(PBSProProvider):
    """A PBSProProvider that asks for the state of its jobs four times a minute."""

    status_polling_interval = 15


config = Config(
    executors=[
        HighThroughputExecutor(
            label="pbs_gpu",
            max_workers_per_node=GPUS_PER_NODE,
            available_accelerators=GPUS_PER_NODE,
            # Agents mostly wait, so the number of cores is no limit.
            cores_per_worker=1e-6,
            # A lost node is noticed within half a minute.
            heartbeat_period=5,
            heartbeat_threshold=30,
            # Not the first job that fails ends them all, but three in a row.
            block_error_handler=windowed_error_handler,
            provider=PBS(
                queue=QUEUE,
                account=ACCOUNT,
                walltime=WALLTIME,
                nodes_per_block=NODES_PER_BLOCK,
                cpus_per_node=CORES_PER_NODE,
                select_options=f"ngpus={GPUS_PER_NODE}" + (SELECT and f":{SELECT}"),
                scheduler_options=DIRECTIVES,
                init_blocks=0,
                max_blocks=MAX_BLOCKS,
                worker_init=WORKER_INIT,
                # One node needs no MPI.
                launcher=MpiExecLauncher(bind_cmd=BIND, overrides=ONE_PER_NODE)
                if NODES_PER_BLOCK > 1
                else SimpleLauncher(),
            ),
        )
    ],
    # Not "htex_auto_scale": it can cancel a queued job at every tick.
    strategy="simple",
    strategy_period=1,
)
