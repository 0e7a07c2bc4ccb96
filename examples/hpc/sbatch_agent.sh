#!/bin/bash
# A persistent agent without a manager: it runs from agent.toml, in one Slurm job after
# the other, with the same mailbox. What is sent to it between two jobs waits.
#
#     academy exchange start --host login1      # on a login node, once
#     sbatch sbatch_agent.sh
#
#SBATCH --job-name=ledger
#SBATCH --nodes=1 --ntasks=1
#SBATCH --time=24:00:00
#SBATCH --output=ledger-%j.out
# Two minutes before the end of its time, this script is told.
#SBATCH --signal=B:USR1@120
# After a node failure, the same job runs again.
#SBATCH --requeue --open-mode=append

source ~/venv/bin/activate          # Your environment, with academy-hpc in it.
cd "$SLURM_SUBMIT_DIR"

academy run agent.toml &
agent=$!
trap 'again=yes; kill -TERM $agent' USR1
trap 'kill -TERM $agent' TERM       # Cancelled: end in order, and do not come back.

wait $agent
status=$?
# A signal ends `wait`, and then the agent saves what it has to: wait for its end.
while kill -0 $agent 2>/dev/null; do wait $agent; status=$?; done

# An agent that was shut down has nothing more to do. One whose time was over has.
if [ "$again" ]; then sbatch sbatch_agent.sh; fi
exit $status
