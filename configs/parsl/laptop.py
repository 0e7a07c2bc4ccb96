"""Workers on this machine: a laptop, a workstation, or the one node of a batch job."""

from academy.executors.parsl import local_config

config = local_config("laptop")
