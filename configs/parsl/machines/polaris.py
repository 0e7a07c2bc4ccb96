"""Polaris (ALCF, PBS Pro): nodes with four A100, one worker on each GPU.

Written from documentation, never run there. Change what is in capitals.
"""

import psutil
from parsl.addresses import address_by_interface
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import MpiExecLauncher
from parsl.providers import PBSProProvider

ACCOUNT = None  # Your project; jobs need one.
# "debug" (1 or 2 nodes, up to 1 hour), "debug-scaling" (up to 10 nodes, 1 hour, one job
# at a time), "preemptable" (up to 10 nodes, 72 hours), "capacity" (up to 4 nodes, 168
# hours), "prod" (10 nodes and more, up to 24 hours).
# Source: https://docs.alcf.anl.gov/polaris/running-jobs/
QUEUE = "debug"
WALLTIME = "01:00:00"  # Of a block.
NODES_PER_BLOCK = 1
MAX_BLOCKS = 1  # Jobs at a time.
# Every job says which file systems it needs.
# Source: https://docs.alcf.anl.gov/polaris/running-jobs/
FILESYSTEMS = "home:eagle"
WORKER_INIT = ""  # Such as "module load conda; conda activate campaign".

# Four A100 and 32 cores with two threads each; the GPUs are numbered against the cores,
# hence "block-reverse".
# Source: https://docs.alcf.anl.gov/polaris/running-jobs/using-gpus/ and
# https://docs.alcf.anl.gov/polaris/workflows/parsl/
GPUS_PER_NODE = 4
THREADS_PER_NODE = 64

# The launcher, its options, ngpus on the select line, the start method (forked workers
# may hang under mpiexec), and the interface bond0, by which nodes reach this one.
# Source: https://docs.alcf.anl.gov/polaris/workflows/parsl/ and
# https://github.com/Parsl/parsl/blob/master/parsl/configs/polaris.py
INTERFACE = "bond0"
# On other machines, as for a preview, nobody needs it.
ADDRESS = (
    address_by_interface(INTERFACE) if INTERFACE in psutil.net_if_addrs() else None
)


class PBS(PBSProProvider):
    """A PBSProProvider that asks for the state of its jobs four times a minute."""

    status_polling_interval = 15


config = Config(
    executors=[
        HighThroughputExecutor(
            label="polaris",
            address=ADDRESS,
            max_workers_per_node=GPUS_PER_NODE,
            available_accelerators=GPUS_PER_NODE,
            cpu_affinity="block-reverse",
            cores_per_worker=1e-6,
            heartbeat_period=5,
            heartbeat_threshold=30,
            block_error_handler=windowed_error_handler,
            provider=PBS(
                account=ACCOUNT,
                queue=QUEUE,
                walltime=WALLTIME,
                nodes_per_block=NODES_PER_BLOCK,
                cpus_per_node=THREADS_PER_NODE,
                select_options=f"ngpus={GPUS_PER_NODE}",
                scheduler_options=f"#PBS -l filesystems={FILESYSTEMS}",
                init_blocks=0,
                max_blocks=MAX_BLOCKS,
                worker_init=WORKER_INIT,
                launcher=MpiExecLauncher(
                    bind_cmd="--cpu-bind",
                    overrides=f"--depth={THREADS_PER_NODE} --ppn 1",
                ),
            ),
        )
    ],
    strategy="simple",
    strategy_period=1,
)
