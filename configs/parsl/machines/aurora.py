"""Aurora (ALCF, PBS Pro): nodes with six GPUs of two tiles, one worker on each tile.

Written from documentation, never run there. Change what is in capitals.
"""

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import MpiExecLauncher
from parsl.providers import PBSProProvider

ACCOUNT = None  # Your project; jobs need one.
# "debug" (1 or 2 nodes, up to 1 hour, one job at a time), "debug-scaling" (2 to 31
# nodes, up to 1 hour), "prod" (up to 6 hours on up to 512 nodes, 24 hours on
# 1,920 and more).
# Source: https://docs.alcf.anl.gov/aurora/running-jobs-aurora/
QUEUE = "debug"
WALLTIME = "01:00:00"  # Of a block.
NODES_PER_BLOCK = 1
MAX_BLOCKS = 1  # Jobs at a time.
# Every job says which file systems it needs.
# Source: https://docs.alcf.anl.gov/aurora/running-jobs-aurora/
FILESYSTEMS = "home:flare"
WORKER_INIT = ""  # Such as "module load frameworks; source ~/venv/bin/activate".
# By which nodes reach this one, such as "10.1.2.3"; None: they try all of its
# addresses. The documentation names no interface.
ADDRESS = None

# A worker's tile, as "GPU.tile", is in its ZE_AFFINITY_MASK; a launch that asks for
# gpus_per_node gets whole GPUs, 0 to 5.
# Source: https://docs.alcf.anl.gov/aurora/running-jobs-aurora/
TILES = [f"{gpu}.{tile}" for gpu in range(6) for tile in range(2)]
# 2 x 52 cores with two threads each. The first core of each socket is kept for the
# system, and a tile is best served from its own socket: with a worker on each of the 12
# tiles, and only then, by CPU_AFFINITY = "list:1-8:9-16:17-24:25-32:33-40:41-48:53-60:"
# "61-68:69-76:77-84:85-92:93-100".
# Source: https://docs.alcf.anl.gov/aurora/running-jobs-aurora/
THREADS_PER_NODE = 208
CPU_AFFINITY = "none"


class PBS(PBSProProvider):
    """A PBSProProvider that asks for the state of its jobs four times a minute."""

    status_polling_interval = 15


config = Config(
    executors=[
        HighThroughputExecutor(
            label="aurora",
            address=ADDRESS,
            max_workers_per_node=len(TILES),
            available_accelerators=TILES,
            cpu_affinity=CPU_AFFINITY,
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
                scheduler_options=(
                    f"#PBS -l filesystems={FILESYSTEMS}\n#PBS -l place=scatter"
                ),
                init_blocks=0,
                max_blocks=MAX_BLOCKS,
                worker_init=WORKER_INIT,
                # Source: https://docs.alcf.anl.gov/aurora/workflows/parsl/
                launcher=MpiExecLauncher(bind_cmd="--cpu-bind", overrides="--ppn 1"),
            ),
        )
    ],
    strategy="simple",
    strategy_period=1,
)
