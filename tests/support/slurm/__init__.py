"""A real Slurm on this machine, for as long as a test needs it.

`SlurmLab` has virtual nodes, any number of them on this one host. `NetnsLab` makes each
of them a host of its own, which sees the login node and its fellow nodes and nothing
else. With `extra=STRICT, partitions=STRICT_PARTITIONS` they refuse and kill more.
`AccountingLab` has an accounting database.
`PBS_COMMANDS` is a directory with OpenPBS's commands over either.
"""

from tests.support.slurm.accounting import AccountingLab
from tests.support.slurm.cluster import SlurmLab
from tests.support.slurm.configuration import STRICT, STRICT_PARTITIONS
from tests.support.slurm.hosts import NetnsLab
from tests.support.slurm.pbs import PBS_COMMANDS
from tests.support.slurm.polling import until

__all__ = [
    "PBS_COMMANDS",
    "STRICT",
    "STRICT_PARTITIONS",
    "AccountingLab",
    "NetnsLab",
    "SlurmLab",
    "until",
]
