#!/bin/bash -l
# A persistent agent without a manager: it runs from agent.toml, in one PBS job after the
# other, with the same mailbox. What is sent to it between two jobs waits.
#
#     academy exchange start --host login1      # on a login node, once
#     qsub qsub_agent.sh
#
#PBS -N ledger
#PBS -l select=1:ncpus=1
#PBS -l walltime=24:00:00
#PBS -j oe
# After a node failure, the same job runs again.
#PBS -r y

source ~/venv/bin/activate          # Your environment, with academy-hpc in it.
cd "$PBS_O_WORKDIR"

# Two minutes less than the walltime: `timeout` then ends the agent in order.
timeout --signal=TERM "${AGENT_SECONDS:-86280}" academy run agent.toml
status=$?

# An agent that was shut down has nothing more to do. One whose time was over (124) has.
if [ $status -eq 124 ]; then qsub qsub_agent.sh; fi
exit $status
