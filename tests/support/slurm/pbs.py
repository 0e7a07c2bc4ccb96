"""OpenPBS's commands over a Slurm, which reads #PBS lines by itself."""

from pathlib import Path

# To be put on PATH: qsub, qstat, qdel, pbsdsh.
PBS_COMMANDS = Path(__file__).with_name("pbs_bin")

# Gives a job of theirs what only its start can tell: PBS_JOBID, PBS_NODEFILE.
TASK_PROLOG = Path(__file__).with_name("task_prolog.sh")
