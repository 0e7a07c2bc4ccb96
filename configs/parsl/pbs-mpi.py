"""MPI agents in blocks from any PBS Pro or OpenPBS: copy this, change the capitals.

Each agent holds some nodes of a block, as its launch says (`nodes`, `ranks_per_node`),
and starts programs on them with the command in PARSL_MPI_PREFIX.
"""

from parsl.config import Config
from parsl.executors import MPIExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import SimpleLauncher
from parsl.providers import PBSProProvider

QUEUE = None  # None: the server's default; `qstat -Q` lists them.
ACCOUNT = None  # None: your default project.
WALLTIME = "01:00:00"  # Of a block.
NODES_PER_BLOCK = 4
AGENTS_PER_BLOCK = 2  # At a time: 4 nodes are 2 agents of 2 nodes.
CORES_PER_NODE = 8  # The ncpus to ask for; `pbsnodes -a` shows what nodes have.
SELECT = ""  # More for the select line, such as "ngpus=4" or "mem=64gb".
DIRECTIVES = "#PBS -l place=scatter"  # Each chunk of the select line on its own node.
MAX_BLOCKS = 1  # Jobs at a time.
WORKER_INIT = ""  # Such as "module load python; source ~/venv/bin/activate".


class PBS(PBSProProvider):
    """A PBSProProvider that asks for the state of its jobs four times a minute."""

    status_polling_interval = 15


config = Config(
    executors=[
        MPIExecutor(
            label="pbs_mpi",
            max_workers_per_block=AGENTS_PER_BLOCK,
            mpi_launcher="mpiexec",
            # Parsl's default is False here: anyone on the network could send tasks.
            encrypted=True,
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
                select_options=SELECT,
                scheduler_options=DIRECTIVES,
                init_blocks=0,
                max_blocks=MAX_BLOCKS,
                worker_init=WORKER_INIT,
                # The workers are on the first node; agents start what is on the others.
                launcher=SimpleLauncher(),
            ),
        )
    ],
    # Not "htex_auto_scale": it can cancel a queued job at every tick.
    strategy="simple",
    strategy_period=1,
)
