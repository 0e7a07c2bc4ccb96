#!/bin/bash
# An exchange for where login nodes are for no daemons: it runs in one Slurm job after the
# other, with the same mailboxes. Programs and agents follow it from node to node.
#
#     sbatch sbatch_exchange.sh
#
#SBATCH --job-name=exchange
#SBATCH --nodes=1 --ntasks=1
#SBATCH --time=24:00:00
#SBATCH --output=exchange-%j.out
# Two minutes before the end of its time, this script is told.
#SBATCH --signal=B:USR1@120
# After a node failure, the same job runs again.
#SBATCH --requeue --open-mode=append

source ~/venv/bin/activate          # Your environment, with academy-hpc in it.
cd "$SLURM_SUBMIT_DIR"

# An address of this node that the other nodes reach; if the first one is of the wrong
# network, name one, such as $(hostname -i).
export ACADEMY_EXCHANGE__HOST=$(hostname -I | cut -d' ' -f1)

python -m academy.exchange.cloud --config exchange.toml &
exchange=$!
trap 'again=yes; kill -TERM $exchange' USR1
trap 'kill -TERM $exchange' TERM    # Cancelled: end in order, and do not come back.

wait $exchange
status=$?
# A signal ends `wait`, and then the exchange lets go of its clients: wait for its end.
while kill -0 $exchange 2>/dev/null; do wait $exchange; status=$?; done

if [ "$again" ]; then sbatch sbatch_exchange.sh; fi
exit $status
